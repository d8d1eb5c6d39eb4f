"""The command that `imagefs instance qemu` prints starts a real QEMU."""

import json
import subprocess
from pathlib import Path

import pytest

from imagefs.cli.qemu import Guest, command_line
from imagefs.units import MIB

pytestmark = pytest.mark.qemu
UUID = "9f0a2f5c-6f2e-4c0b-9d43-8a1d6c7b9e21"


def started(command: list[str]) -> dict[str, str]:
    """Start the command with a stopped guest, ask it for its disks, end it; return their files by name."""
    at = command.index("mon:stdio")
    command = [*command[:at], "null", *command[at + 1 :], "-S", "-qmp", "stdio"]
    asked = "".join(f'{{"execute": "{word}"}}\n' for word in ("qmp_capabilities", "query-block", "quit"))
    child = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    replies = [json.loads(line) for line in child.stdout.splitlines()]
    blocks = next(reply["return"] for reply in replies if isinstance(reply.get("return"), list))
    assert {block["inserted"]["drv"] for block in blocks} == {"raw"}
    return {block["device"]: block["inserted"]["file"] for block in blocks}


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"hw_machine_type": "q35", "hw_video_model": "virtio", "hw_virtio_packed_ring": "true", "hw_vif_model": "e1000e"},
        {"hw_disk_bus": "scsi", "hw_vif_model": "e1000", "hw_video_model": "cirrus", "hw_boot_menu": "yes"},
        {"hw_disk_bus": "scsi", "hw_scsi_model": "virtio-scsi", "hw_vif_model": "rtl8139", "hw_video_model": "bochs", "hw_time_hpet": "no"},
        {"hw_disk_bus": "scsi", "hw_scsi_model": "lsisas1068", "hw_vif_model": "ne2k_pci", "hw_video_model": "vmvga", "hw_pmu": "off"},
        {"hw_disk_bus": "scsi", "hw_scsi_model": "lsisas1078", "hw_vif_model": "pcnet", "hw_video_model": "none", "os_type": "windows"},
        {"hw_disk_bus": "scsi", "hw_scsi_model": "vmpvscsi", "hw_vif_model": "vmxnet3", "hw_video_model": "qxl"},
        {"hw_disk_bus": "ide", "hw_watchdog_action": "poweroff", "hw_pointer_model": "usbtablet", "architecture": "i686"},
        {"hw_disk_bus": "sata", "hw_machine_type": "q35"},
        {"hw_disk_bus": "usb"},
        {"disk_format": "iso"},
        {"disk_format": "iso", "hw_machine_type": "q35", "hw_cdrom_bus": "scsi"},
    ],
    ids=lambda attributes: "-".join(attributes.values()) or "defaults",
)
def test_the_command_starts_with_these_properties(tmp_path: Path, attributes: dict[str, str]) -> None:
    """QEMU takes every option, and finds both disks at their paths, also with a comma and a blank in the name."""
    directory = tmp_path / "a, b"
    directory.mkdir()
    disks = {name: directory / name for name in ("vda", "vdb")}
    for path in disks.values():
        with path.open("wb") as file:
            file.truncate(MIB)
    found = started(command_line(Guest("a, b", UUID, 2, 64, disks, attributes, tmp_path), "tcg"))
    assert found == {"drive-vda": str(disks["vda"]), "drive-vdb": str(disks["vdb"])}

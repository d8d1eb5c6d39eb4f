"""The command that `imagefs instance qemu` prints starts a real QEMU, whatever the image's properties ask for."""

import dataclasses
import json
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from imagefs.cli.machine.model import Guest, GuestDisk, Machine, Surroundings
from imagefs.cli.machine.plan import plan_machine
from imagefs.cli.qemu import command_line, tpm_command
from imagefs.units import MIB
from tests.support.guests import config_drive, guest, nvram, with_disk

pytestmark = pytest.mark.qemu
OVMF = Path("/usr/share/OVMF")


def stopped(command: list[str]) -> list[str]:
    """The command with a guest that is not started, and QMP in place of the serial console."""
    at = command.index("mon:stdio")
    return [*command[:at], "null", *command[at + 1 :], "-S", "-qmp", "stdio"]


def started(command: list[str]) -> dict[str, dict[str, object]]:
    """Start the command with a stopped guest, ask it for its disks, end it; return them by name."""
    words = "".join(f'{{"execute": "{word}"}}\n' for word in ("qmp_capabilities", "query-block", "quit"))
    child = subprocess.run(stopped(command), input=words, capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    replies = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    blocks = next(reply["return"] for reply in replies if isinstance(reply.get("return"), list))
    return {block["device"]: block["inserted"] for block in blocks}


def placed(plain: Guest, directory: Path) -> Guest:
    """The guest with its disks as files in the directory."""
    directory.mkdir()
    disks = tuple(dataclasses.replace(disk, path=directory / disk.name) for disk in plain.disks)
    for disk in disks:
        if disk.kind == "nvram":
            template = "OVMF_VARS_4M.ms.fd" if plain.secure_boot else "OVMF_VARS_4M.fd"
            shutil.copyfile(OVMF / template, disk.path)
        else:
            with disk.path.open("wb") as file:
                file.truncate(MIB)
    return dataclasses.replace(plain, ram=64, disks=disks)


def planned(plain: Guest, tmp_path: Path) -> Machine:
    """The machine of a guest whose paths have a comma and a blank."""
    here = Surroundings("tcg", tmp_path / "a, b.agent", tmp_path / "a, b.qmp")
    return plan_machine(placed(plain, tmp_path / "a, b"), here)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"hw_machine_type": "q35", "hw_video_model": "virtio", "hw_virtio_packed_ring": "true", "hw_vif_model": "e1000e"},
        {"hw_disk_bus": "scsi", "hw_vif_model": "e1000", "hw_video_model": "cirrus", "hw_boot_menu": "yes", "hw_video_ram": "8"},
        {"hw_disk_bus": "scsi", "hw_scsi_model": "virtio-scsi", "hw_vif_model": "rtl8139", "hw_video_model": "bochs", "hw_time_hpet": "no"},
        {"hw_disk_bus": "scsi", "hw_scsi_model": "lsisas1068", "hw_vif_model": "ne2k_pci", "hw_video_model": "vmvga", "hw_pmu": "off"},
        {"hw_disk_bus": "scsi", "hw_scsi_model": "lsisas1078", "hw_vif_model": "pcnet", "hw_video_model": "none", "os_type": "windows"},
        {"hw_disk_bus": "scsi", "hw_scsi_model": "vmpvscsi", "hw_vif_model": "vmxnet3", "hw_video_model": "qxl", "hw_video_ram": "32"},
        {"hw_disk_bus": "scsi", "hw_scsi_model": "virtio-scsi", "hw_virtio_packed_ring": "on", "hw_qemu_guest_agent": "yes"},
        {"hw_disk_bus": "ide", "hw_watchdog_action": "poweroff", "hw_pointer_model": "usbtablet", "architecture": "i686"},
        {"hw_disk_bus": "sata", "hw_machine_type": "q35", "hw_video_ram": "24"},
        {"hw_disk_bus": "sata", "hw_watchdog_action": "none", "hw_video_model": "bochs", "hw_video_ram": "16"},
        {"hw_disk_bus": "usb", "hw_usb_model": "nec-xhci", "hw_input_bus": "usb", "hw_video_model": "vmvga", "hw_video_ram": "16"},
        {"disk_format": "iso"},
        {"disk_format": "iso", "hw_machine_type": "q35", "hw_cdrom_bus": "scsi"},
        {"disk_format": "iso", "hw_cdrom_bus": "usb", "hw_disk_bus": "virtio"},
        {"hw_machine_type": "pc-i440fx-7.2", "hw_input_bus": "virtio", "hw_usb_model": "none", "hw_time_hpet": "yes", "hw_boot_menu": "no"},
        {"hw_machine_type": "pc-q35-7.1", "hw_viommu_model": "intel", "hw_sound_model": "ich9", "hw_serial_port_count": "4"},
        {"hw_machine_type": "q35", "hw_viommu_model": "auto", "hw_sound_model": "usb"},
        {"hw_sound_model": "sb16", "hw_vif_multiqueue_enabled": "true", "hw_pmu": "on"},
        {"hw_sound_model": "es1370", "img_hide_hypervisor_id": "yes"},
        {"hw_sound_model": "pcspk", "hw_time_hpet": "no"},
        {"hw_sound_model": "ac97", "hw_usb_model": "qemu-xhci"},
        {"hw_sound_model": "ich6", "hw_locked_memory": "false", "hw_mem_page_size": "small"},
        {"hw_cpu_cores": "2", "hw_cpu_max_sockets": "1", "hw_cpu_policy": "shared", "hw_cpu_thread_policy": "prefer"},
        {"hw_cpu_sockets": "2", "hw_numa_nodes": "2"},
        {"hw_numa_nodes": "2", "hw_numa_cpus.0": "1", "hw_numa_cpus.1": "0", "hw_numa_mem.0": "16", "hw_numa_mem.1": "48"},
        {"hw_maxphysaddr_mode": "emulate", "hw_maxphysaddr_bits": "40", "hw_qemu_guest_agent": "true", "os_require_quiesce": "yes"},
        {"hw_architecture": "i386", "hw_machine_type": "q35", "hw_disk_bus": "sata", "hw_vif_model": "rtl8139"},
        {"vmware_adaptertype": "lsiLogicsas", "vm_mode": "hv", "hypervisor_type": "QEMU", "hw_vif_model": "VirtualE1000"},
    ],
    ids=lambda attributes: "-".join(attributes.values()) or "defaults",
)
def test_the_command_starts_with_these_properties(tmp_path: Path, attributes: dict[str, str]) -> None:
    """QEMU takes every option, and finds both disks and the config drive at their paths, also with a comma and a blank in the name."""
    machine = planned(config_drive(guest(("vda", "vdb"), **attributes)), tmp_path)
    found = started(command_line(machine))
    assert {disk["drv"] for disk in found.values()} == {"raw"}
    assert {name: disk["file"] for name, disk in found.items()} == {f"drive-{name}": str(tmp_path / "a, b" / name) for name in ("vda", "vdb", "vdz")}


@pytest.mark.parametrize("bus", ["virtio", "scsi", "sata", "ide", "usb"])
def test_a_config_drive_as_a_disk_is_read_only_on_every_bus(tmp_path: Path, bus: str) -> None:
    """QEMU starts with it, and takes no writes for it."""
    found = started(command_line(planned(config_drive(guest(hw_disk_bus=bus), "disk"), tmp_path)))
    assert (found["drive-vda"]["ro"], found["drive-vdz"]["ro"]) == (False, True)


@pytest.mark.parametrize(
    ("attributes", "is_secure"),
    [
        ({}, False),
        ({"hw_machine_type": "pc"}, False),
        ({"hw_firmware_stateless": "yes", "hw_video_model": "virtio"}, False),
        ({"os_secure_boot": "required"}, True),
        ({"os_secure_boot": "optional", "hw_machine_type": "pc-q35-7.2", "hw_disk_bus": "sata", "hw_viommu_model": "virtio"}, True),
    ],
    ids=["q35", "pc", "stateless", "secure", "secure-sata"],
)
def test_the_command_starts_with_uefi(tmp_path: Path, attributes: dict[str, str], *, is_secure: bool) -> None:
    """Code and variables are flash; the variables are the instance's own file."""
    code = OVMF / ("OVMF_CODE_4M.secboot.fd" if is_secure else "OVMF_CODE_4M.fd")
    found = started(command_line(planned(nvram(guest(hw_firmware_type="uefi", **attributes), code=code, secure_boot=is_secure), tmp_path)))
    flash = {disk["file"]: disk["ro"] for name, disk in found.items() if name.startswith("pflash")}
    wanted = {str(code): True} if "hw_firmware_stateless" in attributes else {str(code): True, str(tmp_path / "a, b" / "nvram.fd"): False}
    assert flash == wanted


@pytest.mark.boot
@pytest.mark.parametrize(
    ("attributes", "is_secure"), [({}, False), ({"hw_firmware_stateless": "yes"}, False), ({"os_secure_boot": "required"}, True)]
)
def test_uefi_gets_as_far_as_looking_for_something_to_boot(tmp_path: Path, attributes: dict[str, str], *, is_secure: bool) -> None:
    """The firmware runs and ends in its boot manager, which says on the serial console that there is nothing to boot from."""
    code = OVMF / ("OVMF_CODE_4M.secboot.fd" if is_secure else "OVMF_CODE_4M.fd")
    command = command_line(planned(nvram(guest(hw_firmware_type="uefi", **attributes), code=code, secure_boot=is_secure), tmp_path))
    at = command.index("mon:stdio")
    child = subprocess.Popen(
        [*command[:at], "stdio", *command[at + 1 :]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    )
    try:
        assert child.stdout is not None
        said = ""
        while "BdsDxe" not in said:
            line = child.stdout.readline()
            assert line, said
            said += line
    finally:
        child.kill()
        child.communicate()


def test_a_direct_disk_stands_on_the_image_whatever_its_header_says(tmp_path: Path) -> None:
    """The backing file is the one of the command line: an owner of the disk may write any name into the header."""
    base, other, disk = tmp_path / "base, raw", tmp_path / "other", tmp_path / "vda.qcow2"
    for path in (base, other):
        with path.open("wb") as file:
            file.truncate(MIB)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", other, "-F", "raw", disk], check=True)
    root = GuestDisk("vda", disk, "root", "qcow2", backing=base)
    machine = plan_machine(dataclasses.replace(with_disk(guest(), root), ram=64), Surroundings("tcg"))
    found = started(command_line(machine))["drive-vda"]
    assert found["drv"] == "qcow2"
    image = found["image"]
    assert isinstance(image, dict)
    assert (image["backing-image"]["filename"], image["backing-image"]["format"]) == (str(base), "raw")


def test_control_and_agent_sockets_are_where_they_were_asked_for(tmp_path: Path) -> None:
    """--qmp answers as QMP does, and the agent's socket is there."""
    command = command_line(planned(guest(hw_qemu_guest_agent="yes"), tmp_path))
    child = subprocess.Popen(stopped(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()  # the greeting: all sockets are there
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(tmp_path / "a, b.qmp"))
            assert b'"QMP"' in control.recv(4096)
        with socket.socket(socket.AF_UNIX) as agent:
            agent.connect(str(tmp_path / "a, b.agent"))
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize(("version", "model"), [("2.0", "tpm-crb"), ("1.2", "tpm-tis")])
def test_a_tpm_starts_before_its_guest_and_ends_with_it(tmp_path: Path, version: str, model: str) -> None:
    """Both commands that are printed run one after the other, and the TPM's state stays in its directory."""
    state = tmp_path / "tpm"
    state.mkdir()
    plain = placed(guest(hw_tpm_version=version, hw_tpm_model=model), tmp_path / "disks")
    machine = plan_machine(plain, Surroundings("tcg", tpm_state=state))
    assert machine.tpm is not None
    subprocess.run(tpm_command(machine.tpm), check=True, timeout=60)
    started(command_line(machine))
    assert [path.name for path in state.iterdir() if path.suffix == ".permall"] == ["tpm2-00.permall" if version == "2.0" else "tpm-00.permall"]

"""The commands of instances and volumes on a real mount, and the QEMU command lines that they print, started as they are printed."""

import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.mounted import IMAGEFS, Mounted, mounted, run_imagefs, write_config
from tests.support.pictures import MIB, disk_bytes, write_qcow2, write_raw

pytestmark = [pytest.mark.mount, pytest.mark.qemu]
FLAVORS = '[flavors."f"]\nvcpus = 2\nram = 64\ndisk = 1\nephemeral = 2\nswap = 8\n'
UEFI = ("--property", "hw_firmware_type=uefi", "--property", "os_secure_boot=required", "--property", "hw_qemu_guest_agent=yes")


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mount with an image for a BIOS and one for UEFI."""
    directory = tmp_path_factory.mktemp("commands")
    config = write_config(directory, extra=FLAVORS)
    raw = write_raw(directory / "base.raw", disk_bytes(4 * MIB))
    qcow2 = write_qcow2(directory / "base.qcow2", raw, "-c")
    run_imagefs(config, "image", "create", "bios", "--file", str(qcow2), "--property", "hw_disk_bus=scsi", "--property", "hw_scsi_model=virtio-scsi")
    run_imagefs(config, "image", "create", "uefi", "--file", str(qcow2), *UEFI)
    with mounted(directory, config) as made:
        yield made


def shown(mount: Mounted, *words: str) -> Any:
    """What a command prints as JSON."""
    return json.loads(mount.imagefs(*words, "-f", "json").stdout)


def disks_of(line: str) -> dict[str, dict[str, Any]]:
    """Run a printed line in a shell, with a stopped guest, and return its disks as QEMU has them open."""
    assert line.count("\n") == 1
    asked = "".join(f'{{"execute": "{word}"}}\n' for word in ("qmp_capabilities", "query-block", "quit"))
    typed = f"{line.replace('mon:stdio', 'null').rstrip()} -S -qmp stdio"
    child = subprocess.run(["sh", "-c", typed], input=asked, capture_output=True, text=True, timeout=120, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    replies = [json.loads(row) for row in child.stdout.splitlines() if row.startswith("{")]
    blocks = next(reply["return"] for reply in replies if isinstance(reply.get("return"), list))
    return {block["device"]: block["inserted"] for block in blocks}


def test_a_whole_instance_runs_as_printed(mount: Mounted, tmp_path: Path) -> None:
    """Root, ephemerals, swap, volume and config drive are in the command, and QEMU opens them all."""
    (tmp_path / "user").write_text("#cloud-config\n")
    options = ("--ephemeral", "1", "--ephemeral", "1", "--ephemeral-format", "vfat", "--encrypted", "--user-data", str(tmp_path / "user"))
    made = mount.imagefs("instance", "create", "whole", "--image", "bios", "--flavor", "f", *options)
    assert made.stderr == ""
    mount.imagefs("volume", "create", "db1", "--size", "16M")
    assert mount.imagefs("volume", "attach", "whole", "db1").stdout == "vde\n"
    found = shown(mount, "instance", "show", "whole")
    assert found["disks"] == {"vda": 1 << 30, "vdb": 1 << 30, "vdc": 1 << 30, "vdd": 8 << 20, "vde": 16 << 20, "vdz": found["disks"]["vdz"]}
    assert found["volumes"] == {"vde": "db1"}
    disks = disks_of(mount.imagefs("instance", "qemu", "whole", "--accel", "tcg").stdout)
    instance = mount.mountpoint / "instances" / "whole"
    assert {name: disk["file"] for name, disk in disks.items()} == {
        **{f"drive-{name}": str(instance / name) for name in ("vda", "vdb", "vdc", "vdd", "vdz")}, "drive-vde": str(mount.mountpoint / "volumes/db1"),
    }  # fmt: skip
    assert [name for name, disk in disks.items() if disk["ro"]] == ["drive-vdz"]
    mount.imagefs("instance", "delete", "whole")
    assert shown(mount, "volume", "list")[0]["Attached To"] is None
    mount.imagefs("volume", "set", "db1", "--size", "32M")
    assert shown(mount, "volume", "show", "db1")["size"] == 32 << 20
    mount.imagefs("volume", "delete", "db1")


def test_volumes_are_refused_with_the_mounts_reasons(mount: Mounted) -> None:
    """What is attached cannot be attached again or deleted; the lines say to whom it is attached."""
    for name in ("one", "two"):
        mount.imagefs("instance", "create", name, "--image", "bios")
    mount.imagefs("volume", "create", "db2", "--size", "1M")
    mount.imagefs("volume", "attach", "one", "db2", "--device", "vdf")
    for words in (("attach", "two", "db2"), ("delete", "db2")):
        found = mount.imagefs("volume", *words, check=False)
        assert (found.returncode, "'one'" in found.stderr) == (1, True), found.stderr
    found = mount.imagefs("volume", "attach", "two", "/dev/null", check=False)
    assert (found.returncode, "not a block device" in found.stderr) == (1, True), found.stderr
    mount.imagefs("volume", "detach", "one", "db2")
    mount.imagefs("volume", "delete", "db2")
    mount.imagefs("instance", "delete", "one", "two")


def test_a_uefi_instance_runs_as_printed(mount: Mounted, tmp_path: Path) -> None:
    """Secure boot's code, the instance's own variables, and the agent's and control sockets."""
    mount.imagefs("instance", "create", "secure", "--image", "uefi")
    found = shown(mount, "instance", "show", "secure")
    assert (found["secure_boot"], Path(found["firmware_code"]).is_file()) == ("true", True)
    sockets = ("--agent-socket", str(tmp_path / "agent"), "--qmp", str(tmp_path / "qmp"))
    line = mount.imagefs("instance", "qemu", "secure", "--accel", "tcg", *sockets).stdout
    disks = disks_of(line)
    nvram = mount.mountpoint / "instances" / "secure" / "nvram.fd"
    assert {disk["file"]: disk["ro"] for name, disk in disks.items() if name.startswith("pflash")} == {
        found["firmware_code"]: True,
        str(nvram): False,
    }
    assert all(f"{tmp_path}/{name},server=on,wait=off" in line for name in ("agent", "qmp"))
    domain = mount.imagefs("instance", "libvirt", "secure", "--accel", "tcg").stdout
    (tmp_path / "domain.xml").write_text(domain)
    subprocess.run(["virt-xml-validate", tmp_path / "domain.xml", "domain"], check=True, capture_output=True, timeout=60)
    mount.imagefs("instance", "delete", "secure")


def test_a_direct_disk_runs_as_printed(mount: Mounted, tmp_path: Path) -> None:
    """QEMU opens the local file, and the image on the mount below it."""
    mount.imagefs("instance", "create", "direct", "--image", "bios", "--disk-format", "qcow2")
    image_id = shown(mount, "instance", "show", "direct")["image_id"]
    disk = disks_of(mount.imagefs("instance", "qemu", "direct", "--accel", "tcg").stdout)["drive-vda"]
    assert disk["drv"] == "qcow2"
    below = disk["image"]["backing-image"]
    assert (below["filename"], below["format"]) == (str(mount.mountpoint / "raw" / image_id), "raw")
    mount.imagefs("instance", "delete", "direct")


def test_a_snapshot_that_is_waited_for_is_an_image(mount: Mounted) -> None:
    """Its id is printed, and an instance can be made of it."""
    mount.imagefs("instance", "create", "before", "--image", "bios")
    done = mount.imagefs("instance", "snapshot", "before", "--name", "snap", "--property", "note=a b", "--wait")
    image_id = done.stdout.strip()
    image = shown(mount, "image", "show", image_id)
    assert (image["name"], image["status"], image["visibility"], image["note"], image["image_type"]) == (
        "snap",
        "active",
        "private",
        "a b",
        "snapshot",
    )
    assert shown(mount, "instance", "show", "before")["snapshot"]["status"] == "active"
    mount.imagefs("instance", "create", "after", "--image", "snap")
    assert "scsi-hd," in mount.imagefs("instance", "qemu", "after", "--accel", "tcg").stdout
    mount.imagefs("instance", "delete", "before", "after")


def test_exec_is_qemu_itself(mount: Mounted, tmp_path: Path) -> None:
    """The process that was started is QEMU, with the words that are printed."""
    mount.imagefs("instance", "create", "run", "--image", "bios")
    control = tmp_path / "qmp"
    options = ("instance", "qemu", "run", "--accel", "tcg", "--qmp", str(control))
    words = shlex.split(mount.imagefs(*options).stdout)
    child = subprocess.Popen([*IMAGEFS, "-c", str(mount.config), *options, "--exec"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        while child.poll() is None and not control.exists():
            time.sleep(0.05)
        assert Path(f"/proc/{child.pid}/cmdline").read_bytes().decode().split("\0")[:-1] == words
    finally:
        child.kill()
        child.communicate()
    mount.imagefs("instance", "delete", "run")

"""instance qemu and libvirt, over a mount."""

import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from imagefs.cli import instance_run
from tests.support.commands import Run
from tests.support.fake_mount import FakeMount

GONE = "9f0a2f5c-6f2e-4c0b-9d43-8a1d6c7b9e21"


class Replaced(Exception):
    """The process has become another program."""


def test_qemu_prints_one_command(run: Run, mount: FakeMount) -> None:
    """The command is one line for a shell, with the flavor's sizes and the disks' paths."""
    mount.add_instance("web1", mount.add_image("debian", hw_disk_bus="scsi", min_ram="0"), "m1.medium", ("vda", "vdb"))
    found = run("instance", "qemu", "web1", "--accel", "tcg")
    assert (found.status, found.err, found.out.count("\n")) == (0, "", 1)
    words = shlex.split(found.out)
    assert words[0] == "qemu-system-x86_64"
    assert words[words.index("-m") + 1] == "4096"
    assert words[words.index("-smp") + 1] == "2,sockets=2,cores=1,threads=1"
    assert sum(f"file={mount.path}/instances/web1/vd" in word for word in words) == 2
    assert any(word.startswith("scsi-hd,") for word in words)


def test_qemu_without_a_flavor_or_an_image(run: Run, mount: FakeMount) -> None:
    """Without a flavor the image's min_ram counts; an image that is gone is told of."""
    mount.add_instance("a", mount.add_image("debian", min_ram="700"), None)
    assert " -m 700 " in run("instance", "qemu", "a").out
    mount.add_instance("b", "9f0a2f5c-6f2e-4c0b-9d43-8a1d6c7b9e21")
    found = run("instance", "qemu", "b")
    assert found.status == 0
    assert "is gone" in found.err


def test_qemu_needs_disks(run: Run, mount: FakeMount) -> None:
    """An instance without an image cannot run."""
    mount.add_instance("fresh", None, None, ())
    assert "it has no disks yet" in run("instance", "qemu", "fresh").err
    assert "no such instance" in run("instance", "qemu", "nosuch").err


def test_properties_are_those_of_when_the_instance_was_made(run: Run, mount: FakeMount) -> None:
    """A later change of the image, or its end, changes no machine; words of JSON are read as attributes are."""
    properties = {"hw_disk_bus": "scsi", "min_ram": 900, "hw_boot_menu": True, "os_distro": None}
    mount.add_instance("web1", GONE, None, properties=properties)
    found = run("instance", "qemu", "web1")
    assert (found.status, found.err) == (0, "")
    assert " -m 900 " in found.out
    assert "scsi-hd," in found.out
    assert "menu=on" in found.out
    mount.add_instance("web2", None, properties={})
    os.setxattr(mount.path / "instances" / "web2", "user.imagefs.image_properties", b"[]")
    assert "user.imagefs.image_properties cannot be understood" in run("instance", "qemu", "web2").err


def test_links_are_followed_by_name(run: Run, mount: FakeMount) -> None:
    """A volume, a block device and a direct disk are opened where they are."""
    image_id = mount.add_image("debian")
    mount.add_instance("web1", image_id, properties={})
    mount.set_disk("web1", "vda", kind="root", format="qcow2", size=1, path="/state/direct/u/vda.qcow2")
    mount.set_disk("web1", "vdc", kind="volume", format="raw", size=1, path="../../volumes/db1")
    mount.set_disk("web1", "vdd", kind="volume", format="raw", size=1, path="/dev/sdq")
    words = shlex.split(run("instance", "qemu", "web1", "--accel", "tcg").out)
    drives = [word.split(",") for word in words if ",if=none," in word]
    assert [drive[0] for drive in drives] == [f"file={path}" for path in ("/state/direct/u/vda.qcow2", mount.path / "volumes" / "db1", "/dev/sdq")]
    assert f"backing.file.filename={mount.path}/raw/{image_id}" in drives[0]


def test_firmware_is_what_the_instance_was_made_with(run: Run, mount: FakeMount) -> None:
    """Its attributes say which code, and whether secure boot is enforced."""
    properties = {"hw_firmware_type": "uefi"}
    mount.add_instance("web1", None, disks=("vda", "nvram.fd"), properties=properties, firmware_code="/code.fd", secure_boot="true")
    found = run("instance", "qemu", "web1").out
    assert "file=/code.fd,format=raw,if=pflash,unit=0,readonly=on" in found
    assert f"file={mount.path}/instances/web1/nvram.fd,format=raw,if=pflash,unit=1" in found
    assert "smm=on" in found


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path: that of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_the_agents_socket_is_where_only_its_user_may_write(run: Run, mount: FakeMount, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_RUNTIME_DIR, else /run for root, else a place that is named; never /tmp."""
    path = mount.add_instance("web1", properties={"hw_qemu_guest_agent": "yes"})
    uuid = os.getxattr(path, "user.instance_uuid").decode()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    assert f"path={place}/imagefs-{uuid}.agent,server=on" in run("instance", "qemu", "web1").out
    assert f"path={place}/x,server=on" in run("instance", "qemu", "web1", "--agent-socket", place / "x").out
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(instance_run, "_RUN", place)
    assert f"path={place}/imagefs-{uuid}.agent" in run("instance", "qemu", "web1").out
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "--agent-socket PATH" in run("instance", "qemu", "web1").err


def test_a_relative_socket_is_where_the_command_was_run(run: Run, mount: FakeMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The printed command may be run elsewhere."""
    mount.add_instance("web1")
    monkeypatch.chdir(tmp_path)
    assert f"unix:{tmp_path}/control,server=on,wait=off" in run("instance", "qemu", "web1", "--qmp", "control").out


def test_a_tpm_is_started_by_the_same_line(run: Run, mount: FakeMount, tmp_path: Path) -> None:
    """The shell makes its directory, starts it, and becomes QEMU."""
    mount.add_instance("web1", properties={"hw_tpm_version": "2.0"})
    line = run("instance", "qemu", "web1", "--tpm-state", tmp_path / "a b").out
    first, second, third = line.split(" && ")
    assert shlex.split(first) == ["mkdir", "-p", "-m", "0700", f"{tmp_path}/a b"]
    assert shlex.split(second)[:2] == ["swtpm", "socket"]
    assert third.startswith("exec qemu-system-x86_64 ")
    found = run("instance", "qemu", "web1")
    assert (found.status, "--tpm-state" in found.err) == (1, True)


def test_exec_becomes_qemu(run: Run, mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the words that it would print, and nothing printed."""
    mount.add_instance("web1")
    printed = shlex.split(run("instance", "qemu", "web1").out)
    called: list[list[str]] = []

    def replace(program: str, words: list[str]) -> None:
        called.append([program, *words])
        raise Replaced

    monkeypatch.setattr("os.execvp", replace)
    found = run("instance", "qemu", "web1", "--exec")
    assert called == [[printed[0], *printed]]
    assert found.out == ""


def test_exec_starts_a_tpm_first(run: Run, mount: FakeMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory is nobody else's; if it cannot be started, neither is QEMU."""
    mount.add_instance("web1", properties={"hw_tpm_version": "2.0"})
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    state = tmp_path / "x" / "tpm"
    found = run("instance", "qemu", "web1", "--exec", "--tpm-state", state)
    assert (found.status, "no swtpm here" in found.err) == (1, True)
    assert state.stat().st_mode & 0o777 == 0o700
    (tmp_path / "bin" / "swtpm").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "bin" / "swtpm").chmod(0o755)
    found = run("instance", "qemu", "web1", "--exec", "--tpm-state", state)
    assert (found.status, "it cannot be run" in found.err) == (1, True)


def test_exec_without_qemu_tells_what_to_install(run: Run, mount: FakeMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line."""
    mount.add_instance("web1")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = run("instance", "qemu", "web1", "--exec")
    assert found.status == 1
    assert "there is no qemu-system-x86_64" in found.err


def test_libvirt_prints_a_domain(run: Run, mount: FakeMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the disks' paths, and the network and log that are asked for."""
    path = mount.add_instance("web1", None, "m1.medium", ("vda", "vdz"), properties={"hw_tpm_version": "2.0", "hw_qemu_guest_agent": "1"})
    monkeypatch.chdir(tmp_path)
    found = run("instance", "libvirt", "web1", "--accel", "tcg", "--network", "user", "--console-log", "log")
    assert (found.status, found.err) == (0, "")
    domain = ET.fromstring(found.out)
    assert (domain.attrib["type"], domain.findtext("uuid")) == ("qemu", os.getxattr(path, "user.instance_uuid").decode())
    assert [source.attrib["file"] for source in domain.findall("devices/disk/source")] == [str(path / name) for name in ("vda", "vdz")]
    assert [log.attrib["file"] for log in domain.findall("devices/serial/log")] == [str(tmp_path / "log")]
    assert domain.find("devices/interface[@type='user']") is not None


def test_libvirt_tells_of_a_directory_that_is_closed(run: Run, mount: FakeMount) -> None:
    """Libvirt's user has to go through it."""
    mount.add_instance("web1").chmod(0o700)
    found = run("instance", "libvirt", "web1")
    assert found.status == 0
    assert f"chmod o+x {mount.path}/instances/web1" in found.err
    assert "no such instance" in run("instance", "libvirt", "nosuch").err

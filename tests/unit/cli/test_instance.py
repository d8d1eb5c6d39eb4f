"""instance create, list, show, delete and qemu, over a mount."""

import errno
import json
import os
import shlex
from pathlib import Path

import pytest

from tests.support.commands import Run
from tests.support.fake_mount import FakeMount, set_attributes


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that refuses every image, with a reason."""
    real = os.setxattr

    def refuse(path: Path, name: str, value: bytes) -> None:
        if name == "user.image":
            real(path, "user.imagefs.error", b"there is no image 'x'")
            raise OSError(errno.EINVAL, "Invalid argument")
        real(path, name, value)

    monkeypatch.setattr("os.setxattr", refuse)


def test_create_is_mkdir_and_two_attributes(run: Run, mount: FakeMount) -> None:
    """What a shell would do is done: the flavor first, then the image, on a directory of the caller's own."""
    found = run("instance", "create", "web1", "--image", "debian", "--flavor", "m1.small", "-f", "value", "-c", "name")
    assert (found.status, found.out, found.err) == (0, "web1\n", "")
    path = mount.path / "instances" / "web1"
    assert (os.getxattr(path, "user.flavor"), os.getxattr(path, "user.image")) == (b"m1.small", b"debian")
    assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("refusing")
def test_a_refused_image_leaves_no_instance(run: Run, mount: FakeMount) -> None:
    """The mount's reason is the line, and the directory is gone again."""
    found = run("instance", "create", "web1", "--image", "x")
    assert (found.status, found.err) == (1, "imagefs: instance create web1: there is no image 'x'\n")
    assert list((mount.path / "instances").iterdir()) == []


def test_an_interrupted_create_leaves_no_instance(run: Run, mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle undoes what was done."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.setxattr", interrupt)
    assert run("instance", "create", "web1", "--image", "x").status == 130
    assert list((mount.path / "instances").iterdir()) == []


def test_a_wrong_column_makes_no_instance(run: Run, mount: FakeMount) -> None:
    """It is found before anything is made; the field of an error that did not happen has no value."""
    mount.add_image("debian")
    assert run("instance", "create", "web1", "--image", "debian", "-c", "colour").status == 2
    assert not list((mount.path / "instances").iterdir())
    assert run("instance", "create", "web1", "--image", "debian", "-f", "value", "-c", "error").out == "None\n"


def test_an_existing_instance_stays_as_it_is(run: Run, mount: FakeMount) -> None:
    """A name that is taken is an error, and what has it is not touched."""
    mount.add_instance("web1")
    found = run("instance", "create", "web1", "--image", "x")
    assert found.status == 1
    assert "there is an instance of that name" in found.err
    assert (mount.path / "instances" / "web1" / "vda").exists()


def test_a_failed_mkdir_tells_the_mounts_reason(run: Run, mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for a directory that was never made is on instances/."""
    set_attributes(mount.path / "instances", {"imagefs.error": "no room"})

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", fail)
    assert run("instance", "create", "web1", "--image", "x").err == "imagefs: instance create web1: no room\n"


@pytest.mark.parametrize("name", ["../x", "..", ".", "", "a/b"])
def test_names_never_lead_elsewhere(run: Run, mount: FakeMount, name: str) -> None:
    """No command takes an instance's name for a path."""
    for command in (["create", name, "--image", "x"], ["show", name], ["delete", name], ["qemu", name]):
        found = run("instance", *command)
        assert found.status == 1
        assert "cannot be the name of an instance" in found.err


def test_list_shows_names_of_images(run: Run, mount: FakeMount) -> None:
    """An image that is gone is shown by its id."""
    image_id = mount.add_image("debian")
    gone = "9f0a2f5c-6f2e-4c0b-9d43-8a1d6c7b9e21"
    mount.add_instance("web2", gone, "m1.large")
    mount.add_instance("web1", image_id)
    mount.add_instance("fresh", None, None, ())
    rows = json.loads(run("instance", "list", "-f", "json", "-c", "Name", "-c", "Status", "-c", "Image", "-c", "Flavor").out)
    assert [list(row.values()) for row in rows] == [
        ["fresh", "new", None, None],
        ["web1", "active", "debian", "m1.small"],
        ["web2", "active", gone, "m1.large"],
    ]


def test_show_has_the_disks_and_the_last_error(run: Run, mount: FakeMount) -> None:
    """Sizes are in bytes; the error is there only if there is one."""
    path = mount.add_instance("web1", "an-id", disks=("vda", "vdb"))
    shown = json.loads(run("instance", "show", "web1", "-f", "json").out)
    assert shown["disks"] == {"vda": 1 << 20, "vdb": 1 << 20}
    assert (shown["name"], shown["image_id"], shown["flavor"]) == ("web1", "an-id", "m1.small")
    assert "error" not in shown
    set_attributes(path, {"imagefs.error": "bad"})
    assert run("instance", "show", "web1", "-f", "value", "-c", "error").out == "bad\n"
    assert "no such instance" in run("instance", "show", "nosuch").err


def test_delete_goes_on_after_a_failure(run: Run, mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in use and one unknown are told; the others are removed."""
    for name in ("a", "busy", "c"):
        mount.add_instance(name, disks=())
    real = Path.rmdir

    def rmdir(path: Path) -> None:
        if path.name == "busy":
            raise OSError(errno.EBUSY, "Device or resource busy")
        real(path)

    monkeypatch.setattr(Path, "rmdir", rmdir)
    found = run("instance", "delete", "a", "busy", "nosuch", "c")
    assert found.status == 1
    assert found.err == (
        "imagefs: instance delete busy: it is in use: stop the guest first\n"
        "imagefs: instance delete nosuch: there is no such instance: see imagefs instance list\n"
    )
    assert [path.name for path in (mount.path / "instances").iterdir()] == ["busy"]


def test_qemu_prints_one_command(run: Run, mount: FakeMount) -> None:
    """The command is one line for a shell, with the flavor's sizes and the disks' paths."""
    mount.add_instance("web1", mount.add_image("debian", hw_disk_bus="scsi", min_ram="0"), "m1.medium", ("vda", "vdb"))
    found = run("instance", "qemu", "web1", "--accel", "tcg")
    assert (found.status, found.err, found.out.count("\n")) == (0, "", 1)
    words = shlex.split(found.out)
    assert words[0] == "qemu-system-x86_64"
    assert words[words.index("-m") + 1] == "4096"
    assert words[words.index("-smp") + 1] == "2"
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


def test_flavors_are_listed_and_shown(run: Run, mount: FakeMount) -> None:
    """By size of memory; one alone is shown as its file has it."""
    listed = json.loads(run("flavor", "list", "-f", "json").out)
    assert [row["Name"] for row in listed] == ["m1.tiny", "m1.small", "m1.medium", "m1.large", "m1.xlarge"]
    assert listed[1] == {"ID": "2", "Name": "m1.small", "RAM": 2048, "Disk": 20, "Ephemeral": 0, "Swap": 0, "VCPUs": 1, "Is Public": True}
    assert run("flavor", "show", "m1.tiny", "-f", "value", "-c", "ram").out == "512\n"
    found = run("flavor", "show", "m1.huge")
    assert (found.status, found.err) == (1, "imagefs: there is no flavor 'm1.huge': see imagefs flavor list\n")


def test_status_sums_up(run: Run, mount: FakeMount) -> None:
    """The mount, its daemon, what is in it and how full the cache is."""
    mount.add_image("debian")
    shown = json.loads(run("status", "-f", "json").out)
    assert shown == {
        "mountpoint": str(mount.path), "version": "0.1.0", "pid": os.getpid(), "images": 1, "instances": 0, "cache": "1.0 MiB of 2.0 MiB",
    }  # fmt: skip

"""volume create, list, show, set, attach, detach and delete, over a mount."""

import errno
import json
import os
from pathlib import Path

import pytest

from tests.support.commands import Run
from tests.support.fake_mount import FakeMount, set_attributes


def test_create_is_a_file_of_that_size(run: Run, mount: FakeMount) -> None:
    """What truncate -s does, for a name that is not taken."""
    found = run("volume", "create", "db1", "--size", "10G", "-f", "value", "-c", "size")
    assert (found.status, found.out, found.err) == (0, f"{10 << 30}\n", "")
    path = mount.path / "volumes" / "db1"
    assert (path.stat().st_size, path.stat().st_mode & 0o777) == (10 << 30, 0o600)
    found = run("volume", "create", "db1", "--size", "1G")
    assert (found.status, "there is a volume of that name" in found.err) == (1, True)
    assert path.stat().st_size == 10 << 30


@pytest.mark.parametrize("size", ["0", "-1", "10X", "1.5G", "", "16E"])
def test_sizes_that_are_none_make_nothing(run: Run, mount: FakeMount, size: str) -> None:
    """A mistake in the command line."""
    assert run("volume", "create", "db1", f"--size={size}").status == 2
    assert not list((mount.path / "volumes").iterdir())


@pytest.mark.parametrize(("fault", "status"), [(OSError(errno.ENOSPC, "No space left on device"), 1), (KeyboardInterrupt(), 130)])
def test_a_failed_create_leaves_no_volume(run: Run, mount: FakeMount, monkeypatch: pytest.MonkeyPatch, fault: BaseException, status: int) -> None:
    """The name is free again."""

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr("os.ftruncate", fail)
    assert run("volume", "create", "db1", "--size", "1G").status == status
    assert not list((mount.path / "volumes").iterdir())


def test_a_create_that_the_mount_refuses_tells_its_reason(run: Run, mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands on volumes/."""
    set_attributes(mount.path / "volumes", {"imagefs.error": "the name is too long"})
    real = os.open

    def fail(path: Path, *arguments: int) -> int:
        if Path(path).parent.name == "volumes":
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, *arguments)

    monkeypatch.setattr("os.open", fail)
    assert run("volume", "create", "db1", "--size", "1G").err == "imagefs: volume create db1: the name is too long\n"


@pytest.mark.parametrize("name", ["../x", "..", "", "a/b"])
def test_names_never_lead_elsewhere(run: Run, mount: FakeMount, name: str) -> None:
    """No command takes a volume's name for a path."""
    mount.add_instance("web1")
    for command in (["create", name, "--size", 1], ["show", name], ["set", name, "--size", 1], ["delete", name], ["attach", "web1", name]):
        found = run("volume", *command)
        assert (found.status, "cannot be the name of a volume" in found.err) == (1, True)
    for command in (["attach", name, "x"], ["detach", name, "x"]):
        assert "cannot be the name of an instance" in run("volume", *command).err


def test_list_and_show(run: Run, mount: FakeMount) -> None:
    """With sizes in bytes, and to whom they are attached."""
    mount.add_volume("b", 5, attached_to="web1")
    path = mount.add_volume("a", 7, **{"imagefs.error": "worn out"})
    rows = json.loads(run("volume", "list", "-f", "json").out)
    assert [(row["Name"], row["Size"], row["Attached To"]) for row in rows] == [("a", 7, None), ("b", 5, "web1")]
    shown = json.loads(run("volume", "show", "a", "-f", "json").out)
    assert shown == {
        "id": os.getxattr(path, "user.volume_id").decode(), "name": "a", "size": 7, "created_at": "2026-11-22T10:00:00Z", "error": "worn out",
    }  # fmt: skip
    assert json.loads(run("volume", "show", "b", "-f", "json").out)["attached_to"] == "web1"
    assert "there is no such volume" in run("volume", "show", "nosuch").err


@pytest.mark.parametrize(("error", "rows"), [(FileNotFoundError, []), (PermissionError, [[None, "a", None, None]])])
def test_others_volumes_and_those_that_go_do_not_end_a_list(
    run: Run, mount: FakeMount, monkeypatch: pytest.MonkeyPatch, error: type[OSError], rows: list[list[object]]
) -> None:
    """One that is somebody else's has a name only."""
    mount.add_volume("a")

    def fail(*_: object) -> bytes:
        raise error

    monkeypatch.setattr("os.getxattr", fail)
    assert [list(row.values()) for row in json.loads(run("volume", "list", "-f", "json").out)] == rows


def test_set_grows_and_never_shrinks(run: Run, mount: FakeMount) -> None:
    """The same size is no change."""
    path = mount.add_volume("a", 1 << 20)
    assert run("volume", "set", "a", "--size", "2M").status == 0
    assert run("volume", "set", "a", "--size", 2 << 20).status == 0
    found = run("volume", "set", "a", "--size", "1M")
    assert (found.status, "a volume never shrinks" in found.err) == (1, True)
    assert path.stat().st_size == 2 << 20
    assert "there is no such volume" in run("volume", "set", "nosuch", "--size", "1M").err


def test_attach_is_a_link(run: Run, mount: FakeMount) -> None:
    """The first free name, or the one that is asked for; the links are those that a shell would make."""
    path = mount.add_instance("web1", disks=("vda", "vdb"))
    for name in ("db1", "db2", "db3"):
        mount.add_volume(name)
    assert run("volume", "attach", "web1", "db1").out == "vdc\n"
    assert run("volume", "attach", "web1", "db2", "--device", "vdf").out == "vdf\n"
    assert run("volume", "attach", "web1", "db3").out == "vdd\n"
    assert run("volume", "attach", "web1", "/dev/null").out == "vde\n"
    links = {name: os.readlink(path / name) for name in ("vdc", "vdd", "vde", "vdf")}
    assert links == {"vdc": "../../volumes/db1", "vdd": "../../volumes/db3", "vde": "/dev/null", "vdf": "../../volumes/db2"}


def test_attachments_that_cannot_be(run: Run, mount: FakeMount) -> None:
    """No instance, no volume, no such device, a name that is taken, no name that is free."""
    path = mount.add_instance("web1")
    mount.add_volume("db1")
    assert "there is no such instance" in run("volume", "attach", "nosuch", "db1").err
    assert "there is no such volume" in run("volume", "attach", "web1", "nosuch").err
    assert "there is no such block device" in run("volume", "attach", "web1", "/dev/nosuch").err
    assert run("volume", "attach", "web1", "db1", "--device", "vdb").status == 2
    (path / "vdc").symlink_to("/dev/null")
    assert "vdc is taken" in run("volume", "attach", "web1", "db1", "--device", "vdc").err
    for letter in "defghijklmnopqrstuvwxyz":
        (path / f"vd{letter}").symlink_to("/dev/null")
    assert "vdc to vdz are all taken" in run("volume", "attach", "web1", "db1").err


def test_a_refused_attachment_tells_the_mounts_reason(run: Run, mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands on the instance."""
    set_attributes(mount.add_instance("web1"), {"imagefs.error": "volume 'db1' is attached to web2"})
    mount.add_volume("db1")

    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert run("volume", "attach", "web1", "db1").err == "imagefs: volume attach web1 db1: volume 'db1' is attached to web2\n"


@pytest.mark.parametrize("word", ["db1", "vdd"])
def test_detach_takes_a_volume_or_a_device(run: Run, mount: FakeMount, word: str) -> None:
    """The link goes, the volume stays."""
    path = mount.add_instance("web1")
    volume = mount.add_volume("db1")
    (path / "vdc").symlink_to("/dev/null")
    (path / "vdd").symlink_to("../../volumes/db1")
    assert run("volume", "detach", "web1", word).status == 0
    assert sorted(os.listdir(path)) == ["vda", "vdc"]
    assert volume.exists()
    assert run("volume", "detach", "web1", "/dev/null").status == 0
    assert os.listdir(path) == ["vda"]


def test_detach_removes_links_to_volumes_only(run: Run, mount: FakeMount) -> None:
    """Vda may be a link as well, to a direct disk; a device's name comes before a volume's."""
    path = mount.add_instance("web1", disks=("vdb",))
    (path / "vda").symlink_to("/state/direct/u/vda.qcow2")
    (path / "vdc").symlink_to("../../volumes/vdd")
    (path / "vdd").symlink_to("../../volumes/other")
    assert "no such volume is attached to it: vdc (vdd), vdd (other)" in run("volume", "detach", "web1", "vda").err
    assert run("volume", "detach", "web1", "vdd").status == 0
    assert sorted(os.listdir(path)) == ["vda", "vdb", "vdc"]
    assert run("volume", "detach", "web1", "vdd").status == 0
    assert "none is" in run("volume", "detach", "web1", "vdd").err
    assert "there is no such instance" in run("volume", "detach", "nosuch", "x").err


def test_delete_goes_on_after_a_failure(run: Run, mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is attached and one unknown are told; the others are removed."""
    for name in ("a", "busy", "c"):
        mount.add_volume(name)
    set_attributes(mount.path / "volumes" / "busy", {"imagefs.error": "it is attached to web1: detach it first"})
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "busy":
            raise OSError(errno.EBUSY, "Device or resource busy")
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    found = run("volume", "delete", "a", "busy", "nosuch", "c")
    assert found.status == 1
    assert found.err == (
        "imagefs: volume delete busy: it is attached to web1: detach it first\n"
        "imagefs: volume delete nosuch: there is no such volume: see imagefs volume list\n"
    )
    assert [path.name for path in (mount.path / "volumes").iterdir()] == ["busy"]

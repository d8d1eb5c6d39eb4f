"""instance create, list, show, delete and qemu, over a mount."""

import errno
import json
import os
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
    """Two in use, with the daemon's reason if it gives one, and one unknown are told; the others are removed."""
    for name in ("a", "busy", "c"):
        mount.add_instance(name, disks=())
    set_attributes(mount.add_instance("open", disks=()), {"imagefs.error": "db1 is open"})
    real = Path.rmdir

    def rmdir(path: Path) -> None:
        if path.name in ("busy", "open"):
            raise OSError(errno.EBUSY, "Device or resource busy")
        real(path)

    monkeypatch.setattr(Path, "rmdir", rmdir)
    found = run("instance", "delete", "a", "busy", "open", "nosuch", "c")
    assert found.status == 1
    assert found.err == (
        "imagefs: instance delete busy: it is in use: stop the guest first\n"
        "imagefs: instance delete open: db1 is open\n"
        "imagefs: instance delete nosuch: there is no such instance: see imagefs instance list\n"
    )
    assert {path.name for path in (mount.path / "instances").iterdir()} == {"busy", "open"}


def test_create_sets_what_is_chosen_before_the_image(run: Run, mount: FakeMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option is one attribute, and the image comes last."""
    names: list[str] = []
    real = os.setxattr

    def remember(path: Path, name: str, value: bytes) -> None:
        names.append(name)
        real(path, name, value)

    monkeypatch.setattr("os.setxattr", remember)
    (tmp_path / "user").write_bytes(b"#cloud-config\n\xff")
    (tmp_path / "meta").write_text('{"a": 1}')
    options = ["--ephemeral", 5, "--ephemeral", 7, "--ephemeral-format", "xfs", "--encrypted", "--disk-format", "raw", "--config-drive", "disk"]
    files = ["--user-data", tmp_path / "user", "--meta-data", tmp_path / "meta"]
    assert run("instance", "create", "web1", "--image", "debian", "--flavor", "m1.small", *options, *files).status == 0
    path = mount.path / "instances" / "web1"
    expected = {
        "flavor": b"m1.small", "ephemeral_format": b"xfs", "ephemeral": b"5,7", "encrypted": b"true", "disk_format": b"raw",
        "user_data": b"#cloud-config\n\xff", "meta_data": b'{"a": 1}', "config_drive": b"disk", "image": b"debian",
    }  # fmt: skip
    assert {name: os.getxattr(path, f"user.{name}") for name in expected} == expected
    assert names == [f"user.{name}" for name in expected]


def test_encryption_is_chosen_either_way_or_not_at_all(run: Run, mount: FakeMount) -> None:
    """Without a word the configuration decides."""
    for name, words, expected in (("a", ["--encrypted"], b"true"), ("b", ["--no-encrypted"], b"false"), ("c", [], None)):
        assert run("instance", "create", name, "--image", "x", *words).status == 0
        path = mount.path / "instances" / name
        assert (os.getxattr(path, "user.encrypted") if "user.encrypted" in os.listxattr(path) else None) == expected


def test_user_data_that_fits_no_attribute_makes_no_instance(run: Run, mount: FakeMount, tmp_path: Path) -> None:
    """The line says what to do; a file that is not there is a mistake in the command."""
    (tmp_path / "user").write_bytes(bytes(65537))
    found = run("instance", "create", "web1", "--image", "x", "--user-data", tmp_path / "user")
    assert found.status == 1
    assert "has more than 65536 bytes: compress it" in found.err
    assert run("instance", "create", "web1", "--image", "x", "--meta-data", tmp_path / "nosuch").status == 2
    assert list((mount.path / "instances").iterdir()) == []


def test_show_and_list_have_volumes_and_choices(run: Run, mount: FakeMount) -> None:
    """Volumes are disks with the names that users know; block devices have their paths."""
    mount.add_instance(
        "web1", None, disks=("vda", "vdb", "nvram.fd"), encrypted="true", disk_format="raw", firmware_code="/code", secure_boot="false"
    )
    mount.set_disk("web1", "vdc", kind="volume", format="raw", size=5, path="../../volumes/db1")
    mount.set_disk("web1", "vdd", kind="volume", format="raw", size=7, path="/dev/sdq")
    shown = json.loads(run("instance", "show", "web1", "-f", "json").out)
    assert shown["disks"] == {"nvram.fd": 1 << 20, "vda": 1 << 20, "vdb": 1 << 20, "vdc": 5, "vdd": 7}
    assert shown["volumes"] == {"vdc": "db1", "vdd": "/dev/sdq"}
    assert {name: shown[name] for name in ("encrypted", "disk_format", "firmware_code", "secure_boot")} == {
        "encrypted": "true", "disk_format": "raw", "firmware_code": "/code", "secure_boot": "false",
    }  # fmt: skip
    assert "snapshot" not in shown
    assert run("instance", "list", "-f", "value", "-c", "Disks").out == "nvram.fd vda vdb vdc=db1 vdd=/dev/sdq\n"


def test_show_has_the_last_snapshot(run: Run, mount: FakeMount) -> None:
    """How far it has come, and why it failed if it did."""
    path = mount.add_instance("web1")
    progress = {"id": "i", "status": "saving", "done": 1, "total": 2, "error": None}
    set_attributes(path, {"imagefs.snapshot": json.dumps(progress)})
    del progress["error"]
    assert json.loads(run("instance", "show", "web1", "-f", "json").out)["snapshot"] == progress


def test_what_a_mount_of_another_version_says_is_not_guessed_at(run: Run, mount: FakeMount) -> None:
    """Broken lists are errors of one line."""
    path = mount.add_instance("web1")
    set_attributes(path, {"imagefs.snapshot": "{}"})
    assert "user.imagefs.snapshot cannot be understood" in run("instance", "show", "web1").err
    set_attributes(path, {"imagefs.disks": "[1]"})
    assert "user.imagefs.disks is not a list of disks" in run("instance", "show", "web1").err


def test_flavors_are_listed_and_shown(run: Run, mount: FakeMount) -> None:
    """By size of memory; one alone is shown as its file has it."""
    listed = json.loads(run("flavor", "list", "-f", "json").out)
    assert [row["Name"] for row in listed] == ["m1.tiny", "m1.small", "m1.medium", "m1.large", "m1.xlarge"]
    assert listed[1] == {"ID": "2", "Name": "m1.small", "RAM": 2048, "Disk": 20, "Ephemeral": 0, "Swap": 0, "VCPUs": 1, "Is Public": True}
    assert run("flavor", "show", "m1.tiny", "-f", "value", "-c", "ram").out == "512\n"
    found = run("flavor", "show", "m1.huge")
    assert (found.status, found.err) == (1, "imagefs: there is no flavor 'm1.huge': see imagefs flavor list\n")


def test_a_private_flavor_shows_its_projects(run: Run, mount: FakeMount) -> None:
    """Those who may use it."""
    flavor = json.loads((mount.path / "flavors" / "m1.tiny").read_text()) | {"name": "gold", "is_public": False, "projects": ["p1", "p2"]}
    (mount.path / "flavors" / "gold").write_text(json.dumps(flavor))
    assert json.loads(run("flavor", "show", "gold", "-f", "json").out)["projects"] == ["p1", "p2"]
    assert run("flavor", "list", "-f", "value", "-c", "Name", "-c", "Is Public").out.startswith("gold false\n")


def test_status_sums_up(run: Run, mount: FakeMount) -> None:
    """The mount, its daemon, what is in it and how full the cache is."""
    mount.add_image("debian")
    shown = json.loads(run("status", "-f", "json").out)
    assert shown == {
        "mountpoint": str(mount.path), "version": "0.1.0", "pid": os.getpid(), "images": 1, "instances": 0, "cache": "1.0 MiB of 2.0 MiB",
    }  # fmt: skip

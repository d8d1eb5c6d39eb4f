"""image set and unset, over a mount: what they ask the mount for, in which order, and what they say when it refuses."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from imagefs.cli.image_change import Change
from imagefs.errors import InvalidInput
from tests.support.commands import Run
from tests.support.fake_mount import FakeMount, set_attributes

ID = "9f0a2f5c-6f2e-4c0b-9d43-8a1d6c7b9e21"
Refuse = Callable[..., None]


@pytest.fixture
def image(mount: FakeMount) -> Path:
    """An image `debian` with two tags and a property, and the file of its attributes."""
    mount.add_image("debian", ID, tags='["a", "b"]', hw_disk_bus="scsi", visibility="private")
    return mount.path / "images" / ID


def attributes(path: Path) -> dict[str, str]:
    """Return all attributes of a file."""
    return {name.removeprefix("user."): os.getxattr(path, name).decode() for name in os.listxattr(path) if name.startswith("user.")}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes | None]]:
    """What is written to and removed from the image, in order; the real file is changed too."""
    calls: list[tuple[str, bytes | None]] = []
    setting, removing = os.setxattr, os.removexattr

    def setxattr(path: Path, name: str, value: bytes) -> None:
        calls.append((name, value))
        setting(path, name, value)

    def removexattr(path: Path, name: str) -> None:
        calls.append((name, None))
        removing(path, name)

    monkeypatch.setattr(os, "setxattr", setxattr)
    monkeypatch.setattr(os, "removexattr", removexattr)
    return calls


@pytest.fixture
def refuse(image: Path, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Make the mount refuse to write or remove one attribute, with an errno and a reason in words."""
    setting, removing = os.setxattr, os.removexattr

    def arrange(refused: str, number: int, reason: str | None) -> None:
        def fail(name: str) -> None:
            if name == refused:
                if reason is not None:
                    setting(image, "user.imagefs.error", reason.encode())
                raise OSError(number, os.strerror(number))

        def setxattr(path: Path, name: str, value: bytes) -> None:
            fail(name)
            setting(path, name, value)

        def removexattr(path: Path, name: str) -> None:
            fail(name)
            removing(path, name)

        monkeypatch.setattr(os, "setxattr", setxattr)
        monkeypatch.setattr(os, "removexattr", removexattr)

    return arrange


def test_every_option_sets_its_attribute(run: Run, image: Path, written: list[tuple[str, bytes | None]]) -> None:
    """Each change is one attribute; what may take the image out of the caller's hands comes last, and a membership after visibility."""
    found = run(
        "image", "set", "debian", "--accept", "--project", "p1", "--shared", "--deactivate", "--tag", "c", "--instance-id", "i", "--ramdisk-id", "r",
        "--kernel-id", "k", "--os-version", "12", "--os-distro", "debian", "--architecture", "x86_64", "--property", "a=b=c", "--property", "e=",
        "--hidden", "--protected", "--min-ram", 64, "--min-disk", 2, "--name", "Debian 12 é",
    )  # fmt: skip
    assert (found.status, found.out, found.err) == (0, "", "")
    assert written == [
        ("user.name", "Debian 12 é".encode()), ("user.min_disk", b"2"), ("user.min_ram", b"64"), ("user.protected", b"true"),
        ("user.os_hidden", b"true"), ("user.a", b"b=c"), ("user.e", b""), ("user.architecture", b"x86_64"), ("user.os_distro", b"debian"),
        ("user.os_version", b"12"), ("user.kernel_id", b"k"), ("user.ramdisk_id", b"r"), ("user.instance_uuid", b"i"),
        ("user.tags", b'["a", "b", "c"]'), ("user.imagefs.deactivate", b"1"), ("user.visibility", b"shared"),
        ("user.imagefs.member.p1", b"accepted"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (["--unprotected"], "user.protected", b"false"),
        (["--unhidden"], "user.os_hidden", b"false"),
        (["--activate"], "user.imagefs.reactivate", b"1"),
        (["--public"], "user.visibility", b"public"),
        (["--visibility", "community", "--community"], "user.visibility", b"community"),
        (["--private"], "user.visibility", b"private"),
        (["--project", "p", "--reject"], "user.imagefs.member.p", b"rejected"),
        (["--project", "p", "--pending"], "user.imagefs.member.p", b"pending"),
        (["--property", "k=1", "--property", "k=2"], "user.k", b"2"),
        (["--property", "a/b c=x"], "user.a/b c", b"x"),
    ],
)
def test_other_options(run: Run, image: Path, written: list[tuple[str, bytes | None]], options: list[str], name: str, value: bytes) -> None:
    """The other side of each switch, each visibility and each decision about a share."""
    assert run("image", "set", ID, *options).status == 0
    assert written == [(name, value)]


def test_tags_are_added(run: Run, image: Path, written: list[tuple[str, bytes | None]]) -> None:
    """Tags that the image has stay, each tag is there once, and nothing is written if there is nothing to add."""
    assert run("image", "set", "debian", "--tag", "b", "--tag", "é", "--tag", "é").status == 0
    assert json.loads(attributes(image)["tags"]) == ["a", "b", "é"]
    assert len(written) == 1
    assert run("image", "set", "debian", "--tag", "a").status == 0
    assert len(written) == 1


def test_the_first_tag(run: Run, mount: FakeMount) -> None:
    """An image without tags gets one."""
    bare = mount.add_image("bare")
    assert run("image", "set", "bare", "--tag", "x").status == 0
    assert attributes(mount.path / "images" / bare)["tags"] == '["x"]'


def test_unset_removes_properties_and_tags(run: Run, image: Path) -> None:
    """Each property is removed, and the tags in one go."""
    set_attributes(image, {"k": "1", "a/b": "2"})
    found = run("image", "unset", "debian", "--property", "hw_disk_bus", "--property", "a/b", "--property", "a/b", "--tag", "a")
    assert (found.status, found.out, found.err) == (0, "", "")
    left = attributes(image)
    assert left["tags"] == '["b"]'
    assert set(left) == {"id", "name", "status", "visibility", "tags", "k"}


def test_unset_of_a_tag_that_is_not_there(run: Run, image: Path, written: list[tuple[str, bytes | None]]) -> None:
    """It is said before anything is changed."""
    found = run("image", "unset", "debian", "--property", "hw_disk_bus", "--tag", "a", "--tag", "z")
    assert (found.status, found.err) == (1, "imagefs: image unset debian: --tag: the image has no tag 'z': nothing was changed\n")
    assert written == []


def test_unset_of_a_property_that_is_not_there(run: Run, image: Path) -> None:
    """The system's words do if the mount has none; what was removed before is named."""
    found = run("image", "unset", "debian", "--property", "hw_disk_bus", "--property", "nosuch", "--property", "tags")
    assert found.status == 1
    assert found.err == f"imagefs: image unset debian: --property nosuch: {os.strerror(errno.ENODATA)}: changed before: --property hw_disk_bus\n"
    assert "tags" in attributes(image)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.EDQUOT, errno.EROFS, errno.ENOENT, errno.EIO])
def test_a_refusal_says_what_why_and_what_was_done(run: Run, image: Path, refuse: Refuse, number: int) -> None:
    """The line has the option, the image, the mount's reason, and the changes made before; none is tried after it."""
    refuse("user.hw_disk_bus", number, "the property protections keep it")
    found = run("image", "set", "debian", "--name", "x", "--min-ram", "1", "--property", "hw_disk_bus=ide", "--public")
    assert (found.status, found.out) == (1, "")
    assert found.err == ("imagefs: image set debian: --property hw_disk_bus: the property protections keep it: changed before: --name, --min-ram\n")
    assert attributes(image)["visibility"] == "private"
    found = run("image", "unset", ID, "--property", "hw_disk_bus")
    assert found.err == f"imagefs: image unset {ID}: --property hw_disk_bus: the property protections keep it: nothing was changed\n"


def test_a_refusal_without_words(run: Run, image: Path, refuse: Refuse) -> None:
    """The system's words take their place."""
    refuse("user.visibility", errno.EPERM, None)
    found = run("image", "set", "debian", "--public")
    assert found.err == "imagefs: image set debian: --visibility public: Operation not permitted: nothing was changed\n"


def test_a_dead_daemon_is_told(run: Run, image: Path, refuse: Refuse) -> None:
    """A daemon that goes away in the middle leaves a line with the way on, and with what was done."""
    refuse("user.min_ram", errno.ENOTCONN, None)
    found = run("image", "set", "debian", "--name", "x", "--min-ram", "1")
    assert found.status == 1
    assert "is gone: run imagefs umount" in found.err
    assert found.err.endswith(": changed before: --name\n")


@pytest.mark.parametrize(
    ("command", "status", "reason"),
    [
        (["set", "debian"], 2, "nothing to change"),
        (["unset", "debian"], 2, "nothing to remove"),
        (["set"], 2, "Missing argument"),
        (["set", "debian", "--public", "--private"], 2, "choose one visibility"),
        (["set", "debian", "--protected", "--unprotected"], 2, "choose one of --protected and --unprotected"),
        (["set", "debian", "--hidden", "--unhidden"], 2, "choose one of --hidden and --unhidden"),
        (["set", "debian", "--activate", "--deactivate"], 2, "choose one of --activate and --deactivate"),
        (["set", "debian", "--project", "p", "--accept", "--reject"], 2, "choose one of --accept and --reject"),
        (["set", "debian", "--accept"], 2, "--accept needs --project"),
        (["set", "debian", "--name", "x", "--project", "p"], 2, "--project needs --accept, --reject or --pending"),
        (["set", "debian", "--min-disk", "-1"], 2, "--min-disk"),
        (["set", "debian", "--min-ram", str(2**31)], 2, "--min-ram"),
        (["set", "debian", "--os-distro", "a", "--property", "os_distro=b"], 2, "set the same"),
        (["set", "debian", "--property", "x"], 1, "write KEY=VALUE"),
        (["set", "debian", "--property", "=x"], 1, "cannot be a property's name"),
        (["set", "debian", "--property", "status=x"], 1, "a meaning of its own"),
        (["set", "debian", "--property", "os_glance_x=x"], 1, "a meaning of its own"),
        (["set", "debian", "--property", "imagefs.deactivate=x"], 1, "a meaning of its own"),
        (["set", "debian", "--property", "a=\udcff"], 1, "not UTF-8"),
        (["set", "debian", "--property", "\udcff=a"], 1, "cannot be a property's name"),
        (["set", "debian", "--property", "a=\0"], 1, "not UTF-8"),
        (["set", "debian", "--property", "a\0=b"], 1, "cannot be a property's name"),
        (["set", "debian", "--os-version", "\udcff"], 1, "--os-version: the value is not UTF-8"),
        (["set", "debian", "--property", "k" * 256 + "=x"], 1, "255 characters"),
        (["set", "debian", "--property", "k" * 251 + "=x"], 1, "that cannot be changed through the mount: a name there has 1 to 250 bytes"),
        (["set", "debian", "--property", "é" * 126 + "=x"], 1, "this one has 252"),
        (
            ["set", "debian", "--property", "k=" + "v" * 65537],
            1,
            "--property k: that cannot be changed through the mount: a value there has at most 65536",
        ),
        (["set", "debian", "--name", ""], 1, "cannot be an image's name"),
        (["set", "debian", "--name", "n" * 256], 1, "cannot be an image's name"),
        (["set", "debian", "--name", "\udcff"], 1, "cannot be an image's name"),
        (["set", "debian", "--tag", ""], 1, "cannot be a tag"),
        (["set", "debian", "--tag", "t" * 256], 1, "cannot be a tag"),
        (["set", "debian", "--project", "", "--accept"], 1, "cannot be a project"),
        (["set", "debian", "--project", "p" * 236, "--accept"], 1, "cannot be changed through the mount"),
        (["unset", "debian", "--property", "k" * 251], 1, "cannot be changed through the mount"),
        (["unset", "debian", "--property", ""], 1, "cannot be a property's name"),
        (["unset", "debian", "--property", "\udcff"], 1, "cannot be a property's name"),
        (["unset", "debian", "--tag", "\udcff"], 1, "has no tag"),
        (["set", "nosuch", "--name", "x"], 1, "there is no image with the id or name 'nosuch'"),
        (["set", "../flavors/m1.tiny", "--name", "x"], 1, "there is no image"),
        (["unset", "..", "--tag", "x"], 1, "there is no image"),
    ],
)
def test_bad_input_changes_nothing(
    run: Run, image: Path, written: list[tuple[str, bytes | None]], command: list[str], status: int, reason: str
) -> None:
    """What cannot be right is one line, before the mount is asked for any of it."""
    before = attributes(image)
    found = run("image", *command)
    assert (found.status, found.out, found.err.count("\n")) == (status, "", 1)
    assert reason in found.err
    assert (written, attributes(image)) == ([], before)


def test_the_limits_themselves_fit() -> None:
    """A name of 250 bytes and a value of 64 KiB can be asked for."""
    Change("--property", "k" * 250, "v" * 65536).check("x")
    with pytest.raises(InvalidInput):
        Change("--property", "k" * 250, "é" * 32769).check("x")


def test_one_of_several_images_of_a_name_is_not_changed(run: Run, image: Path, mount: FakeMount, written: list[tuple[str, bytes | None]]) -> None:
    """What a name alone does not tell is refused, with the ids."""
    other = mount.add_image("debian")
    written.clear()
    found = run("image", "set", "debian", "--name", "x")
    assert (found.status, found.err) == (1, f"imagefs: 2 images are named 'debian': give an id: {', '.join(sorted([ID, other]))}\n")
    assert written == []


@pytest.mark.parametrize("tags", ["x", "{}", "[1]"])
def test_tags_that_are_none_are_not_overwritten(run: Run, mount: FakeMount, tags: str) -> None:
    """A mount that shows something else as tags is not understood, and keeps it."""
    path = mount.path / "images" / mount.add_image("odd")
    set_attributes(path, {"tags": tags})
    found = run("image", "set", "odd", "--tag", "a")
    assert (found.status, found.err.count("\n")) == (1, 1)
    assert attributes(path)["tags"] == tags

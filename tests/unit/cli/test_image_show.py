"""image show, and what names an image, over a mount."""

import errno
import json
from pathlib import Path

import pytest

from tests.support.commands import Run
from tests.support.fake_mount import FakeMount

ID = "9f0a2f5c-6f2e-4c0b-9d43-8a1d6c7b9e21"


def test_show_has_core_attributes_first_and_typed(run: Run, mount: FakeMount) -> None:
    """Attributes come in Glance's order and types, then properties by name; imagefs's own are left out."""
    mount.add_image("debian", ID, size="5", protected="false", tags='["a"]', min_ram="0", zz="1", hw_disk_bus="scsi", own={"cached": "0/5"})
    found = run("image", "show", "debian", "-f", "json").out
    assert list(json.loads(found).items()) == [
        ("id", ID), ("name", "debian"), ("status", "active"), ("size", 5), ("min_ram", 0), ("protected", False), ("tags", ["a"]),
        ("hw_disk_bus", "scsi"), ("zz", "1"),
    ]  # fmt: skip


def test_show_takes_ids_names_and_file_names(run: Run, mount: FakeMount) -> None:
    """An id in any case, a name with characters that no file name has, and a link of names/ all name an image."""
    mount.add_image("plain", ID)
    odd = mount.add_image("a/b")
    shown = ["-f", "value", "-c", "id"]
    assert run("image", "show", ID.upper(), *shown).out == f"{ID}\n"
    assert run("image", "show", "plain", *shown).out == f"{ID}\n"
    assert run("image", "show", "a/b", *shown).out == f"{odd}\n"


def test_a_name_of_several_images_is_refused(run: Run, mount: FakeMount) -> None:
    """The line has the ids to choose from; names/ tells them apart, and so do its names here."""
    ids = sorted([mount.add_image("debian"), mount.add_image("debian")])
    found = run("image", "show", "debian")
    assert (found.status, found.err) == (1, f"imagefs: 2 images are named 'debian': give an id: {', '.join(ids)}\n")
    assert run("image", "show", f"debian@{ids[0][:8]}", "-f", "value", "-c", "id").out == f"{ids[0]}\n"


def test_an_unknown_image_is_an_error(run: Run, mount: FakeMount) -> None:
    """Neither a name nor an id nor a way out of images/ shows anything."""
    for name in ("nosuch", ID, "../flavors/m1.tiny", "..", ""):
        found = run("image", "show", name)
        assert (found.status, found.out) == (1, "")
        assert f"there is no image with the id or name '{name}'" in found.err


def test_show_has_properties_that_are_no_attributes(run: Run, mount: FakeMount) -> None:
    """What is too long for an extended attribute comes from the mount's list, in its place among the others; the store is not asked."""
    mount.add_image("other", omitted={"x" * 251: "not this one"})
    mount.add_image("debian", ID, size="5", b="2", omitted={"a" * 251: "1", "long": "v" * 65537}, member_status="accepted")
    shown = json.loads(run("image", "show", "debian", "-f", "json").out)
    assert list(shown) == ["id", "name", "status", "size", "a" * 251, "b", "long"]
    assert (shown["size"], shown["a" * 251], len(shown["long"])) == (5, "1", 65537)


def test_show_says_when_properties_are_missing(run: Run, mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not list images is shown the rest, and told how many properties are not there."""
    mount.add_image("debian", ID, omitted={"a": "1", "b": "2"})

    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "images":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    found = run("image", "show", ID, "-f", "value", "-c", "name")
    assert (found.status, found.out) == (0, "debian\n")
    assert "2 properties are too long for extended attributes" in found.err
    assert "you may not list images to find one of that name" in run("image", "show", "debian").err


def test_lists_come_before_what_is_in_none(run: Run, mount: FakeMount) -> None:
    """Another project's community image of the same name makes no name ambiguous; if there is no other, it is the one that is meant."""
    foreign = mount.add_image("debian", listed=False, visibility="community")
    shown = ["-f", "value", "-c", "id"]
    assert run("image", "show", "debian", *shown).out == f"{foreign}\n"
    own = mount.add_image("debian")
    assert run("image", "show", "debian", *shown).out == f"{own}\n"
    assert run("image", "show", foreign, *shown).out == f"{foreign}\n"


def test_an_image_may_be_named_like_an_id(run: Run, mount: FakeMount) -> None:
    """An id comes first; a name that looks like the id of no image is a name."""
    named = mount.add_image(ID)
    assert run("image", "show", ID, "-f", "value", "-c", "id").out == f"{named}\n"
    mount.add_image("other", ID)
    assert run("image", "show", ID, "-f", "value", "-c", "name").out == "other\n"


@pytest.mark.parametrize("body", [b"[1]\n", b"{", b'{"id": "\xff"}\n'])
def test_a_list_that_is_none_is_one_line(run: Run, mount: FakeMount, body: bytes) -> None:
    """A daemon of another version may write what this one cannot read."""
    (mount.path / ".imagefs" / "images").write_bytes(body)
    found = run("image", "show", "debian")
    assert (found.status, found.err.count("\n")) == (1, 1)
    assert "not a list of images" in found.err


@pytest.mark.parametrize("name", ["a/b", "\udcff\udcfe", "n" * 300, "a\0b", "nosuch\x1b[31m"])
def test_odd_names_of_no_image(run: Run, mount: FakeMount, name: str) -> None:
    """Binary, too long for a file's name, or another path: there is no such image, and that is all."""
    mount.add_image("debian")
    found = run("image", "show", name)
    assert (found.status, found.err.count("\n")) == (1, 1)
    assert "there is no image" in found.err


def test_an_unknown_field_is_an_error(run: Run, mount: FakeMount) -> None:
    """A field that the image has not is told with those that it has."""
    mount.add_image("debian", ID)
    found = run("image", "show", "debian", "-c", "colour")
    assert (found.status, found.err) == (1, "imagefs: image debian has no 'colour': it has id, name, status\n")

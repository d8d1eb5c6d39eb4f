"""image list and image show, over a mount."""

import json

from tests.support.commands import Run
from tests.support.fake_mount import FakeMount

ID = "9f0a2f5c-6f2e-4c0b-9d43-8a1d6c7b9e21"


def test_list_is_sorted_by_name(run: Run, mount: FakeMount) -> None:
    """Each image has its id, name, status, and the server that it was taken of."""
    first, second = mount.add_image("web1-before", instance_uuid="web1"), mount.add_image("debian-12")
    nameless = mount.add_image(None, status="queued")
    listed = json.loads(run("image", "list", "-f", "json").out)
    assert listed == [
        {"ID": nameless, "Name": None, "Status": "queued", "Server": None},
        {"ID": second, "Name": "debian-12", "Status": "active", "Server": None},
        {"ID": first, "Name": "web1-before", "Status": "active", "Server": "web1"},
    ]


def test_show_has_core_attributes_first_and_typed(run: Run, mount: FakeMount) -> None:
    """Attributes come in Glance's order and types, then properties by name; imagefs's own are left out."""
    mount.add_image("debian", ID, size="5", protected="false", tags='["a"]', min_ram="0", zz="1", hw_disk_bus="scsi", **{"imagefs.cached": "0/5"})
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


def test_show_says_when_properties_are_missing(run: Run, mount: FakeMount) -> None:
    """Properties that cannot be attributes come from the store; if that has no such image, a line says what is missing."""
    mount.add_image("debian", ID, **{"imagefs.omitted": "2"})
    found = run("image", "show", "debian", "-f", "value", "-c", "name")
    assert (found.status, found.out) == (0, "debian\n")
    assert "2 properties cannot be shown as extended attributes" in found.err


def test_an_unknown_field_is_an_error(run: Run, mount: FakeMount) -> None:
    """A field that the image has not is told with those that it has."""
    mount.add_image("debian", ID)
    found = run("image", "show", "debian", "-c", "colour")
    assert (found.status, found.err) == (1, "imagefs: image debian has no 'colour': it has id, name, status\n")

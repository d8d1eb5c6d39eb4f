"""image create, save and delete, on a real store in a directory."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from imagefs.cli import image_create, image_save
from imagefs.cli.image_properties import parse_properties
from imagefs.errors import InvalidInput
from imagefs.units import MIB, UNIT
from tests.support.commands import Run
from tests.support.fake_mount import FakeMount

ID = "9f0a2f5c-6f2e-4c0b-9d43-8a1d6c7b9e21"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw image of 1 MiB and a few bytes, with a hole in it."""
    path = tmp_path / "disk.raw"
    path.write_bytes(b"guest" * 100 + bytes(MIB) + b"end")
    return path


def test_create_prints_the_image(run: Run, raw: Path) -> None:
    """All that was asked for is in the record, and all that the bytes tell."""
    options = "--id {} --property hw_disk_bus=scsi --property a=b=c --tag x --tag y --tag x --min-disk 1 --min-ram 64"
    options += " --public --protected --owner p --os-hidden"
    found = run("image", "create", "debian", "--file", raw, *options.format(ID).split(), "-f", "json")
    assert (found.status, found.err) == (0, "")
    image = json.loads(found.out)
    assert {key: image[key] for key in ("id", "name", "status", "visibility", "owner", "disk_format", "container_format")} == {
        "id": ID, "name": "debian", "status": "active", "visibility": "public", "owner": "p", "disk_format": "raw", "container_format": "bare",
    }  # fmt: skip
    assert (image["size"], image["virtual_size"]) == (raw.stat().st_size, raw.stat().st_size)
    assert (image["min_disk"], image["min_ram"], image["protected"], image["os_hidden"], image["tags"]) == (1, 64, True, True, ["x", "y"])
    assert (image["hw_disk_bus"], image["a"]) == ("scsi", "b=c")
    assert len(image["os_hash_value"]) == 128


def test_visibility_is_shared_unless_said(run: Run, raw: Path) -> None:
    """As in Glance; and an image cannot be two things."""
    assert run("image", "create", "x", "--file", raw, "-f", "value", "-c", "visibility").out == "shared\n"
    assert run("image", "create", "x", "--file", raw, "--visibility", "community", "-f", "value", "-c", "visibility").out == "community\n"
    found = run("image", "create", "x", "--file", raw, "--public", "--visibility", "private")
    assert (found.status, found.err) == (2, "imagefs: image create: choose one visibility, not private and public: see imagefs image create --help\n")


def test_what_was_stored_is_what_is_saved(run: Run, raw: Path, tmp_path: Path) -> None:
    """The saved file has the same bytes, and holes where there are zeros."""
    assert run("image", "create", "debian", "--file", raw).status == 0
    target = tmp_path / "saved"
    target.write_text("an older file")
    found = run("image", "save", "debian", "--file", target)
    assert (found.status, found.out, found.err) == (0, "", "")
    assert target.read_bytes() == raw.read_bytes()
    assert target.stat().st_blocks * 512 < MIB
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_damaged_bytes_are_not_saved(run: Run, raw: Path, tmp_path: Path) -> None:
    """A byte that changed in the store is found; no file appears, and none of a part of it."""
    assert run("image", "create", "debian", "--file", raw, "--id", ID).status == 0
    stored = tmp_path / "store" / ID / "data"
    stored.chmod(0o600)
    with stored.open("r+b") as file:
        file.seek(3 * UNIT)
        file.write(b"x")
    found = run("image", "save", ID, "--file", tmp_path / "saved")
    assert (found.status, found.err.count("\n")) == (1, 1)
    assert ID in found.err
    assert not [path for path in tmp_path.iterdir() if "saved" in path.name]


@pytest.mark.parametrize(("target", "reason"), [("nosuch/x", "there is no directory"), (".", "is a directory"), ("/dev/null", "not a regular file")])
def test_a_bad_target_is_refused_before_anything_moves(run: Run, target: str, reason: str, tmp_path: Path) -> None:
    """Where no file can be written, or something else would be replaced, nothing is fetched."""
    found = run("image", "save", "x", "--file", tmp_path / target)
    assert found.status == 1
    assert reason in found.err


def test_delete_removes_by_id_and_by_name(run: Run, raw: Path, mount: FakeMount) -> None:
    """Several are deleted at once; those that cannot be are told, and do not keep the rest."""
    for name in ("a", "b", "c"):
        run("image", "create", name, "--file", raw, *(["--protected"] if name == "b" else []), *(["--id", ID] if name == "c" else []))
    found = run("image", "delete", "a", "b", "nosuch", ID)
    assert found.status == 1
    assert found.err == (
        "imagefs: image delete b: the image is protected: unset protected first\n"
        "imagefs: there is no image with the id or name 'nosuch': see imagefs image list\n"
    )
    assert run("image", "delete", "a", ID).err.count("there is no image") == 2


def test_names_of_several_images_are_refused(run: Run, raw: Path, tmp_path: Path) -> None:
    """What a name alone does not tell is not deleted or saved."""
    for _ in range(2):
        run("image", "create", "twin", "--file", raw)
    for command in (["delete", "twin"], ["save", "twin", "--file", tmp_path / "x"]):
        found = run("image", *command)
        assert found.status == 1
        assert "2 images are named 'twin': give an id" in found.err


def test_mounts_are_told_of_new_images(run: Run, raw: Path, mount: FakeMount) -> None:
    """After create and delete each mount is asked to look at the store."""
    for command in (["create", "x", "--file", raw], ["delete", "x"]):
        run("image", *command)
        os.removexattr(mount.path, "user.imagefs.refresh")


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        ("a", "KEY=VALUE"),
        ("=v", "cannot be a property's name"),
        ("status=x", "meaning of its own"),
        ("os_glance_x=1", "meaning of its own"),
        ("imagefs.x=1", "meaning of its own"),
        ("self=1", "meaning of its own"),
        ("k" * 256 + "=1", "255 characters"),
        ("a=\udcff", "not UTF-8"),
    ],
)
def test_bad_properties_are_refused(assignment: str, reason: str) -> None:
    """Names with a meaning of their own, names too long, and what is not text."""
    with pytest.raises(InvalidInput, match=reason):
        parse_properties([assignment])


def test_there_are_at_most_128_properties_and_tags(run: Run, raw: Path) -> None:
    """Glance's quotas hold here too."""
    found = run("image", "create", "x", "--file", raw, *(part for number in range(129) for part in ("--property", f"k{number}=v")))
    assert (found.status, found.err.count("\n")) == (1, 1)
    assert found.err.startswith("imagefs: image create x: an image has at most 128 properties")
    found = run("image", "create", "x", "--file", raw, *(part for number in range(129) for part in ("--tag", str(number))))
    assert (found.status, found.err) == (1, "imagefs: image create x: 129 tags are more than 128\n")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--id", "x"], "not an image id"),
        (["--disk-format", "qcow2"], "its content is raw"),
        (["--owner", ""], "a project"),
        (["--tag", ""], "a tag"),
    ],
)
def test_bad_options_leave_nothing_behind(run: Run, raw: Path, tmp_path: Path, options: list[str], reason: str) -> None:
    """A refusal is one line with status 1, and the store is as it was."""
    found = run("image", "create", "x", "--file", raw, *options)
    assert (found.status, found.err.count("\n")) == (1, 1)
    assert reason in found.err
    assert list((tmp_path / "store").iterdir()) == []


def test_the_same_id_is_not_stored_twice(run: Run, raw: Path) -> None:
    """An id that is taken is refused."""
    run("image", "create", "x", "--file", raw, "--id", ID)
    assert "already in" in run("image", "create", "y", "--file", raw, "--id", ID).err


def test_a_wrong_column_stores_nothing(run: Run, raw: Path, tmp_path: Path) -> None:
    """It is found before the image is stored: a script that repeats a failed command must not store it twice."""
    found = run("image", "create", "x", "--file", raw, "-c", "colour")
    assert found.status == 2
    assert "there is no column 'colour'" in found.err
    assert list((tmp_path / "store").iterdir()) == []


def test_an_attribute_without_a_value_can_be_asked_for(run: Run, raw: Path) -> None:
    """An image without an owner is stored and printed, with no value for it."""
    found = run("image", "create", "x", "--file", raw, "--property", "p=1", "-f", "value", "-c", "owner", "-c", "p")
    assert (found.status, found.out) == (0, "None\n1\n")


def test_a_file_that_cannot_be_opened_or_written_is_named(run: Run, raw: Path, tmp_path: Path) -> None:
    """The line says what was being done, and names the user's file and no temporary one."""
    found = run("image", "create", "x", "--file", raw / "below")
    assert (found.status, found.err) == (1, f"imagefs: image create: {raw / 'below'} cannot be opened: Not a directory\n")
    run("image", "create", "x", "--file", raw)
    target = tmp_path / ("n" * 256)
    found = run("image", "save", "x", "--file", target)
    assert found.status == 1
    assert found.err.startswith(f"imagefs: image save: {target} cannot be written: File name too long")


def test_a_full_disk_is_told_with_the_file(run: Run, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for the copy is one line with the file's name, and leaves nothing of it."""
    run("image", "create", "x", "--file", raw)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_save, "_write", full)
    found = run("image", "save", "x", "--file", tmp_path / "copy")
    assert found.status == 1
    assert found.err.startswith(f"imagefs: image save: {tmp_path}/copy cannot be written: No space left on device")
    assert not list(tmp_path.glob("*copy*"))


def test_files_that_cannot_be_images_are_refused(run: Run, tmp_path: Path) -> None:
    """Nothing, a directory, an empty file, a fifo: one line each, and nobody waits for the fifo."""
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("nosuch", "there is no file"), (".", "not a regular file"), ("empty", "is empty"), ("fifo", "not a regular file")):
        found = run("image", "create", "x", "--file", tmp_path / name)
        assert (found.status, found.err.count("\n")) == (1, 1)
        assert reason in found.err


def test_a_missing_store_is_one_line(run: Run, raw: Path, tmp_path: Path) -> None:
    """A store that is not there is told with how to make it."""
    (tmp_path / "store").rmdir()
    found = run("image", "create", "x", "--file", raw)
    assert (found.status, found.err.count("\n")) == (1, 1)
    assert str(tmp_path / "store") in found.err


def test_an_image_that_changes_while_it_is_read_is_not_kept(run: Run, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer in the middle of the copy makes the whole image untrustworthy."""
    stamps = iter([(1, 1), (1, 2)])
    monkeypatch.setattr(image_create, "_stamp", lambda _: next(stamps))
    found = run("image", "create", "x", "--file", raw)
    assert found.status == 1
    assert "changed while it was read" in found.err
    assert list((tmp_path / "store").iterdir()) == []


def test_formats_that_raw_will_not_show_are_stored_with_a_note(run: Run, tmp_path: Path) -> None:
    """A VHD is stored as it is; the note says what to do to read it as a disk."""
    path = tmp_path / "x.vhd"
    path.write_bytes(b"conectix" + bytes(504) + bytes(4096))
    found = run("image", "create", "x", "--file", path, "-f", "value", "-c", "disk_format")
    assert (found.status, found.out) == (0, "vhd\n")
    assert found.err.startswith("imagefs: note: the new image cannot be read in raw/")


@pytest.mark.qemu
def test_qcow2_is_recognised_and_checked(run: Run, tmp_path: Path) -> None:
    """Its format and virtual size come from its header; an unsound one and one that names another file are refused."""
    sound, corrupt, backed = (tmp_path / f"{name}.qcow2" for name in ("sound", "corrupt", "backed"))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", sound, "64M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 1M", sound], check=True, capture_output=True)
    corrupt.write_bytes(sound.read_bytes())
    with corrupt.open("r+b") as file:
        file.seek(4 * 65536 + 6)
        file.write(b"\xff\xff")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", backed], check=True)
    found = run("image", "create", "x", "--file", sound, "-f", "json")
    assert found.status == 0
    assert (json.loads(found.out)["disk_format"], json.loads(found.out)["virtual_size"]) == ("qcow2", 64 * MIB)
    for path, reason in ((corrupt, "finds it unsound"), (backed, "backing")):
        found = run("image", "create", "y", "--file", path)
        assert (found.status, found.err.count("\n")) == (1, 1)
        assert reason in found.err
    found = run("image", "create", "y", "--file", sound, "--disk-format", "raw")
    assert (found.status, found.err.count("\n")) == (1, 1)
    assert len(list((tmp_path / "store").iterdir())) == 1

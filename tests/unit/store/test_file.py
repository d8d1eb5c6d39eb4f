"""What only a directory store has: paths, links, holes, modes, locks."""

import io
import os
import stat
from pathlib import Path

import pytest

from imagefs.errors import InvalidInput, NotFound, StoreRefused
from imagefs.store.file import Directory
from imagefs.units import MIB, TIB


def upload(bucket: Directory, key: str, body: bytes) -> None:
    bucket.upload(key, io.BytesIO(body), len(body), lambda _: None)


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../outside", "a/../../outside", "a//b", "a/", "./a", "a\0b"])
def test_a_key_cannot_leave_the_directory(file_bucket: Directory, key: str) -> None:
    """Keys that are not plain relative paths are InvalidInput for every operation."""
    with pytest.raises(InvalidInput, match="not a key"):
        file_bucket.get(key)
    with pytest.raises(InvalidInput):
        file_bucket.put(key, b"x", None)
    with pytest.raises(InvalidInput):
        upload(file_bucket, key, b"x")
    with pytest.raises(InvalidInput):
        file_bucket.delete(key)


def test_symlinks_are_not_followed(file_bucket: Directory, tmp_path: Path) -> None:
    """A link to a file or a directory is neither listed nor read nor written through."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    (file_bucket.root / "file").symlink_to(tmp_path / "outside" / "secret")
    (file_bucket.root / "directory").symlink_to(tmp_path / "outside")
    assert list(file_bucket.list()) == []
    with pytest.raises(StoreRefused, match="symlink"):
        file_bucket.get("file")
    with pytest.raises(NotFound):
        file_bucket.open("directory/secret")
    with pytest.raises(NotFound):
        upload(file_bucket, "directory/new", b"x")
    assert os.listdir(tmp_path / "outside") == ["secret"]


def test_the_directory_itself_may_be_a_symlink(tmp_path: Path) -> None:
    """The operator may point the store elsewhere."""
    (tmp_path / "real").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "real")
    bucket = Directory(tmp_path / "store")
    bucket.check()
    version = bucket.put("a", b"x", None)
    assert bucket.get("a") == (b"x", version)


def test_what_is_no_regular_file_is_not_an_object(file_bucket: Directory) -> None:
    """A named pipe does not hang the store, and a directory is not a file."""
    os.mkfifo(file_bucket.root / "pipe")
    (file_bucket.root / "directory").mkdir()
    for key in ("pipe", "directory"):
        with pytest.raises(NotFound, match="not a regular file"):
            file_bucket.open(key)
    assert list(file_bucket.list()) == []


def test_zeros_become_holes(file_bucket: Directory) -> None:
    """An uploaded file takes no room for runs of zeros, and reads the same."""
    body = b"head" + bytes(20 * MIB) + b"middle" + bytes(3 * MIB)
    upload(file_bucket, "image/data", body)
    path = file_bucket.root / "image/data"
    assert path.read_bytes() == body
    assert path.stat().st_blocks * 512 < MIB


def test_an_object_can_be_read_in_place(file_bucket: Directory) -> None:
    """A DataObject of a directory names the file that holds its bytes."""
    upload(file_bucket, "image/data", b"bytes")
    path = file_bucket.open("image/data").path
    assert path is not None
    assert path.read_bytes() == b"bytes"


def test_other_users_may_read_what_the_umask_allows(file_bucket: Directory) -> None:
    """Files are 0644 and directories 0755, less the umask."""
    old = os.umask(0o022)
    try:
        upload(file_bucket, "image/data", b"bytes")
        file_bucket.put("image/record", b"x", None)
        os.umask(0o027)
        upload(file_bucket, "other/data", b"bytes")
    finally:
        os.umask(old)
    modes = {path: stat.S_IMODE((file_bucket.root / path).stat().st_mode) for path in ("image", "image/data", "image/record", "other", "other/data")}
    assert modes == {"image": 0o755, "image/data": 0o644, "image/record": 0o644, "other": 0o750, "other/data": 0o640}


def test_hidden_files_are_no_objects_and_unfinished_ones_go_with_their_object(file_bucket: Directory) -> None:
    """A killed upload's file is not listed, and deleting the object removes it with the directory."""
    upload(file_bucket, "image/data", b"bytes")
    (file_bucket.root / "image" / ".data.0123456789ab").write_bytes(b"half")
    (file_bucket.root / ".hidden").write_bytes(b"x")
    assert [entry.key for entry in file_bucket.list()] == ["image/data"]
    file_bucket.delete("image/data")
    assert [path.name for path in file_bucket.root.iterdir()] == [".hidden"]


def test_versions_keep_rising_when_the_clock_stands_still(file_bucket: Directory) -> None:
    """A record written again and again never gets an old version back, though the filesystem uses inodes again."""
    seen = [file_bucket.put("image/record", b"x", None)]
    for _ in range(50):
        seen.append(file_bucket.put("image/record", b"x", seen[-1]))
    assert len(set(seen)) == len(seen)
    times = [int(version.split("-")[1]) for version in seen]
    assert times == sorted(times)


def test_a_missing_directory_is_made_only_if_told(tmp_path: Path) -> None:
    """The built-in default store is created; any other is NotFound with what to do."""
    with pytest.raises(NotFound, match=r"does not exist: create it \(mkdir -p .*store\) or mend"):
        Directory(tmp_path / "deep" / "store").check()
    Directory(tmp_path / "deep" / "store", create=True).check()
    Directory(tmp_path / "deep" / "store").check()


@pytest.mark.parametrize("create", [False, True])
def test_a_store_that_is_no_directory_is_refused(tmp_path: Path, create: bool) -> None:
    """A file in the place of the directory is StoreRefused."""
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(StoreRefused, match="is not a directory"):
        Directory(tmp_path / "store", create=create).check()


def test_a_url_is_quoted(tmp_path: Path) -> None:
    """The URL in messages is one that the configuration would take."""
    assert Directory(Path("/srv/my images")).url == "file:///srv/my%20images"


def test_a_large_listing_reads_no_object(file_bucket: Directory) -> None:
    """Hundreds of images of a terabyte each are listed by names and status alone."""
    for number in range(500):
        directory = file_bucket.root / f"{number:08d}"
        directory.mkdir()
        with (directory / "data").open("wb") as file:
            file.truncate(TIB + number)
    sizes = {entry.key: entry.size for entry in file_bucket.list()}
    assert sizes == {f"{number:08d}/data": TIB + number for number in range(500)}

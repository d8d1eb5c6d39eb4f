"""Headers of direct disks: only that which imagefs has written refers to anything."""

import struct
from pathlib import Path

import pytest

from imagefs.errors import ImageRefused
from imagefs.image.qcow2.header import HEADER_BYTES
from imagefs.instances.direct_header import check_direct_header
from imagefs.units import GIB, MIB
from tests.support.qcow2 import qemu_img

BACKING = "/srv/imagefs/raw/0d6e5b1a-5f0c-4d3e-9a58-6f6a1c1f0f10"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A file as `direct.create` makes it."""
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", BACKING, path, str(GIB))
    return path


def check(path: Path, backing: str = BACKING) -> int:
    with path.open("rb") as file:
        return check_direct_header(file.read(HEADER_BYTES), path.stat().st_size, backing, "the disk").size


def test_what_imagefs_makes_is_taken(disk: Path) -> None:
    """A header over the image that was expected is sound."""
    assert check(disk) == GIB


@pytest.mark.parametrize("length", [1, 500, 1023])
def test_names_of_any_length_are_read_whole(tmp_path: Path, length: int) -> None:
    """The longest name that qcow2 takes is still within what is read."""
    backing = "/" + "x" * (length - 1)
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, tmp_path / "disk", "1G")
    assert check(tmp_path / "disk", backing) == GIB
    with pytest.raises(ImageRefused, match="backing file is not"):
        check(tmp_path / "disk", backing + "x")


@pytest.mark.parametrize(
    "options",
    [
        ("-F", "raw", "-b", "/etc/passwd"),
        ("-F", "raw", "-b", BACKING + "0"),
        ("-F", "raw", "-b", BACKING[:-1]),
        ("-F", "raw", "-b", f"file:{BACKING}"),
        ("-F", "raw", "-b", 'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}'),
        ("-F", "raw", "-b", "nbd://127.0.0.1:1/x"),
        ("-F", "qcow2", "-b", BACKING),
        (),
    ],
)
def test_other_backing_files_are_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Another name, another format, none at all: whatever is not what imagefs wrote."""
    qemu_img("create", "-q", "-u", "-f", "qcow2", *options, tmp_path / "disk", "1G")
    with pytest.raises(ImageRefused, match=r"image the disk: .*back"):
        check(tmp_path / "disk")


def patched(disk: Path, offset: int, content: bytes) -> Path:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(content)
    return disk


@pytest.mark.parametrize(
    ("offset", "content", "reason"),
    [
        (0, b"RAW!", "begins with"),
        (4, struct.pack(">I", 2), "version 2"),
        (4, struct.pack(">I", 9), "version 9"),
        (8, struct.pack(">Q", 2**63), "backing file is not"),
        (8, struct.pack(">Q", HEADER_BYTES - 10), "backing file is not"),
        (8, struct.pack(">Q", 0), "backing file is not"),
        (8, struct.pack(">Q", 8), "backing file is not"),
        (16, struct.pack(">I", 0), "backing file is not"),
        (16, struct.pack(">I", 2**32 - 1), "backing file is not"),
        (20, struct.pack(">I", 63), "cluster_bits 63"),
        (24, struct.pack(">Q", 2**63 - 1), "virtual size"),
        (32, struct.pack(">I", 1), "encrypted"),
        (72, struct.pack(">Q", 4), "external data file"),
        (72, struct.pack(">Q", 2), "marked corrupt"),
        (100, struct.pack(">I", 8), "header_length"),
    ],
)
def test_fields_are_bounded(disk: Path, offset: int, content: bytes, reason: str) -> None:
    """Each field that could lead elsewhere is refused with its name."""
    with pytest.raises(ImageRefused, match=reason):
        check(patched(disk, offset, content))


def with_extensions(disk: Path, *extensions: bytes) -> Path:
    """Write extensions where the header's fields end, and the name after them."""
    body = b"".join(extensions)
    at = 112 + len(body)
    patched(disk, 112, body + BACKING.encode())
    return patched(disk, 8, struct.pack(">QI", at, len(BACKING)))


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)


RAW = extension(0xE2792ACA, b"raw")
END = extension(0, b"")


def test_extensions_of_no_matter_are_passed_over(disk: Path) -> None:
    """Those that name features, and unknown ones, refer to nothing."""
    assert check(with_extensions(disk, extension(0x6803F857, b"x" * 48), RAW, extension(0x12345678, b"abc"), END)) == GIB


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ((RAW, extension(0x44415441, b"/etc/passwd"), END), "data file or a key"),
        ((RAW, extension(0x0537BE77, bytes(16)), END), "data file or a key"),
        ((RAW, RAW, END), "format of its backing file"),
        ((extension(0xE2792ACA, b"qcow2"), END), "format of its backing file"),
        ((extension(0xE2792ACA, b"raw\0"), END), "format of its backing file"),
        ((END, RAW), "format of its backing file"),
        ((struct.pack(">II", 0x12345678, 2**32 - 1),), "does not end"),
        ((RAW, struct.pack(">II", 0x12345678, 16) + b"short"), "does not end"),
    ],
)
def test_extensions_that_refer_elsewhere_are_refused(disk: Path, extensions: tuple[bytes, ...], reason: str) -> None:
    """A data file, a key, a second or another format of the backing file, and those that run over."""
    with pytest.raises(ImageRefused, match=reason):
        check(with_extensions(disk, *extensions))


@pytest.mark.parametrize("length", [0, 3, 72, 103, 104, 111, 200])
def test_a_header_that_is_cut_is_refused(disk: Path, length: int) -> None:
    """Wherever the file ends."""
    with disk.open("r+b") as file:
        file.truncate(length)
    with pytest.raises(ImageRefused):
        check(disk)


def test_a_long_image_needs_no_more_than_its_head(disk: Path) -> None:
    """Only the first bytes are looked at, however long the file is."""
    assert check_direct_header(disk.read_bytes()[:HEADER_BYTES], 100 * MIB, BACKING, "the disk").size == GIB

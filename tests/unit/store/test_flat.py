"""How the flat layout tells formats, sizes and ids."""

import struct
import uuid

import pytest

from imagefs.store.flat import FLAT_NAMESPACE, HEAD, detect_format, image_id_of, is_image, virtual_size_of
from imagefs.store.protocol import Entry


def at(offset: int, magic: bytes) -> bytes:
    return (bytes(offset) + magic).ljust(HEAD, b"\0")


@pytest.mark.parametrize(
    ("head", "key", "expected"),
    [
        (at(0, b"QFI\xfb"), "disk.raw", "qcow2"),
        (at(0, b"KDMV"), "disk", "vmdk"),
        (at(0, b"# Disk DescriptorFile\nversion=1"), "disk", "vmdk"),
        (at(0x40, struct.pack("<I", 0xBEDA107F)), "disk", "vdi"),
        (at(0, b"vhdxfile"), "disk", "vhdx"),
        (at(0, b"conectix"), "disk", "vhd"),
        (at(0x8001, b"CD001"), "disk", "iso"),
        (bytes(HEAD), "dir/disk.VHD", "vhd"),
        (bytes(HEAD), "disk.img", "raw"),
        (bytes(HEAD), "qcow2", "qcow2"),
        (b"", "disk", "raw"),
        (b"QF", "disk", "raw"),
    ],
)
def test_magic_comes_before_extension_before_raw(head: bytes, key: str, expected: str) -> None:
    """The first bytes decide, then the extension, else the image is raw."""
    assert detect_format(head, key) == expected


def test_virtual_sizes_come_from_the_header_or_the_size() -> None:
    """A qcow2's virtual size is read from its header; absurd and cut ones are left open."""
    header = b"QFI\xfb" + bytes(20) + struct.pack(">Q", 123456)
    assert virtual_size_of("qcow2", header, 10) == 123456
    assert virtual_size_of("qcow2", header[:-1], 10) is None
    assert virtual_size_of("qcow2", header[:24] + b"\xff" * 8, 10) is None
    assert virtual_size_of("raw", b"", 10) == 10
    assert virtual_size_of("vmdk", b"KDMV", 10) is None


def test_ids_are_uuid5_of_the_key() -> None:
    """An id is the same everywhere, and keys that are not UTF-8 have one too."""
    assert image_id_of("debian/12.raw") == str(uuid.uuid5(FLAT_NAMESPACE, "debian/12.raw"))
    assert uuid.UUID(image_id_of("caf\udce9.raw")).version == 5


@pytest.mark.parametrize(("key", "expected"), [("a", True), ("d/a", True), ("d/", False), (".a", False), (".d/a", False), ("d/.a", False)])
def test_hidden_and_directory_keys_are_no_images(key: str, expected: bool) -> None:
    """Names with a leading dot and keys that end in a slash are left out."""
    assert is_image(Entry(key, 0, "v", 0.0)) is expected

"""The facts of a qcow2 header; its bounds are tested with `inspect`, which every image goes through."""

from pathlib import Path

import pytest

from imagefs.errors import ImageRefused
from imagefs.image.qcow2.header import HEADER_BYTES, Compression, Qcow2Header, is_qcow2, parse_header
from imagefs.units import GIB, KIB, MIB
from tests.support.qcow2 import make

pytestmark = pytest.mark.qemu


def parsed(image: Path) -> Qcow2Header:
    body = image.read_bytes()
    return parse_header(body[:HEADER_BYTES], len(body), "x")


def test_parse_header_of_version_2(tmp_path: Path) -> None:
    """A version 2 header has no feature bits: zlib and standard entries."""
    header = parsed(make(tmp_path / "image", 10 * GIB, "compat=0.10"))
    assert (header.version, header.cluster_bits, header.size, header.l1_size) == (2, 16, 10 * GIB, 20)
    assert (header.compression, header.extended_l2, header.l2_bits, header.l1_needed) == (Compression.ZLIB, False, 13, 20)


def test_parse_header_of_version_3(tmp_path: Path) -> None:
    """Compression type and extended L2 entries come from the feature bits."""
    header = parsed(make(tmp_path / "image", 40 * MIB + 512, "cluster_size=16k,extended_l2=on,compression_type=zstd"))
    assert (header.version, header.cluster_size, header.size) == (3, 16 * KIB, 40 * MIB + 512)
    assert (header.compression, header.extended_l2, header.l2_bits, header.l1_needed) == (Compression.ZSTD, True, 10, 3)


def test_parse_header_of_an_empty_disk(tmp_path: Path) -> None:
    """A disk of no bytes needs no L1 entry."""
    assert parsed(make(tmp_path / "image", 0)).l1_needed == 0


def test_parse_header_refuses_other_content() -> None:
    """What does not begin with the magic is not qcow2."""
    assert not is_qcow2(b"KDMV")
    with pytest.raises(ImageRefused, match="image x: refused as qcow2: it begins with b'KDMV'"):
        parse_header(b"KDMV" + bytes(200), 204, "x")

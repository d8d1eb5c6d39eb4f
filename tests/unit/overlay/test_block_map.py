"""The form of the maps: packing, pages and headers."""

import random
import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.errors import InvalidInput, StateDamaged
from imagefs.overlay import block_map
from imagefs.overlay.block_map import DATA, MAP_PAGE, MAX_SIZE, PAGE_BLOCKS, ZERO, LiveHeader, MapHeader
from imagefs.sealed import seal
from imagefs.units import BLOCK, GIB, MIB, TIB

DISK = uuid.UUID("0c7f3a52-5b1e-4f0e-9f4a-7d0d3b1c2e11")


@given(st.integers())
def test_states_survive_packing(seed: int) -> None:
    """Any states of a page, packed and unpacked, are what they were."""
    states = bytes(random.Random(seed).choices(range(4), k=PAGE_BLOCKS))
    assert block_map.unpack_states(block_map.pack_states(states)) == states


def test_first_block_is_in_the_low_bits() -> None:
    """Four states lie in a byte, the first in its low bits."""
    packed = block_map.pack_states(bytes([0, 1, 2, 3]) + bytes(PAGE_BLOCKS - 4))
    assert packed[0] == 0b11_10_01_00
    assert not any(packed[1:])


def test_page_has_its_committed_bytes() -> None:
    """The form of a page never changes: a map of today opens with every later version."""
    page = block_map.encode_page(2, bytes([DATA, ZERO, 0, DATA, DATA]))
    assert page[:24].hex() == "e9cc1a5b0000000002000000000000004901000000000000"
    assert len(page) == MAP_PAGE
    assert not any(page[24:])
    assert block_map.decode_page(2, page) == bytes([DATA, ZERO, 0, DATA, DATA]).ljust(PAGE_BLOCKS, b"\0")


def test_headers_have_their_committed_bytes() -> None:
    """The form of both headers never changes."""
    header = MapHeader(GIB, DISK, "image@1", encrypted=True)
    page = block_map.encode_map_header(header)
    assert page.rstrip(b"\0").hex() == (
        "494d46534f564d500200000027000000f0d00836696f437f0000004000000000001000000c7f3a525b1e4f0e9f4a7d0d3b1c2e1101000700696d6167654031"
    )
    assert len(page) == MAP_PAGE
    assert block_map.decode_map_header(page, "vda.map") == header
    live = LiveHeader(GIB, DISK, bytes(range(16)))
    record = block_map.encode_live_header(live)
    assert (
        record.hex()
        == "494d46534f564c5601000000280000009d593260286254d500000040000000000c7f3a525b1e4f0e9f4a7d0d3b1c2e11000102030405060708090a0b0c0d0e0f"
    )
    assert block_map.decode_live_header(record.ljust(MAP_PAGE, b"\0"), "vda.live") == live


def test_hole_is_all_base() -> None:
    """A page of zeros, as in a hole, says that nothing was written."""
    assert block_map.decode_page(9, bytes(MAP_PAGE)) == bytes(PAGE_BLOCKS)


@pytest.mark.parametrize("position", [0, 5, 8, 16, 4015, 4095])
def test_flipped_bit_damages_a_page(position: int) -> None:
    """A page in which one bit changed is never taken for a page."""
    page = bytearray(block_map.encode_page(3, bytes([DATA])))
    page[position] ^= 1
    assert block_map.decode_page(3, bytes(page)) is None


def test_misplaced_or_short_page_is_damaged() -> None:
    """A page of another place, a part of one, and one with a state that there is not, are damaged."""
    page = block_map.encode_page(3, bytes([DATA]))
    assert block_map.decode_page(4, page) is None
    assert block_map.decode_page(3, page[:-1]) is None
    assert block_map.decode_page(3, bytes(100)) is None
    assert block_map.decode_page(3, block_map.encode_page(3, bytes([3]))) is None


@pytest.mark.parametrize("size", [0, -1, MAX_SIZE + 1])
def test_impossible_sizes_are_refused(size: int) -> None:
    """A disk has from one byte to the most that the live map has room for."""
    with pytest.raises(InvalidInput, match="cannot be"):
        block_map.encode_map_header(MapHeader(size, DISK, ""))


def test_flags_of_the_largest_disk_fit() -> None:
    """The flags of the largest disk end before the states begin."""
    assert block_map.FLAGS_OFFSET + block_map.page_count(MAX_SIZE) <= block_map.STATES_OFFSET


def test_long_identity_is_refused() -> None:
    """The identity of the base fits the header's page; the longest does."""
    with pytest.raises(InvalidInput, match="identity"):
        block_map.encode_map_header(MapHeader(GIB, DISK, "x" * 1025))
    assert block_map.decode_map_header(block_map.encode_map_header(MapHeader(GIB, DISK, "")), "vda.map") == MapHeader(GIB, DISK, "", encrypted=False)
    longest = MapHeader(GIB, DISK, "x" * 1024)
    assert block_map.decode_map_header(block_map.encode_map_header(longest), "vda.map") == longest


@pytest.mark.parametrize("position", [0, 8, 12, 20, 24, 40, 60])
def test_flipped_bit_damages_a_header(position: int) -> None:
    """A header in which one bit changed is refused."""
    page = bytearray(block_map.encode_map_header(MapHeader(GIB, DISK, "image@1")))
    page[position] ^= 1
    with pytest.raises(StateDamaged, match=r"vda\.map"):
        block_map.decode_map_header(bytes(page), "vda.map")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        block_map._MAP_HEADER.pack(0, BLOCK, DISK.bytes, 0, 0),
        block_map._MAP_HEADER.pack(MAX_SIZE + 1, BLOCK, DISK.bytes, 0, 0),
        block_map._MAP_HEADER.pack(GIB, 65536, DISK.bytes, 0, 0),
        block_map._MAP_HEADER.pack(GIB, BLOCK, DISK.bytes, 0, 9),
        block_map._MAP_HEADER.pack(GIB, BLOCK, DISK.bytes, 2, 0),
        block_map._MAP_HEADER.pack(GIB, BLOCK, DISK.bytes, 0, 1) + b"\xff",
    ],
)
def test_header_that_cannot_be_right_is_refused(payload: bytes) -> None:
    """A header whose seal is whole, but whose fields cannot be, is refused."""
    with pytest.raises(StateDamaged, match=r"vda\.map"):
        block_map.decode_map_header(seal(b"IMFSOVMP", 2, payload), "vda.map")


def test_header_of_the_first_version_is_read() -> None:
    """A header from before there were encrypted disks says the same as it did, and that the disk is not encrypted."""
    payload = struct.pack("<QI16sH", GIB, BLOCK, DISK.bytes, 7) + b"image@1"
    found = block_map.decode_map_header(seal(b"IMFSOVMP", 1, payload).ljust(4096, b"\0"), "vda.map")
    assert found == MapHeader(GIB, DISK, "image@1", encrypted=False)
    with pytest.raises(StateDamaged, match="cut short"):
        block_map.decode_map_header(seal(b"IMFSOVMP", 1, payload[:20]), "vda.map")


def test_live_header_of_another_length_is_refused() -> None:
    """A live header that is sealed but too short is refused."""
    with pytest.raises(StateDamaged, match=r"vda\.live"):
        block_map.decode_live_header(seal(b"IMFSOVLV", 1, b"x"), "vda.live")


def test_geometry() -> None:
    """Blocks, pages and lengths of disks that end within a block or a page."""
    assert block_map.block_count(1) == 1
    assert block_map.block_count(BLOCK + 1) == 2
    assert block_map.page_count(PAGE_BLOCKS * BLOCK) == 1
    assert block_map.page_count(PAGE_BLOCKS * BLOCK + 1) == 2
    assert PAGE_BLOCKS * BLOCK == 62.5 * MIB
    assert block_map.page_count(16 * TIB) == 268436
    assert block_map.page_offset(0) == 4096
    assert block_map.data_file_size(5000) == 8192

"""The form of the map on the disk."""

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache.unit_map import (
    ABSENT,
    ABSENT_ENTRY,
    DATA,
    ENTRY,
    HEADER_AREA,
    ZERO,
    MapHeader,
    absent_entries,
    count_present,
    decode_header,
    encode_header,
    header_version,
    pack_entry,
    unpack_entry,
)
from imagefs.errors import StateDamaged
from tests.support.caching import IMAGE

HEADER = MapHeader(IMAGE, "guest", '"9b2cf535f27731c974343645a3985328-4"', 10 * 2**30, 0xDEADBEEF)


def test_entry_as_committed() -> None:
    """An entry of version 1 is these bytes: caches on disks of running nodes have them."""
    assert pack_entry(7, 3, DATA, crc32c(b"hello")).hex() == "4cbb719a02490149"
    assert unpack_entry(7, 3, bytes.fromhex("4cbb719a02490149")) == (DATA, crc32c(b"hello"))


def test_header_as_committed() -> None:
    """A header of version 1 is these bytes."""
    header = MapHeader(IMAGE, "stored", "v1", 1000, 5)
    assert encode_header(header)[:16].hex() == "494d465343414348" + "01000000" + "7c000000"
    assert encode_header(header)[24:].decode() == (
        f'{{"image_id":"{IMAGE}","space":"stored","source_version":"v1","size":1000,"seed":5,"unit":65536}}'
    )


@given(seed=st.integers(0, 2**32 - 1), unit=st.integers(0, 2**40), state=st.sampled_from([DATA, ZERO]), crc=st.integers(0, 2**32 - 1))
def test_entries_round_trip(seed: int, unit: int, state: int, crc: int) -> None:
    """What was packed is unpacked."""
    entry = pack_entry(seed, unit, state, crc)
    assert len(entry) == ENTRY
    assert unpack_entry(seed, unit, entry) == (state, crc)


@given(bit=st.integers(0, 63))
def test_every_flipped_bit_is_found(bit: int) -> None:
    """No single wrong bit makes another valid entry."""
    entry = bytearray(pack_entry(9, 1234, DATA, 0x12345678))
    entry[bit // 8] ^= 1 << bit % 8
    assert unpack_entry(9, 1234, bytes(entry)) is None


def test_swapped_and_foreign_entries_are_found() -> None:
    """An entry of another unit, or of another map, is damage; zeros are an absent unit; a short entry is damage."""
    entry = pack_entry(9, 1, DATA, 77)
    assert unpack_entry(9, 2, entry) is None
    assert unpack_entry(8, 1, entry) is None
    assert unpack_entry(9, 1, ABSENT_ENTRY) == (ABSENT, 0)
    assert unpack_entry(9, 1, entry[:5]) is None


def test_scans() -> None:
    """Absent and present entries of a page are found."""
    page = ABSENT_ENTRY + pack_entry(1, 1, DATA, 0) + ABSENT_ENTRY + pack_entry(1, 3, ZERO, 5)
    assert absent_entries(page) == [0, 2]
    assert absent_entries(bytes(32)) == [0, 1, 2, 3]
    assert count_present(page) == 2
    assert count_present(bytes(4096)) == 0


def test_header_round_trips_and_fits() -> None:
    """The longest header fits the page before the entries."""
    longest = MapHeader(IMAGE, "stored", "v" * 1022, 2**62, 2**32 - 1)
    assert header_version(longest.source_version) == longest.source_version
    assert len(encode_header(longest)) <= HEADER_AREA
    assert decode_header(encode_header(HEADER).ljust(HEADER_AREA, b"\0"), "map") == HEADER


def test_long_versions_are_hashed() -> None:
    """A version that might not fit stands in the header as its hash."""
    assert header_version("v") == "v"
    assert header_version("v" * 1023).startswith("sha256:")
    assert header_version("\x01" * 1000).startswith("sha256:")


@pytest.mark.parametrize("area", [b"", bytes(4096), encode_header(HEADER)[:-1], encode_header(HEADER).replace(b"guest", b"Guest")])
def test_damaged_headers(area: bytes) -> None:
    """A header that is missing, torn or altered is refused, naming the file."""
    with pytest.raises(StateDamaged, match="the map"):
        decode_header(area, "the map")

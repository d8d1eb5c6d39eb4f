"""What a map says of its use."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from imagefs.cache.unit_map import MapHeader, encode_header
from imagefs.cache.use_record import AREA, KEPT_LIMIT, NOTHING_KNOWN, OFFSET, Use, UseRecord, decode, encode

BOOT = bytes(range(16))
REGIONS = 1000
regions = st.frozensets(st.integers(0, REGIONS - 1))


@given(st.none() | st.integers(0, 16 * REGIONS), regions)
def test_round_trip(present: int | None, kept: frozenset[int]) -> None:
    """What is written is read, and of regions to be kept none is lost; what does not fit is kept with its neighbours."""
    area = encode(UseRecord(present, kept), BOOT)
    assert len(area) == AREA
    found = decode(area, BOOT, units=16 * REGIONS, regions=REGIONS)
    assert found.present == present
    assert found.kept >= kept
    if len(kept) < 200:
        assert found.kept == kept


def test_another_boot() -> None:
    """A count is believed in the boot that it was written in; regions to be kept are a wish, and always believed."""
    area = encode(UseRecord(5, frozenset({1, 2})), BOOT)
    assert decode(area, bytes(16), units=16, regions=10) == UseRecord(None, frozenset({1, 2}))


@given(st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_damage(offset: int, change: bytes) -> None:
    """Damage means that nothing is known, never a wrong count."""
    area = bytearray(encode(UseRecord(5, frozenset(range(0, 40, 2))), BOOT))
    area[offset : offset + len(change)] = change
    assert decode(bytes(area), BOOT, units=16 * 40, regions=40) in (NOTHING_KNOWN, UseRecord(5, frozenset(range(0, 40, 2))))


@pytest.mark.parametrize("area", [b"", bytes(AREA), b"\xff" * AREA])
def test_no_record(area: bytes) -> None:
    """A map of an earlier version has none."""
    assert decode(area, BOOT, units=16, regions=1) == NOTHING_KNOWN


def test_more_than_there_can_be() -> None:
    """Counts and regions beyond the cache are not believed, nor more regions than anybody keeps."""
    assert decode(encode(UseRecord(17), BOOT), BOOT, units=16, regions=1) == NOTHING_KNOWN
    assert decode(encode(UseRecord(1, frozenset({1})), BOOT), BOOT, units=16, regions=1) == NOTHING_KNOWN
    huge = encode(UseRecord(1, frozenset(range(KEPT_LIMIT + 1))), BOOT)
    assert decode(huge, BOOT, units=2**30, regions=2**26) == NOTHING_KNOWN


def test_it_lies_behind_the_largest_header() -> None:
    """The header and the record share a page."""
    header = MapHeader("1" * 36, "stored", "v" * 1022, 2**63, 2**32 - 1)
    assert len(encode_header(header)) <= OFFSET
    assert OFFSET + AREA == 4096


def test_use_that_changes() -> None:
    """The count is noted when a cache is closed, unless it is not to be relied on."""
    use = Use.of(UseRecord(3, frozenset({1})))
    use.kept.add(2)
    assert use.record(closed=False) == UseRecord(None, frozenset({1, 2}))
    assert use.record(closed=True) == UseRecord(3, frozenset({1, 2}))
    use.sound = False
    assert use.record(closed=True).present is None

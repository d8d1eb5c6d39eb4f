"""Where guest bytes are: entries of L1 and L2 tables, sound and not."""

import pytest

from imagefs.image.qcow2.header import Compression, Qcow2Header
from imagefs.image.qcow2.tables import Extent, Kind, TablePage, Tables
from imagefs.units import KIB, MIB, UNIT

CLUSTER = 64 * KIB
L1 = 2 * MIB  # aligned for every cluster size
L2 = 4 * MIB
HOST = 6 * MIB
STORED = 16 * MIB
COPIED = 1 << 63
COMPRESSED = 1 << 62


def header(*, version: int = 3, bits: int = 16, size: int = 64 * MIB, extended: bool = False) -> Qcow2Header:
    return Qcow2Header(version, bits, size, 1, L1, Compression.ZLIB, extended)


def tables(*entries: int, facts: Qcow2Header | None = None, l1: int = COPIED | L2, stored: int = STORED) -> Tables:
    """Return tables with one L1 entry and an L2 table that begins with `entries`."""
    facts = facts or header()
    made = Tables(facts, stored)
    made.add(TablePage(L1, 8), l1.to_bytes(8, "big"))
    length = min(UNIT, facts.cluster_size)
    made.add(TablePage(L2, length), b"".join(entry.to_bytes(8, "big") for entry in entries).ljust(length, b"\0"))
    made.check_invariants()
    return made


def located(made: Tables, offset: int, length: int) -> list[Extent]:
    extents, missing = made.locate(offset, length)
    assert missing is None
    at = offset
    for extent in extents:
        assert extent.guest_offset == at
        at += extent.length
    assert at == offset + length
    return extents


def test_locate_joins_neighbours() -> None:
    """Clusters that follow each other in guest and host are one extent, and so are zeros of both sorts."""
    made = tables(COPIED | HOST, COPIED | HOST + CLUSTER, 0, 1, COPIED | HOST + 9 * CLUSTER | 1, HOST + 2 * CLUSTER)
    assert located(made, 1000, 6 * CLUSTER - 1000) == [
        Extent(1000, 2 * CLUSTER - 1000, Kind.DATA, HOST + 1000, 2 * CLUSTER - 1000),
        Extent(2 * CLUSTER, 3 * CLUSTER, Kind.ZERO),
        Extent(5 * CLUSTER, CLUSTER, Kind.DATA, HOST + 2 * CLUSTER, CLUSTER),
    ]


def test_locate_asks_for_missing_pages() -> None:
    """A walk stops at the first page that is not there, with what it found before; L1 first, then L2."""
    made = Tables(header(), STORED)
    assert made.locate(5, 10) == ([], TablePage(L1, 8))
    made.add(TablePage(L1, 8), (COPIED | L2).to_bytes(8, "big"))
    assert made.locate(5, 10) == ([], TablePage(L2, UNIT))
    made.add(TablePage(L2, UNIT), bytes(UNIT))
    assert made.locate(5, 10) == ([Extent(5, 10, Kind.ZERO)], None)


def test_locate_asks_for_the_page_of_the_cluster() -> None:
    """A 2 MiB L2 table is not fetched whole: a page of 64 KiB has the entry."""
    bits = 21
    made = Tables(Qcow2Header(3, bits, 64 << 30, 1, 2 * MIB, Compression.ZLIB, extended_l2=False), 64 * MIB)
    made.add(TablePage(2 * MIB, 8), (COPIED | 4 * MIB).to_bytes(8, "big"))
    _, missing = made.locate(17 << 30, 512)
    assert missing == TablePage(4 * MIB + UNIT, UNIT)


def test_no_l2_table_means_zeros() -> None:
    """Where L1 has no table, everything is unallocated."""
    assert located(tables(l1=0), 70_000, 8 * MIB) == [Extent(70_000, 8 * MIB, Kind.ZERO)]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (L2 | 1, "reserved bits"),
        (L2 | 1 << 56, "reserved bits"),
        (L2 + 512, "not aligned"),
        (STORED, "beyond the file's end"),
        (1 << 55, "beyond the file's end"),
        (L1, "back at the L1 table"),
    ],
)
def test_bad_l1_entries_are_refused(entry: int, reason: str) -> None:
    """An L1 entry that cannot be right makes its whole range refused; a cycle is one."""
    (extent,) = located(tables(l1=entry), 0, MIB)
    assert extent.kind is Kind.REFUSED
    assert reason in extent.reason


@pytest.mark.parametrize(
    ("entry", "version", "reason"),
    [
        (COPIED | HOST | 2, 3, "reserved bits"),
        (COPIED | HOST | 1 << 56, 3, "reserved bits"),
        (COPIED | HOST + 512, 3, "not aligned"),
        (COPIED | STORED, 3, "beyond the file's end"),
        (COPIED | HOST | 1, 2, "version 2"),
        (COMPRESSED | STORED, 3, "beyond the file's end"),
        (COMPRESSED | (STORED - 512) | 1 << 54, 3, "beyond the file's end"),
    ],
)
def test_bad_l2_entries_are_refused_alone(entry: int, version: int, reason: str) -> None:
    """An L2 entry that cannot be right makes its cluster refused, and not its neighbours."""
    before, bad, after = located(tables(COPIED | HOST, entry, 0, facts=header(version=version)), 0, 3 * CLUSTER)
    assert (before.kind, bad.kind, after.kind) == (Kind.DATA, Kind.REFUSED, Kind.ZERO)
    assert (bad.guest_offset, bad.length) == (CLUSTER, CLUSTER)
    assert reason in bad.reason


def test_short_last_cluster_reads_as_zeros_behind_the_end() -> None:
    """A data cluster that the file ends in has host bytes up to there; the rest is zeros."""
    made = tables(COPIED | 100 * CLUSTER, stored=100 * CLUSTER + 700)
    assert located(made, 0, CLUSTER) == [Extent(0, CLUSTER, Kind.DATA, 100 * CLUSTER, 700)]
    assert located(made, 600, 50) == [Extent(600, 50, Kind.DATA, 100 * CLUSTER + 600, 50)]
    assert located(made, 700, 50) == [Extent(700, 50, Kind.ZERO)]


@pytest.mark.parametrize(("bits", "shift"), [(9, 61), (12, 58), (16, 54), (21, 49)])
def test_compressed_descriptor(bits: int, shift: int) -> None:
    """Offset and sectors of a compressed cluster are cut where the specification says, for each cluster size."""
    offset = HOST + 1000
    facts = header(bits=bits, size=1 << bits)
    made = tables(COMPRESSED | 1 << shift | offset, facts=facts, stored=STORED)
    (extent,) = located(made, 0, 1 << bits)
    assert extent == Extent(0, 1 << bits, Kind.COMPRESSED, offset, 1024 - 1000 % 512)


def test_compressed_offset_beyond_bit_55_is_refused() -> None:
    """With 512-byte clusters the offset field reaches bit 60, but the bits above 55 must be zero."""
    made = tables(COMPRESSED | 1 << 56 | HOST, facts=header(bits=9, size=512))
    assert located(made, 0, 512)[0].kind is Kind.REFUSED


def test_compressed_cluster_may_end_in_the_files_last_sector() -> None:
    """The sector count is rounded up; what lies behind the file's end is left out."""
    made = tables(COMPRESSED | 1 << 54 | (STORED + 100), stored=STORED + 700)
    assert located(made, 5, 9) == [Extent(5, 9, Kind.COMPRESSED, STORED + 100, 600)]


def test_subclusters() -> None:
    """With extended L2 entries each of 32 subclusters is data or zeros; neighbours are joined."""
    sub = CLUSTER // 32
    allocated = 0b0111
    zero = 0b1000 << 32
    made = tables(COPIED | HOST, allocated | zero, 0, (1 << 32) - 1 << 32, facts=header(extended=True))
    assert located(made, 100, 2 * CLUSTER - 100) == [
        Extent(100, 3 * sub - 100, Kind.DATA, HOST + 100, 3 * sub - 100),
        Extent(3 * sub, 2 * CLUSTER - 3 * sub, Kind.ZERO),
    ]


@pytest.mark.parametrize(
    ("entry", "bitmap", "reason"),
    [
        (COPIED | HOST, 1 | 1 << 32, "contradicting"),
        (0, 1, "contradicting"),
        (COPIED | HOST | 1, 1, "zero flag"),
        (COPIED | HOST + 512, 1, "not aligned"),
    ],
)
def test_bad_subclusters_are_refused(entry: int, bitmap: int, reason: str) -> None:
    """A bitmap that says two things at once refuses its cluster."""
    (extent,) = located(tables(entry, bitmap, facts=header(extended=True)), 0, CLUSTER)
    assert extent.kind is Kind.REFUSED
    assert reason in extent.reason


@pytest.mark.parametrize(
    "entry",
    [0, 1, HOST | 1, HOST + 512, HOST | 2, HOST | 1 << 56, STORED, STORED - CLUSTER + 512, COMPRESSED | HOST],
)
def test_data_offset_knows_plain_data_only(entry: int) -> None:
    """The short way of the hot path gives what `locate` gives for plain data, and leaves everything else to it."""
    made = tables(COPIED | HOST, HOST + CLUSTER, entry, HOST + 2 * CLUSTER)
    assert made.data_offset(5, 7) == HOST + 5
    assert made.data_offset(CLUSTER - 1, CLUSTER + 1) == HOST + CLUSTER - 1
    assert made.data_offset(CLUSTER, CLUSTER + 1) == -1
    assert made.data_offset(2 * CLUSTER, 1) == -1
    assert made.data_offset(3 * CLUSTER, 1) == HOST + 2 * CLUSTER


@pytest.mark.parametrize("l1", [0, L1, L2 | 1, L2 + 512, L2 | 1 << 56, STORED])
def test_data_offset_leaves_bad_l1_entries_to_locate(l1: int) -> None:
    """Nothing is found through an L1 entry that `locate` would refuse."""
    made = tables(COPIED | HOST, l1=l1)
    assert made.data_offset(0, 1) == -1
    assert Tables(header(), STORED).data_offset(0, 1) == -1


def test_data_offset_leaves_the_files_end_to_locate() -> None:
    """A cluster that the file ends in has two parts, one of them zeros."""
    made = tables(COPIED | 100 * CLUSTER, stored=100 * CLUSTER + 700)
    assert made.data_offset(0, 700) == 100 * CLUSTER
    assert made.data_offset(0, 701) == -1


def test_pages_stay_within_the_budget() -> None:
    """The least recently used pages go first, and two always stay, so that every walk gets on."""
    made = Tables(header(size=1 << 40), 1 << 40, budget=3 * (UNIT + 256))
    for number in range(9):
        made.add(TablePage(L2 + number * UNIT, UNIT), bytes(UNIT))
        made.check_invariants()
    made = Tables(header(), STORED, budget=1)
    made.add(TablePage(L1, 8), L2.to_bytes(8, "big"))
    made.add(TablePage(L2, UNIT), bytes(UNIT))
    made.check_invariants()
    assert located(made, 0, MIB)

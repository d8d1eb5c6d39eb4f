"""This module answers "where is it?": L1 and L2 tables of a qcow2 image, and from them guest range -> extents. Pure.

Tables are kept as pages of at most 64 KiB (the unit in which stored bytes are fetched), so that one entry of a 2 MiB table
costs one unit. A walk takes two steps, L1 then L2, whatever the entries say: nothing here can loop.
"""

import enum
import sys
from array import array
from collections import OrderedDict
from typing import Final, NamedTuple

from imagefs.image.qcow2.header import Qcow2Header
from imagefs.units import MIB, UNIT, align_up

TABLE_BUDGET: Final = 16 * MIB
"""Bytes of table pages kept per image: with 64 KiB clusters they map 128 GiB."""

_PAGE_OVERHEAD: Final = 256
"""What a page costs besides its entries (an array, an int and a slot in the LRU), so that 512-byte tables are counted fairly."""

_COPIED: Final = 1 << 63
_COMPRESSED: Final = 1 << 62
_OFFSET: Final = ((1 << 56) - 1) & ~0x1FF
_L1_RESERVED: Final = 0x7F << 56 | 0x1FF
_L2_RESERVED: Final = 0x3F << 56 | 0x1FE
_READS_AS_ZERO: Final = 1
_ALL_SUBCLUSTERS: Final = (1 << 32) - 1
_SECTOR: Final = 512
_L1_PAGE_BITS: Final = 13  # 8192 entries in 64 KiB
_L1_PAGE_MASK: Final = (1 << _L1_PAGE_BITS) - 1


class Kind(enum.Enum):
    """What an extent's bytes are. Unallocated is ZERO too: an image with a backing file never gets this far."""

    ZERO = "zero"
    DATA = "data"
    COMPRESSED = "compressed"
    REFUSED = "refused"


class Extent(NamedTuple):
    """A run of guest bytes of one kind, cut to the range that was asked for.

    DATA: `host_length` bytes at `host_offset`, then zeros up to `length` (the file may end inside its last cluster).
    COMPRESSED: part of one cluster, whose compressed bytes are the `host_length` at `host_offset`, possibly with a tail of others'.
    REFUSED: the tables are wrong here; `reason` says how.
    """

    guest_offset: int
    length: int
    kind: Kind
    host_offset: int = 0
    host_length: int = 0
    reason: str = ""


class TablePage(NamedTuple):
    """The place of a table page in the stored bytes."""

    host_offset: int
    length: int


class Tables:
    """The part of an image's L1 and L2 tables that is at hand.

    Invariants: the pages kept cost at most `budget` bytes, save for the two used last; every page lies within the file; an
    extent's host range lies within the file.
    """

    def __init__(self, header: Qcow2Header, stored_size: int, budget: int = TABLE_BUDGET) -> None:
        """Take the accepted header, the stored bytes' size and the bytes that pages may take in memory."""
        self._header = header
        self._stored_size = stored_size
        self._budget = budget
        self._pages: OrderedDict[int, array[int]] = OrderedDict()
        self._cost = 0
        self._page_bytes = min(UNIT, header.cluster_size)
        self._l1_end = header.l1_table_offset + header.l1_size * 8
        self._offset_bits = 62 - (header.cluster_bits - 8)
        self._table_bits = header.cluster_bits + header.l2_bits
        self._cluster_mask = header.cluster_size - 1

    def add(self, page: TablePage, body: bytes | bytearray) -> None:
        """Keep the `page.length` bytes of a page; the least recently used pages make room."""
        entries = array("Q", body)
        if sys.byteorder == "little":
            entries.byteswap()
        replaced = self._pages.pop(page.host_offset, None)
        if replaced is not None:
            self._cost -= len(replaced) * 8 + _PAGE_OVERHEAD
        self._pages[page.host_offset] = entries
        self._cost += len(entries) * 8 + _PAGE_OVERHEAD
        # Two at least: a walk needs the L1 page that it just used and the L2 page that is added, or it would never get on.
        while self._cost > self._budget and len(self._pages) > 2:
            _, dropped = self._pages.popitem(last=False)
            self._cost -= len(dropped) * 8 + _PAGE_OVERHEAD

    def data_offset(self, guest_offset: int, length: int) -> int:
        """Return the host offset of a range that is data in one piece, with its table pages at hand; else -1: ask `locate`.

        This is for the hot path, and answers nothing but the usual case. The range lies within the disk and is not empty.
        """
        header, mask, bits = self._header, self._cluster_mask, self._header.cluster_bits
        index = guest_offset >> self._table_bits
        page = self._page(header.l1_table_offset + (index >> _L1_PAGE_BITS) * UNIT)
        if page is None or header.extended_l2:
            return -1
        table = page[index & _L1_PAGE_MASK] & ~_COPIED
        if table & mask or (table < self._l1_end and table + mask >= header.l1_table_offset):
            return -1
        first, last = guest_offset >> bits, (guest_offset + length - 1) >> bits
        number, slot = divmod(first & ((1 << header.l2_bits) - 1), self._page_bytes // 8)
        page = self._page(table + number * self._page_bytes)
        if page is None or slot + last - first >= len(page):
            return -1
        start = page[slot] & ~_COPIED
        host_offset = start + (guest_offset & mask)
        # An entry with a flag or a reserved bit is no multiple of the cluster, or far behind the end of any file.
        if not start or start & mask or host_offset + length > self._stored_size:
            return -1
        for ahead in range(1, last - first + 1):
            if page[slot + ahead] & ~_COPIED != start + (ahead << bits):
                return -1
        return host_offset

    def locate(self, guest_offset: int, length: int) -> tuple[list[Extent], TablePage | None]:
        """Return the extents of the guest range in order, and the page to `add` before the walk can go on after them (None: done).

        The range must lie within the virtual size. The work is proportional to the clusters in it: keep it to some MiB.
        """
        extents: list[Extent] = []
        offset, end = guest_offset, guest_offset + length
        table_span = 1 << self._table_bits
        page_span = self._page_bytes // (8 * self._header.l2_entry_words) << self._header.cluster_bits
        while offset < end:
            table = self._l2_table(offset // table_span)
            if isinstance(table, TablePage):
                return extents, table
            if isinstance(table, str) or table == 0:
                stop = min(end, offset - offset % table_span + table_span)
                _append(extents, _refused(offset, stop - offset, table) if isinstance(table, str) else Extent(offset, stop - offset, Kind.ZERO))
            else:
                stop = min(end, offset - offset % page_span + page_span)
                host_offset = table + offset % table_span // page_span * self._page_bytes
                page = self._page(host_offset)
                if page is None:
                    return extents, TablePage(host_offset, self._page_bytes)
                self._walk(page, offset, stop, extents)
            offset = stop
        return extents, None

    def _page(self, host_offset: int) -> "array[int] | None":
        page = self._pages.get(host_offset)
        if page is not None:
            self._pages.move_to_end(host_offset)
        return page

    def _l2_table(self, index: int) -> int | str | TablePage:
        """Return an L2 table's host offset (0: none), what is wrong with its L1 entry, or the L1 page that is missing."""
        host_offset = self._header.l1_table_offset + (index >> _L1_PAGE_BITS) * UNIT
        page = self._page(host_offset)
        if page is None:
            return TablePage(host_offset, min(UNIT, self._l1_end - host_offset))
        entry = page[index & _L1_PAGE_MASK]
        offset = entry & _OFFSET
        cluster_size = self._header.cluster_size
        if entry & _L1_RESERVED:
            return f"L1 entry {index} ({entry:#x}) has reserved bits set"
        if offset % cluster_size:
            return f"L1 entry {index} ({entry:#x}) is not aligned to a cluster"
        if offset + cluster_size > self._stored_size:
            return f"L1 entry {index} ({entry:#x}) points beyond the file's end at {self._stored_size}"
        if offset and offset < self._l1_end and offset + cluster_size > self._header.l1_table_offset:
            return f"L1 entry {index} ({entry:#x}) points back at the L1 table"
        return offset

    def _walk(self, page: "array[int]", offset: int, stop: int, extents: list[Extent]) -> None:
        """Append the extents of [offset, stop), which `page` describes."""
        bits, words = self._header.cluster_bits, self._header.l2_entry_words
        per_page = len(page) // words
        while offset < stop:
            cluster = offset >> bits
            length = min(stop, (cluster + 1) << bits) - offset
            slot = cluster % per_page * words
            entry = page[slot]
            if entry & _COMPRESSED:
                _append(extents, self._compressed(entry, offset, length))
            elif words == 1:
                _append(extents, self._standard(entry, offset, length))
            else:
                self._extended(entry, page[slot + 1], offset, length, extents)
            offset += length

    def _standard(self, entry: int, offset: int, length: int) -> Extent:
        """Return the extent of part of a cluster with a standard descriptor."""
        if entry & _READS_AS_ZERO and self._header.version == 2:
            return _refused(offset, length, f"L2 entry {entry:#x} has the zero flag, which version 2 has not")
        flaw = self._standard_flaw(entry)
        if flaw:
            return _refused(offset, length, flaw)
        if entry & _READS_AS_ZERO or not entry & _OFFSET:
            return Extent(offset, length, Kind.ZERO)
        return self._data(entry, offset, length)

    def _standard_flaw(self, entry: int) -> str:
        """Return what is wrong with a standard descriptor's host offset, or nothing."""
        offset = entry & _OFFSET
        if entry & _L2_RESERVED:
            return f"L2 entry {entry:#x} has reserved bits set"
        if offset & (self._header.cluster_size - 1):
            return f"L2 entry {entry:#x} is not aligned to a cluster"
        if offset >= self._stored_size:
            return f"L2 entry {entry:#x} points beyond the file's end at {self._stored_size}"
        return ""

    def _data(self, entry: int, offset: int, length: int) -> Extent:
        host_offset = (entry & _OFFSET) + (offset & (self._header.cluster_size - 1))
        host_length = min(length, self._stored_size - host_offset)
        if host_length <= 0:
            return Extent(offset, length, Kind.ZERO)  # behind the end of a file that ends inside its last cluster
        return Extent(offset, length, Kind.DATA, host_offset, host_length)

    def _extended(self, entry: int, bitmap: int, offset: int, length: int, extents: list[Extent]) -> None:
        """Append the extents of part of a cluster with 32 subclusters."""
        allocated, zero = bitmap & _ALL_SUBCLUSTERS, bitmap >> 32
        flaw = f"L2 entry {entry:#x} has the zero flag, which extended entries have not" if entry & _READS_AS_ZERO else self._standard_flaw(entry)
        if allocated & zero or (allocated and not entry & _OFFSET):
            flaw = f"L2 entry {entry:#x} has contradicting subclusters {bitmap:#x}"
        if flaw:
            _append(extents, _refused(offset, length, flaw))
            return
        sub_bits = self._header.cluster_bits - 5
        end = offset + length
        while offset < end:
            stop = min(end, ((offset >> sub_bits) + 1) << sub_bits)
            subcluster = (offset >> sub_bits) & 31
            if allocated >> subcluster & 1:
                _append(extents, self._data(entry, offset, stop - offset))
            else:
                _append(extents, Extent(offset, stop - offset, Kind.ZERO))
            offset = stop

    def _compressed(self, entry: int, offset: int, length: int) -> Extent:
        """Return the extent of part of a compressed cluster; bit 63 means nothing here."""
        host_offset = entry & ((1 << self._offset_bits) - 1)
        sectors = (entry & (_COMPRESSED - 1)) >> self._offset_bits
        host_end = host_offset - host_offset % _SECTOR + (sectors + 1) * _SECTOR
        if host_offset >> 56:
            return _refused(offset, length, f"L2 entry {entry:#x} has reserved bits set")
        # The last compressed cluster may end inside its last sector, and the file with it.
        if host_offset >= self._stored_size or host_end > align_up(self._stored_size, _SECTOR):
            return _refused(offset, length, f"L2 entry {entry:#x} points beyond the file's end at {self._stored_size}")
        return Extent(offset, length, Kind.COMPRESSED, host_offset, min(host_end, self._stored_size) - host_offset)

    def check_invariants(self) -> None:
        """Raise AssertionError if a promise of the class does not hold; for tests."""
        if self._cost != sum(len(page) * 8 + _PAGE_OVERHEAD for page in self._pages.values()):
            raise AssertionError("the cost is not that of the pages")
        if self._cost > self._budget and len(self._pages) > 2:
            raise AssertionError("the pages cost more than the budget")
        if any(offset + len(page) * 8 > self._stored_size for offset, page in self._pages.items()):
            raise AssertionError("a page lies beyond the end of the file")


def _refused(offset: int, length: int, reason: str) -> Extent:
    return Extent(offset, length, Kind.REFUSED, reason=reason)


def _append(extents: list[Extent], extent: Extent) -> None:
    """Append `extent`, joined to the last one where the two are one run."""
    if extents:
        last = extents[-1]
        if last.kind is extent.kind and (
            last.kind is Kind.ZERO
            or (last.kind is Kind.REFUSED and last.reason == extent.reason)
            or (last.kind is Kind.DATA and last.host_offset + last.length == extent.host_offset and last.host_length == last.length)
        ):
            extents[-1] = last._replace(length=last.length + extent.length, host_length=last.host_length + extent.host_length)
            return
    extents.append(extent)

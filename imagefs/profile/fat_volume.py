"""This module reads a FAT filesystem, which an EFI system partition is: from its directories to where its files are, by their short names."""

import dataclasses
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from imagefs.profile.rounds import Place, Plan, Round
from imagefs.profile.volume import Node
from imagefs.units import KIB

ROOT: Final = 0
_MAX_TABLE: Final = 512 * KIB
"""Bytes of the allocation table that are read; files beyond what it describes are left out."""

_MAX_CLUSTERS: Final = 4096
"""Clusters of one file that are followed."""

_MAX_DIRECTORY: Final = 256 * KIB


@dataclasses.dataclass(frozen=True, slots=True)
class _Shape:
    """Places in bytes from the filesystem's start, and how the table counts."""

    cluster: int
    table: int
    table_size: int
    root: int
    root_size: int
    data: int
    clusters: int
    wide: int
    """Bits of an entry of the table: 12, 16 or 32."""

    root_cluster: int


def open_fat(start: int, length: int, head: bytes) -> "FatVolume | None":
    """Return the filesystem at `start` that has room for `length` bytes and begins with `head`; None if it is none."""
    shape = _shape(head, length)
    return FatVolume(start, shape) if shape else None


def _shape(head: bytes, length: int) -> _Shape | None:
    if len(head) < 512 or head[510:512] != b"\x55\xaa" or head[0] not in (0xEB, 0xE9):
        return None
    sector, per_cluster, reserved, tables, root_entries, few_sectors = struct.unpack_from("<HBHBHH", head, 11)
    (table_sectors,) = struct.unpack_from("<H", head, 22)
    many_sectors, wide_sectors = struct.unpack_from("<II", head, 32)
    if sector not in (512, 1024, 2048, 4096) or per_cluster not in (1, 2, 4, 8, 16, 32, 64, 128) or not 1 <= tables <= 2 or not reserved:
        return None
    root_cluster = struct.unpack_from("<I", head, 44)[0] if not table_sectors else 0
    table_size = (table_sectors or wide_sectors) * sector
    root = reserved * sector + tables * table_size
    root_size = root_entries * 32
    data = root + -(-root_size // sector) * sector
    whole = min((few_sectors or many_sectors) * sector, length)
    if not table_size or data >= whole:
        return None
    clusters = (whole - data) // (per_cluster * sector)
    wide = 32 if not table_sectors else 16 if clusters >= 4085 else 12
    return _Shape(per_cluster * sector, reserved * sector, table_size, root, root_size, data, clusters, wide, root_cluster)


class FatVolume:
    """A Volume. A node's number is its first cluster; names are short names in capitals, which all that firmware starts has."""

    def __init__(self, start: int, shape: _Shape) -> None:
        """Take where on the disk it begins, in bytes, and what its first sector says."""
        self._start = start
        self._shape = shape
        self._table = b""
        self._nodes = {ROOT: Node(ROOT, "directory", shape.root_size, None, None)}

    @property
    def root(self) -> int:
        """As Volume says."""
        return ROOT

    def nodes(self, numbers: Sequence[int]) -> Plan[Mapping[int, Node]]:
        """As Volume says: what a listing has named. Reads the table first, which all else needs."""
        if not self._table:
            place = (self._start + self._shape.table, min(self._shape.table_size, _MAX_TABLE))
            (self._table,) = yield Round(wanted=(place,), likely=(place,))
        return {number: self._nodes[number] for number in numbers if number in self._nodes}

    def listings(self, directories: Sequence[Node]) -> Plan[Mapping[int, Mapping[str, int]]]:
        """As Volume says; of each directory the first _MAX_DIRECTORY bytes."""
        wanted = [(node.number, place) for node in directories for place in self._clusters(node, _MAX_DIRECTORY)]
        places = tuple(place for _, place in wanted)
        answers = yield Round(wanted=places, likely=places)
        found: dict[int, dict[str, int]] = {node.number: {} for node in directories}
        for (number, _), raw in zip(wanted, answers, strict=False):
            for at in range(0, len(raw) - 31, 32):
                if raw[at] == 0:
                    break
                self._entry(raw[at : at + 32], found[number])
        return found

    def _entry(self, raw: bytes, names: dict[str, int]) -> None:
        """Take one directory entry, if it is of a file or a directory."""
        attributes = raw[11]
        if raw[0] in (0xE5, 0x2E) or attributes & 0x08:  # deleted, . and .., labels and parts of long names
            return
        high, low, size = struct.unpack_from("<H", raw, 20)[0], struct.unpack_from("<H", raw, 26)[0], struct.unpack_from("<I", raw, 28)[0]
        number = low | (high << 16 if self._shape.wide == 32 else 0)
        stem, extension = (part.decode("ascii", "replace").rstrip() for part in (raw[:8], raw[8:11]))
        if 2 <= number < self._shape.clusters + 2:
            kind = "directory" if attributes & 0x10 else "file"
            self._nodes.setdefault(number, Node(number, kind, size, None, None))
            names[f"{stem}.{extension}" if extension else stem] = number

    def spread(self, files: Sequence[Node]) -> Plan[Mapping[int, Sequence[Place]]]:
        """As Volume says; the table is at hand, so no round is needed."""
        yield from ()
        return {node.number: self._clusters(node, node.size) for node in files}

    def _clusters(self, node: Node, limit: int) -> list[Place]:
        """Return where the node's first `limit` bytes are, by the chain of its clusters."""
        shape = self._shape
        cluster = node.number
        if node.number == ROOT:
            if shape.wide != 32:
                return [(self._start + shape.root, min(shape.root_size, limit))]
            cluster = shape.root_cluster
        places: list[Place] = []
        for _ in range(min(_MAX_CLUSTERS, -(-limit // shape.cluster))):
            if not 2 <= cluster < shape.clusters + 2:
                break
            offset = self._start + shape.data + (cluster - 2) * shape.cluster
            if places and sum(places[-1]) == offset:
                places[-1] = places[-1][0], places[-1][1] + shape.cluster
            else:
                places.append((offset, shape.cluster))
            cluster = self._following(cluster)
        return places

    def _following(self, cluster: int) -> int:
        """Return the cluster after this one; 0 at the end, and where the table was not read."""
        wide = self._shape.wide
        if wide == 12:
            at = cluster * 3 // 2
            pair = int.from_bytes(self._table[at : at + 2], "little")
            return (pair >> 4 if cluster & 1 else pair & 0xFFF) if at + 2 <= len(self._table) else 0
        at = cluster * wide // 8
        return int.from_bytes(self._table[at : at + wide // 8], "little") & 0x0FFFFFFF if at + wide // 8 <= len(self._table) else 0

"""This module tells which libraries a program or a library needs, out of the parts of its ELF file that say so. Pure, and bounded by its input.

The dynamic linker reads the same: program headers at the file's beginning, the dynamic section near its end, and names near the beginning.
"""

import dataclasses
import struct
from typing import Final

from imagefs.units import KIB

HEAD: Final = 64 * KIB
"""Bytes from the file's start that hold the program headers, and mostly the names too."""

MAX_DYNAMIC: Final = 8 * KIB
MAX_NAMES: Final = 256 * KIB
"""Bytes of the string table that are looked at. Longer ones have the names of needed libraries anywhere; what is not found is left out."""

_MAX_HEADERS: Final = 64
_MAX_NEEDED: Final = 128
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ = 1, 5, 10


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """Where in a file its dynamic section is, in bytes, and how addresses become places in the file: (address, place, length)."""

    dynamic: int
    dynamic_size: int
    loads: tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Needs:
    """Where in a file the string table is, in bytes, and where in it the names of needed libraries begin."""

    names: int
    names_size: int
    starts: tuple[int, ...]


def parse_program(head: bytes) -> Program | None:
    """Return where the dynamic section is; None for what is no 64-bit little-endian ELF file, or needs no libraries."""
    if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
        return None
    (headers,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    if size < 56 or headers > HEAD:
        return None
    dynamic = None
    loads = []
    for index in range(min(count, _MAX_HEADERS)):
        at = headers + index * size
        if at + 56 > len(head):
            break
        kind, _, place, address, _, length = struct.unpack_from("<IIQQQQ", head, at)
        if kind == _PT_LOAD:
            loads.append((address, place, length))
        elif kind == _PT_DYNAMIC:
            dynamic = place, min(length, MAX_DYNAMIC)
    return Program(dynamic[0], dynamic[1], tuple(loads)) if dynamic and dynamic[1] else None


def parse_dynamic(program: Program, raw: bytes) -> Needs | None:
    """Return where the names of the needed libraries are, by the dynamic section; None if it names none."""
    starts: list[int] = []
    table = size = 0
    for at in range(0, len(raw) - 15, 16):
        tag, value = struct.unpack_from("<QQ", raw, at)
        if tag == 0:
            break
        if tag == _DT_NEEDED:
            starts.append(value)
        elif tag == _DT_STRTAB:
            table = value
        elif tag == _DT_STRSZ:
            size = value
    for address, place, length in program.loads:
        if address <= table < address + length and starts:
            return Needs(place + table - address, min(size, MAX_NAMES), tuple(starts[:_MAX_NEEDED]))
    return None


def parse_names(needs: Needs, raw: bytes) -> list[str]:
    """Return the names of the needed libraries, from the string table's bytes; only those that are names of files."""
    found = []
    for start in needs.starts:
        stop = raw.find(b"\0", start, start + 256)
        if start < len(raw) and stop > start:
            name = raw[start:stop].decode("ascii", "replace")
            if not set(name) & set("/*?{}<>") and name.isprintable() and name not in (".", ".."):
                found.append(name)
    return found

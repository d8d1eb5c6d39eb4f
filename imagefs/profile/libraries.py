"""This module follows programs to the libraries that they need, and those that these need: a plan, whose every level takes two or three rounds."""

from collections.abc import Sequence
from typing import Final

from imagefs.profile import elf
from imagefs.profile.elf import Needs, Program
from imagefs.profile.likely import LIBRARY_DIRECTORIES, program
from imagefs.profile.rounds import Place, Plan, Round
from imagefs.profile.volume import Volume
from imagefs.profile.walk import Aim, Match, aim, part, walk
from imagefs.units import KIB

_MAX_LEVELS: Final = 6
"""Libraries of libraries: those of systemd end at the fourth level."""

_MAX_LIBRARIES: Final = 400
_TAIL: Final = 64 * KIB
"""Bytes of a file's end that are asked for with its beginning, since the dynamic section is mostly there: it saves a round."""


def needed_libraries(volume: Volume, programs: Sequence[Match], seen: set[str]) -> Plan[None]:
    """Plan to find the libraries that these programs need; `seen` has the names that were looked for already, and gets the new ones."""
    level = [match for match in programs if match.places]
    for _ in range(_MAX_LEVELS):
        names = yield from _names(level)
        new = sorted(set(names) - seen)[: max(0, _MAX_LIBRARIES - len(seen))]
        if not new:
            return
        seen.update(new)
        level = yield from walk(volume, _aims(new))


def _aims(names: Sequence[str]) -> list[Aim]:
    """Return what finds these libraries wherever the dynamic linker looks for them; one pattern a directory for all."""
    group = "{" + ",".join(names) + "}"
    return [aim(f"{directory}/{group}", program) for directory in LIBRARY_DIRECTORIES]


def _names(matches: Sequence[Match]) -> Plan[list[str]]:
    """Plan to read which libraries these files need."""
    places = []
    for match in matches:
        places += [part(match.places, 0, elf.HEAD), part(match.places, max(0, match.node.size - _TAIL), _TAIL)]
    raw = yield from _read(places)
    heads, tails = raw[::2], raw[1::2]
    found = [(match, place) for match, head in zip(matches, heads, strict=True) if (place := elf.parse_program(head))]
    sections = yield from _dynamic(found, {match.node.number: tail for match, tail in zip(matches, tails, strict=True)})
    needs = [(match, need) for (match, each), raw in zip(found, sections, strict=True) if (need := elf.parse_dynamic(each, raw))]
    tables = yield from _tables(needs, {match.node.number: head for match, head in zip(matches, heads, strict=True)})
    return [name for (_, each), table in zip(needs, tables, strict=True) for name in elf.parse_names(each, table)]


def _dynamic(found: Sequence[tuple[Match, Program]], tails: dict[int, bytes]) -> Plan[list[bytes]]:
    """Plan to get the dynamic sections: out of the ends that are at hand, or by a round for all that are elsewhere."""
    return (
        yield from _pieces(
            [(match, each.dynamic, each.dynamic_size, max(0, match.node.size - _TAIL), tails[match.node.number]) for match, each in found]
        )
    )


def _tables(needs: Sequence[tuple[Match, Needs]], heads: dict[int, bytes]) -> Plan[list[bytes]]:
    """Plan to get the string tables: out of the beginnings that are at hand, or by a round for all that are longer."""
    return (yield from _pieces([(match, each.names, each.names_size, 0, heads[match.node.number]) for match, each in needs]))


def _pieces(asked: Sequence[tuple[Match, int, int, int, bytes]]) -> Plan[list[bytes]]:
    """Plan to get (match, offset, length) of files, where `length` bytes from the fourth on are at hand already."""
    at_hand = [
        raw[offset - first : offset - first + length] if first <= offset and offset + length <= first + len(raw) else None
        for _, offset, length, first, raw in asked
    ]
    missing = [part(match.places, offset, length) for (match, offset, length, _, _), raw in zip(asked, at_hand, strict=True) if raw is None]
    rest = iter((yield from _read(missing)) if missing else [])
    return [next(rest) if raw is None else raw for raw in at_hand]


def _read(groups: Sequence[Sequence[Place]]) -> Plan[list[bytes]]:
    """Plan to read groups of places in one round; returns each group's bytes joined."""
    answers = iter((yield Round(wanted=tuple(place for group in groups for place in group))))
    return [b"".join(next(answers, b"") for _ in group) for group in groups]

"""This module finds files by the patterns of their paths, in few rounds: all patterns go down the tree together, a level at a time.

A pattern is an absolute path whose parts may hold *, ? and {one,another}, be ** (this directory and those below it, to a depth of
DEEPEST), or hold <newest> (of the names that have a version there, the one with the highest). Symbolic links are followed, as the guest will.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Final

from imagefs.profile.rounds import Place, Plan, Round
from imagefs.profile.volume import Node, Volume
from imagefs.units import KIB

DEEPEST: Final = 3
"""Levels of directories that ** goes down."""

READ: Final = 64 * KIB
"""Bytes of a file whose content is asked for."""

MAX_LEVELS: Final = 40
"""Levels of a walk, links included: a path of links that go round ends here."""

MAX_LINKS: Final = 8
_SPECIAL: Final = frozenset("*?{")
_NOT_BELOW: Final = frozenset({".", "..", "test", "tests"})
"""Names that ** does not go down to: loops, and what comes with a package and nobody runs."""

MAX_STEPS: Final = 40_000
"""Steps of one walk in all: one is a pattern at a directory."""

MAX_FILES: Final = 12_000
"""Files that one walk finds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Aim:
    """What to look for: the pattern's parts, how much of a file is likely to be read, and whether its first READ bytes are asked for."""

    parts: tuple[str, ...]
    take: Callable[[int], Sequence[tuple[int, int]]]
    """By a file's size, its (offset, length) that are likely to be read; may go past its end."""

    content: bool = False


def aim(pattern: str, take: Callable[[int], Sequence[tuple[int, int]]], content: bool = False) -> Aim:
    """Return the aim that a pattern of a path says."""
    return Aim(tuple(part for part in pattern.split("/") if part), take, content)


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """A file that was found by `path` (the pattern's, with the names that there are), and its first bytes if they were asked for."""

    path: str
    aim: Aim
    node: Node
    places: tuple[Place, ...] = ()
    """Where all of it is, in the order of the file."""

    content: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """At the node `number`, which is at the real path `at`, go on with `parts`; `named` is how the pattern came here."""

    number: int
    at: tuple[str, ...]
    named: tuple[str, ...]
    parts: tuple[str, ...]
    aim: Aim
    links: int = 0
    levels: int = 0
    """Down in a ** already."""


def walk(volume: Volume, aims: Sequence[Aim]) -> Plan[list[Match]]:
    """Plan to find what the aims match, saying what is likely to be read on the way: directories, inodes and the files themselves."""
    going = _Walk(volume)
    steps = [_Step(volume.root, (), (), each.parts, each) for each in aims]
    for _ in range(MAX_LEVELS):
        if not steps:
            break
        steps = yield from going.level(steps)
    return (yield from going.contents())


class _Walk:
    """The state of one walk: what was seen of the tree, and what was found."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._nodes: dict[int, Node | None] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._places: dict[int, Sequence[Place]] = {}
        self._found: dict[tuple[int, int], Match] = {}
        self._done: set[tuple[int, tuple[str, ...], int]] = set()

    def level(self, steps: list[_Step]) -> Plan[list[_Step]]:
        """Plan one level: look at the steps' nodes, read the directories among them, tell the files, and return the next steps."""
        steps = [step for step in steps if self._is_new(step)]
        unseen = sorted({step.number for step in steps} - self._nodes.keys())
        if unseen:
            seen = yield from self._volume.nodes(unseen)
            self._nodes.update((number, seen.get(number)) for number in unseen)
        yield from self._files(steps)
        yield from self._directories(steps)
        links = yield from self._links(steps)
        following: list[_Step] = []
        for step in steps:
            node = self._nodes[step.number]
            if node is not None and node.kind == "directory":
                following += self._descend(step, self._names.get(node.number, {}))
            elif step.number in links:
                following += _follow(step, links[step.number], self._volume.root)
        return following

    def _is_new(self, step: _Step) -> bool:
        key = step.number, step.parts, id(step.aim)
        if key in self._done or len(self._done) >= MAX_STEPS:
            return False
        self._done.add(key)
        return True

    def _files(self, steps: list[_Step]) -> Plan[None]:
        """Plan to tell where the files are that end a pattern."""
        ends = [(step, node) for step in steps if not step.parts and (node := self._nodes[step.number]) is not None and node.kind == "file"]
        ends = ends[: max(0, MAX_FILES - len(self._found))]
        fresh = {node.number: node for step, node in ends if node.number not in self._places and (step.aim.take(node.size) or step.aim.content)}
        if fresh:
            self._places.update((yield from self._volume.spread(list(fresh.values()))))
        likely: list[Place] = []
        for step, node in ends:
            key = node.number, id(step.aim)
            if key not in self._found:
                self._found[key] = Match("/" + "/".join(step.named), step.aim, node, tuple(self._places.get(node.number, ())))
                for offset, length in step.aim.take(node.size):
                    likely += part(self._places.get(node.number, ()), offset, length)
        if likely:
            yield Round(likely=tuple(likely))

    def _directories(self, steps: list[_Step]) -> Plan[None]:
        """Plan to read the directories in which a pattern goes on."""
        fresh = {node.number: node for step in steps if step.parts and (node := self._nodes[step.number]) is not None and node.kind == "directory"}
        unread = [node for number, node in fresh.items() if number not in self._names]
        if unread:
            self._names.update((number, dict(names)) for number, names in (yield from self._volume.listings(unread)).items())

    def _links(self, steps: list[_Step]) -> Plan[dict[int, str]]:
        """Plan to find out what symbolic links point to; long targets are in a block of their own."""
        links = {node.number: node for step in steps if (node := self._nodes[step.number]) is not None and node.kind == "link"}
        known = {number: node.target for number, node in links.items() if node.target is not None}
        long = [node for number, node in links.items() if number not in known and 0 < node.size <= 4 * KIB]
        if long:
            spread = yield from self._volume.spread(long)
            places = {node.number: spread[node.number][0] for node in long if spread.get(node.number)}
            answers = yield Round(wanted=tuple(places.values()), likely=tuple(places.values()))
            for number, raw in zip(places, answers, strict=False):
                known[number] = raw[: links[number].size].decode("utf-8", "surrogateescape")
        return known

    def _descend(self, step: _Step, names: dict[str, int]) -> Iterable[_Step]:
        """Return where the step's pattern goes on from a directory with these names."""
        if not step.parts:
            return
        part, rest = step.parts[0], step.parts[1:]
        if part == "**":
            yield dataclasses.replace(step, parts=rest)
            if step.levels < DEEPEST:
                for name, number in names.items():
                    if name not in _NOT_BELOW:
                        yield dataclasses.replace(step, number=number, at=(*step.at, name), named=(*step.named, name), levels=step.levels + 1)
            return
        for name in _matching(part, names):
            named = step.named if part.startswith("\0") else (*step.named, name)  # what a link led through is not what was looked for
            yield dataclasses.replace(step, number=names[name], at=(*step.at, name), named=named, parts=rest)

    def contents(self) -> Plan[list[Match]]:
        """Plan to read the first bytes of the files whose content is asked for; returns all that was found."""
        asked = [(key, place) for key, match in self._found.items() if match.aim.content for place in part(match.places, 0, READ)]
        if asked:
            answers = yield Round(wanted=tuple(place for _, place in asked))
            for (key, _), raw in zip(asked, answers, strict=False):
                match = self._found[key]
                self._found[key] = dataclasses.replace(match, content=(match.content + raw)[: min(match.node.size, READ)])
        return list(self._found.values())


def _follow(step: _Step, target: str, root: int) -> list[_Step]:
    """Return the step that goes from the root to what a link points to, and on; none if there were too many links, or it points nowhere."""
    if step.links >= MAX_LINKS or not target or "\0" in target:
        return []
    parts: list[str] = [] if target.startswith("/") else list(step.at[:-1])
    for part in target.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    literal = tuple("\0" + part for part in parts)  # names, not patterns
    return [dataclasses.replace(step, number=root, at=(), parts=literal + step.parts, links=step.links + 1, named=step.named)]


def _matching(part: str, names: dict[str, int]) -> list[str]:
    """Return the names that a part of a pattern matches."""
    if part.startswith("\0"):
        return [part[1:]] if part[1:] in names else []
    if "<newest>" in part:
        before, _, after = part.partition("<newest>")
        least = len(before) + len(after)
        fitting = [name for name in names if name.startswith(before) and name.endswith(after) and len(name) > least and name[len(before)].isdigit()]
        return [newest(fitting)] if fitting else []
    if not _SPECIAL.isdisjoint(part):
        fits = _compiled(part)
        return [name for name in names if fits(name) and name not in (".", "..")]
    return [part] if part in names else []


@lru_cache(maxsize=512)
def _compiled(part: str) -> Callable[[str], object]:
    """Return what tells whether a name matches a part of a pattern; parts are imagefs's own, so they are few and sound."""
    pieces = re.split(r"([*?]|\{[^}]*\})", part)
    return re.compile("".join(_expression(piece) for piece in pieces), re.DOTALL).fullmatch


def _expression(piece: str) -> str:
    if piece in ("*", "?"):
        return ".*" if piece == "*" else "."
    if piece.startswith("{"):
        return "(?:" + "|".join("".join(_expression(each) for each in re.split(r"([*?])", name)) for name in piece[1:-1].split(",")) + ")"
    return re.escape(piece)


def newest(names: Sequence[str]) -> str:
    """Return the name with the highest version: numbers count as numbers, text as text."""
    return max(
        names,
        key=lambda name: [(1, int(piece[:18]), "") if piece.isdigit() and piece.isascii() else (0, 0, piece) for piece in re.split(r"(\d+)", name)],
    )


def part(places: Iterable[Place], offset: int, length: int) -> list[Place]:
    """Return where `length` bytes from `offset` on of a file at these places are, as far as it goes. Holes are not known: programs have none."""
    found = []
    for start, count in places:
        if length <= 0:
            break
        if offset < count:
            taken = min(count - offset, length)
            found.append((start + offset, taken))
            length -= taken
        offset = max(0, offset - count)
    return found

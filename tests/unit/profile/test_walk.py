"""Tests of finding files by patterns of paths, in a tree of the test's own."""

from collections.abc import Mapping, Sequence

import pytest

from imagefs.profile.likely import nothing, whole
from imagefs.profile.rounds import Place, Plan, Round, side_by_side
from imagefs.profile.volume import Node
from imagefs.profile.walk import MAX_FILES, aim, newest, part, walk
from imagefs.units import KIB
from tests.support.plans import Course, run_plan

Tree = dict[str, "Tree | str | int"]


class TreeVolume:
    """A Volume of nested dicts: a dict is a directory, text a link, a number a file of that size, whose place is its number times 1 MiB."""

    def __init__(self, tree: Tree) -> None:
        self.root = 0
        self.things: list[Tree | str | int] = [tree]
        self.children: dict[int, dict[str, int]] = {}
        self._number(0)

    def _number(self, number: int) -> None:
        thing = self.things[number]
        if isinstance(thing, dict):
            self.children[number] = {".": number}
            for name, child in thing.items():
                self.things.append(child)
                self.children[number][name] = len(self.things) - 1
                self._number(len(self.things) - 1)

    def nodes(self, numbers: Sequence[int]) -> Plan[Mapping[int, Node]]:
        yield Round(wanted=tuple((number, 1) for number in numbers))
        found = {}
        for number in numbers:
            thing = self.things[number]
            kind = "directory" if isinstance(thing, dict) else "link" if isinstance(thing, str) else "file"
            found[number] = Node(number, kind, thing if isinstance(thing, int) else 10, thing if isinstance(thing, str) else None, None)
        return found

    def listings(self, directories: Sequence[Node]) -> Plan[Mapping[int, Mapping[str, int]]]:
        yield Round(wanted=tuple((node.number, 1) for node in directories))
        return {node.number: self.children[node.number] for node in directories}

    def spread(self, files: Sequence[Node]) -> Plan[Mapping[int, Sequence[Place]]]:
        yield from ()
        return {node.number: [(node.number << 20, node.size)] for node in files}


def paths(tree: Tree, *patterns: str) -> tuple[list[str], Course]:
    found, course = run_plan(walk(TreeVolume(tree), [aim(pattern, whole) for pattern in patterns]), b"")
    return sorted(match.path for match in found), course


TREE: Tree = {
    "usr": {
        "lib": {"libc.so.6": "libc-2.so", "libc-2.so": 9, "systemd": {"systemd": 5}, "modules": {"6.1.0-9": {"a.ko": 1}, "6.1.0-10": {"a.ko": 2}}}
    },
    "lib": "usr/lib",
    "sbin": {"init": "/lib/systemd/systemd"},
    "deep": {"one": {"two": {"three": {"four": {"x": 1}}, "x": 1}, "x": 1, "test": {"x": 1}}, "x": 1},
    "loop": "loop",
    "round": {"up": "../round"},
}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/usr/lib/systemd/systemd", ["/usr/lib/systemd/systemd"]),
        ("/usr/lib/lib*", ["/usr/lib/libc-2.so"]),
        ("/usr/lib/{libm,libc}.so*", ["/usr/lib/libc.so.6"]),
        ("/lib/libc-?.so", ["/lib/libc-2.so"]),
        ("/sbin/init", ["/sbin/init"]),
        ("/lib/modules/<newest>/*.ko", ["/lib/modules/6.1.0-10/a.ko"]),
        ("/deep/**/x", ["/deep/one/two/x", "/deep/one/x", "/deep/x"]),
        ("/loop/x", []),
        ("/round/up/up/up/up/up/up/up/up/up/up/x", []),
        ("/nowhere/*", []),
        ("/usr/lib/libc.so.6/below/a/file", []),
    ],
)
def test_patterns_find_files(pattern: str, expected: list[str]) -> None:
    """Globs, alternatives, newest versions, trees and links lead where they lead in the guest, and loops lead nowhere."""
    assert paths(TREE, pattern)[0] == expected


def test_many_patterns_take_as_many_rounds_as_the_deepest() -> None:
    """All go down together: two rounds a level, however many patterns and files."""
    tree: Tree = {f"d{index}": {f"e{index}": {f"f{number}": 1 for number in range(50)}} for index in range(20)}
    found, course = paths(tree, *(f"/d{index}/e{index}/*" for index in range(20)))
    assert len(found) == 1000
    assert len(course.rounds) <= 10


def test_a_file_is_told_once_a_pattern_and_where_the_pattern_takes_it() -> None:
    """What is likely is what `take` says of each file; a pattern that takes nothing names the file only."""
    found, course = run_plan(walk(TreeVolume({"a": 5000}), [aim("/a", lambda size: ((1000, 100), (size - 10, 50))), aim("/a", nothing)]), b"")
    assert course.likely == [((1 << 20) + 1000, 100), ((1 << 20) + 4990, 10)]
    assert len(found) == 2


def test_a_huge_tree_is_walked_in_part() -> None:
    """What one walk finds is bounded."""
    tree: Tree = {str(index): 1 for index in range(MAX_FILES + 100)}
    assert len(paths(tree, "/*")[0]) == MAX_FILES


def test_the_newest_of_versions_is_by_number() -> None:
    """10 is above 9, and digits that are none of ASCII do not matter."""
    assert newest(["6.1.0-9-amd64", "6.1.0-10-amd64", "5.99"]) == "6.1.0-10-amd64"
    assert newest(["6.²", "6.1"]) in ("6.²", "6.1")


def test_a_part_of_a_file_spans_its_places() -> None:
    """Offsets count through the places in the file's order."""
    places = [(100, 10), (500, 10), (900, 10)]
    assert part(places, 5, 10) == [(105, 5), (500, 5)]
    assert part(places, 15, 100) == [(505, 5), (900, 10)]
    assert part(places, 30, 5) == []
    assert part(places, 0, 0) == []


def test_plans_side_by_side_take_the_rounds_of_the_longest() -> None:
    """Each gets its own answers, whatever the others want, and ends on its own."""

    def counting(rounds: int) -> Plan[list[bytes]]:
        got: list[bytes] = []
        for index in range(rounds):
            got += yield Round(wanted=((rounds * KIB + index, 1),) * index, likely=((rounds, 1),))
        return got

    disk = bytes(KIB) + b"a" * KIB + b"b" * KIB + b"c" * KIB
    results, course = run_plan(side_by_side([counting(3), counting(0), counting(1), counting(2)]), disk)
    assert results == [[b"c"] * 3, [], [], [b"b"]]
    assert len(course.rounds) == 3

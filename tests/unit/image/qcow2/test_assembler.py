"""Guest units put together from pieces."""

import itertools
import random

import pytest

from imagefs.image.qcow2.assembler import UnitAssembler
from imagefs.units import UNIT, unit_count
from tests.support.qcow2 import pattern

SIZE = 5 * UNIT + 777


@pytest.mark.parametrize("seed", range(20))
def test_assembler_delivers_each_unit_once_when_whole(seed: int) -> None:
    """Whatever the pieces and their order, each unit comes once, with its bytes."""
    chance = random.Random(seed)
    disk = bytearray(pattern(SIZE, seed))
    cuts = sorted({0, SIZE, *(chance.randrange(SIZE) for _ in range(chance.randrange(30)))})
    pieces = [(start, stop, chance.random() < 0.3) for start, stop in itertools.pairwise(cuts)]
    for start, stop, zero in pieces:
        if zero:
            disk[start:stop] = bytes(stop - start)
    chance.shuffle(pieces)
    units: dict[int, bytes | None] = {}
    present = 0

    def deliver(unit: int, body: bytes | None) -> None:
        assert unit not in units
        units[unit] = body

    assembler = UnitAssembler(SIZE, deliver)
    for start, stop, zero in pieces:
        if zero:
            assembler.zero(start, stop - start)
        else:
            assembler.put(start, memoryview(disk)[start:stop])
        present += stop - start
        assert len(units) * UNIT <= present + UNIT
    assert sorted(units) == list(range(unit_count(SIZE)))
    for unit, body in units.items():
        expected = bytes(disk[unit * UNIT : (unit + 1) * UNIT])
        same = not any(expected) if body is None else body == expected
        assert same, unit


def test_assembler_delivers_zeros_as_none() -> None:
    """A unit of zeros only takes no memory, even in pieces."""
    units: dict[int, bytes | None] = {}
    assembler = UnitAssembler(SIZE, units.__setitem__)
    assembler.zero(0, UNIT + 10)
    assembler.zero(UNIT + 10, UNIT - 10)
    assert units == {0: None, 1: None}


def test_assembler_does_not_copy_whole_units() -> None:
    """Bytes that are a unit already, as with 64 KiB clusters, are delivered as they are."""
    units: dict[int, bytes | None] = {}
    body = pattern(UNIT)
    UnitAssembler(SIZE, units.__setitem__).put(2 * UNIT, memoryview(body))
    assert units[2] is body

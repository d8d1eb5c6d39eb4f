"""Whole objects are read in order, several requests at a time."""

import threading
from collections.abc import Iterable

import pytest
import trio

from imagefs.errors import StoreUnavailable
from imagefs.hydration.stream import CHUNK_UNITS, IN_FLIGHT, stream
from imagefs.units import UNIT
from tests.support.hydrating import until


class Units:
    """Stored units whose bytes are their number; those of `held` wait for the gate, and `broken` raises."""

    def __init__(self, units: int) -> None:
        self.units = units
        self.started: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken = -1

    def stream_units(self, first_unit: int, count: int) -> Iterable[bytes]:
        self.started.append(first_unit)
        assert self.gate.wait(60)
        for unit in range(first_unit, first_unit + count):
            if unit == self.broken:
                raise StoreUnavailable("broken")
            yield unit.to_bytes(4, "little")


async def at_once(amount: int) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("units", [0, 1, CHUNK_UNITS, 3 * CHUNK_UNITS + 5])
async def test_all_units_come_in_order(units: int) -> None:
    """Each unit comes once, and in order, and every request was let pass by its size."""
    found: list[int] = []
    asked: list[int] = []

    async def take(first_unit: int, bodies: list[bytes]) -> None:
        assert first_unit == len(found)
        found.extend(int.from_bytes(body, "little") for body in bodies)

    async def turn(amount: int) -> None:
        asked.append(amount)
        await trio.lowlevel.checkpoint()

    await stream(Units(units), take, turn)
    assert found == list(range(units))
    assert sum(asked) == units * UNIT


async def test_only_so_many_at_a_time() -> None:
    """What is in flight is bounded, so that memory is, too."""
    stored = Units(20 * CHUNK_UNITS)
    stored.gate.clear()

    async def take(first_unit: int, bodies: list[bytes]) -> None:
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream, stored, take, at_once)
        await until(lambda: len(stored.started) == IN_FLIGHT, 60)
        await trio.sleep(0.05)
        assert len(stored.started) == IN_FLIGHT
        stored.gate.set()


@pytest.mark.parametrize("where", ["store", "take", "turn"])
async def test_what_fails_is_raised_as_it_is(where: str) -> None:
    """An error of the store, of who takes the bytes or of who lets requests pass ends the stream, and comes out alone."""
    stored = Units(8 * CHUNK_UNITS)
    stored.broken = 5 * CHUNK_UNITS if where == "store" else -1
    taken: list[int] = []

    async def take(first_unit: int, bodies: list[bytes]) -> None:
        taken.append(first_unit)
        if where == "take" and first_unit:
            raise StoreUnavailable("taken wrong")

    async def turn(amount: int) -> None:
        if where == "turn" and taken:
            raise StoreUnavailable("no turn")

    with pytest.raises(StoreUnavailable):
        await stream(stored, take, turn)
    assert 0 < len(taken) < 8


async def test_cancelling_ends_it() -> None:
    """Nothing is asked for any more once it was cancelled."""
    stored = Units(8 * CHUNK_UNITS)
    with trio.CancelScope() as scope:

        async def take(first_unit: int, bodies: list[bytes]) -> None:
            scope.cancel()
            await trio.lowlevel.checkpoint()

        await stream(stored, take, at_once)
    assert scope.cancelled_caught
    assert len(stored.started) <= IN_FLIGHT

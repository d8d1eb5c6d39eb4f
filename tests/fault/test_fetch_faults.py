"""Transfers that break, stall, flip bits and end early: right bytes in the end, or an error that says why."""

import itertools
from collections.abc import Callable

import pytest
import trio

from imagefs.counters import COUNTERS
from imagefs.errors import StoreBusy, StoreRefused, StoreUnavailable, VersionChanged, WrongBytes
from imagefs.fetch.backoff import RetryPolicy
from imagefs.fetch.digests import UnitDigests
from imagefs.fetch.filler import ObjectFiller
from imagefs.fetch.stored import StoredObject
from imagefs.units import UNIT
from tests.support.fetched import FakeClock, Piece, ScriptedObject, broken, hash_tree, noise

CONTENT = noise(6 * UNIT + 500)
Script = Callable[[int, int, int], list[Piece] | None]


class Fetched:
    """An object that follows a script, and a StoredObject over it with a fake clock."""

    def __init__(self, script: Script) -> None:
        self.clock = FakeClock()
        self.object = ScriptedObject(CONTENT, self.clock)
        self.object.script = script
        tree, digests = hash_tree(CONTENT)
        self.stored = StoredObject(
            self.object,
            UnitDigests(tree, len(CONTENT), lambda page: digests, "debian"),
            RetryPolicy(),
            clock=self.clock,
            chance=lambda: 0.5,
            sleep=self.clock.sleep,
        )

    def all(self) -> bytes:
        return b"".join(self.stored.stream_units(0, 100))


def flipped(start: int, stop: int, at: int) -> bytes:
    """Return a range of the content with one bit wrong at offset `at`."""
    body = bytearray(CONTENT[start:stop])
    body[at - start] ^= 4
    return bytes(body)


def test_broken_transfer_goes_on_where_it_broke() -> None:
    """The second request begins at the first unit that was not whole."""
    fetched = Fetched(lambda attempt, offset, length: [CONTENT[: 2 * UNIT + 700], broken()] if attempt == 0 else None)
    retries = COUNTERS.store_retries
    assert fetched.all() == CONTENT
    assert fetched.object.requests == [(0, len(CONTENT)), (2 * UNIT, len(CONTENT) - 2 * UNIT)]
    assert COUNTERS.store_retries == retries + 1
    assert fetched.clock.slept == [0.05]


def test_short_body_counts_as_broken() -> None:
    """A body that ends early without an error is not taken for the end of the object."""
    fetched = Fetched(lambda attempt, offset, length: [CONTENT[offset : offset + UNIT]] if attempt < 3 else None)
    assert fetched.all() == CONTENT
    assert [offset // UNIT for offset, _ in fetched.object.requests] == [0, 1, 2, 3]


def test_broken_after_every_unit() -> None:
    """Progress starts the deadline anew: a bad link is slow and not fatal."""
    fetched = Fetched(lambda attempt, offset, length: [50.0, CONTENT[offset : min(offset + UNIT, offset + length)], broken()])
    assert fetched.all() == CONTENT
    assert fetched.clock.now > 6 * 50


def test_deadline_without_progress() -> None:
    """A store that stays away is an error after the deadline, which tells object, offset, time, tries and the last reason."""
    fetched = Fetched(lambda attempt, offset, length: [broken()])
    errors = COUNTERS.store_errors
    with pytest.raises(StoreUnavailable, match=r"debian.*offset 0 .* s and \d+ tries.*the connection broke"):
        fetched.all()
    assert 50 < fetched.clock.now < 60
    assert max(fetched.clock.slept) == 2.5
    assert COUNTERS.store_errors == errors + 1


def test_stalls_count_towards_the_deadline() -> None:
    """A store that accepts requests and sends nothing is given up too."""
    fetched = Fetched(lambda attempt, offset, length: [25.0, broken()])
    with pytest.raises(StoreUnavailable):
        fetched.all()
    assert len(fetched.object.requests) == 3


@pytest.mark.parametrize("error", [VersionChanged("another version"), StoreRefused("no such key")])
def test_final_errors_are_not_retried(error: Exception) -> None:
    """What cannot pass ends the fetch at once, with the units before it delivered."""
    fetched = Fetched(lambda attempt, offset, length: [CONTENT[:UNIT], error])
    units = fetched.stored.stream_units(0, 100)
    assert next(units) == CONTENT[:UNIT]
    with pytest.raises(type(error)):
        next(units)
    assert len(fetched.object.requests) == 1


def test_flipped_bit_heals() -> None:
    """A bit that flips on the way costs one more request and is never seen."""
    fetched = Fetched(lambda attempt, offset, length: [flipped(0, len(CONTENT), 3 * UNIT + 9)] if attempt == 0 else None)
    assert fetched.all() == CONTENT
    assert [offset // UNIT for offset, _ in fetched.object.requests] == [0, 3]


def test_wrong_bytes_in_the_store_are_refused() -> None:
    """Bytes that are wrong each time are an error that names image and offset; what comes before them is served."""
    fetched = Fetched(lambda attempt, offset, length: [flipped(offset, offset + length, 3 * UNIT + 9)])
    units = fetched.stored.stream_units(0, 100)
    assert b"".join(itertools.islice(units, 3)) == CONTENT[: 3 * UNIT]
    with pytest.raises(WrongBytes, match=rf"debian.*{3 * UNIT}"):
        next(units)
    assert len(fetched.object.requests) == 3


def test_different_bits_flip_each_time() -> None:
    """On a link that damages one unit of each transfer every transfer still gets further, but for the one of the last unit alone."""
    fetched = Fetched(lambda attempt, offset, length: [flipped(offset, offset + length, min(offset + UNIT + attempt, offset + length - 1))])
    with pytest.raises(WrongBytes):
        fetched.all()
    assert [offset // UNIT for offset, _ in fetched.object.requests] == [0, 1, 2, 3, 4, 5, 6, 6]


def test_too_many_bytes_are_refused() -> None:
    """A store that ignores the range and sends everything is not believed."""
    fetched = Fetched(lambda attempt, offset, length: [CONTENT])
    with pytest.raises(WrongBytes, match="more than"):
        list(fetched.stored.stream_units(1, 2))


def test_close_ends_pauses() -> None:
    """Closing the object makes a fetch that waits for the store give up."""
    fetched = Fetched(lambda attempt, offset, length: [broken()])
    units = StoredObject(fetched.object, None, RetryPolicy(first=1000.0, cap=1000.0), chance=lambda: 0.01)
    units.close()
    with pytest.raises(StoreUnavailable, match=r"given up|no bytes"):
        list(units.stream_units(0, 1))


async def test_a_cancelled_fill_does_not_wait_for_the_store() -> None:
    """While the store is away a cancelled fill ends at its next pause, long before the deadline."""
    fetched = Fetched(lambda attempt, offset, length: [broken()])
    filler = ObjectFiller(StoredObject(fetched.object, None, RetryPolicy(deadline=1e9, first=1e6, cap=1e6)))
    delivered: list[int] = []
    with trio.move_on_after(0.1) as scope:
        await filler.fill(0, 1, lambda unit, body: delivered.append(unit))
    assert scope.cancelled_caught
    assert delivered == []


def test_digests_that_are_away_are_waited_for() -> None:
    """A store that has the data but cannot give the digests for a while delays the units, and no more."""
    tree, digests = hash_tree(CONTENT)
    clock = FakeClock()
    answers: list[bytes | Exception] = [broken(), broken(), digests]

    def load(page: int) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    stored = StoredObject(ScriptedObject(CONTENT), UnitDigests(tree, len(CONTENT), load, "debian"), RetryPolicy(), clock=clock, sleep=clock.sleep)
    assert b"".join(stored.stream_units(0, 100)) == CONTENT
    assert len(clock.slept) == 2


def test_a_store_that_asks_to_be_left_alone_is() -> None:
    """Retry-After is waited for before the next try, and what a busy store is given at once is halved."""
    clock = FakeClock()
    source = ScriptedObject(CONTENT, clock)
    source.script = lambda attempt, offset, length: [StoreBusy("slow down", 3.0)] if attempt == 0 else None
    stored = StoredObject(source, None, RetryPolicy(), clock=clock, chance=lambda: 0.5, sleep=clock.sleep)
    limit = stored.traffic.limit
    assert b"".join(stored.stream_units(0, 100)) == CONTENT
    assert clock.slept == [3.05]
    assert stored.traffic.limit == limit // 2

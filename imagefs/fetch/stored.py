"""This module is an object of the store as the layers above want it: its bytes verified, and broken transfers resumed."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

import trio

from imagefs.counters import COUNTERS
from imagefs.errors import ImagefsError, StoreBusy, StoreUnavailable, WrongBytes
from imagefs.fetch.backoff import Chance, Clock, Retries, RetryPolicy
from imagefs.fetch.digests import UnitDigests
from imagefs.fetch.traffic import Traffic
from imagefs.store.protocol import DataObject
from imagefs.store.tree import PAGE_UNITS
from imagefs.units import UNIT, unit_count

SLICE: Final = 0.5
"""Seconds after which a pause looks whether anybody still waits for it: umount does not wait for a store that is away."""

WRONG_TRIES: Final = 3
"""Times that a unit is fetched before its bytes are called wrong: a bit that flipped on the way heals, one in the store does not."""


class StoredObject:
    """One object at one version. Thread-safe: any number of threads may stream at once, each over a connection of its own.

    Invariant: no byte leaves here that fails its digest, if there are digests; and units leave in order, each once.
    """

    def __init__(
        self,
        source: DataObject,
        digests: UnitDigests | None,
        policy: RetryPolicy,
        *,
        name: str | None = None,
        clock: Clock = time.monotonic,
        chance: Chance = random.random,
        sleep: Callable[[float], object] | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        """Take the pinned object, what proves its units (None: nothing does), how long to try, and the image's name.

        `traffic` is that of the whole store; without it the object counts as a store of its own. The rest is for tests.
        """
        self._name = name if digests is None else digests.name
        self._source = source
        self._digests = digests
        self._policy = policy
        self._clock = clock
        self._chance = chance
        self._closed = threading.Event()
        self._sleep = sleep if sleep is not None else self._wait
        self.traffic = traffic if traffic is not None else Traffic()
        """What is fetched from the object's store."""
        self.size = source.size
        """Bytes in the object."""
        self.units = unit_count(source.size)
        """Units in the object; the last one may be short."""

    @property
    def name(self) -> str:
        """What messages call the object."""
        return f"image {self._name}" if self._name is not None else f"object {self.path or ''} of version {self.version}"

    @property
    def version(self) -> str:
        """The version that every read is pinned to."""
        return self._source.version

    @property
    def path(self) -> Path | None:
        """The local file that may be read in place, if there is one."""
        return self._source.path

    def close(self) -> None:
        """End this: fetches under way give up at their next unit or try instead of waiting, and raise StoreUnavailable."""
        self._closed.set()

    def stream_units(self, first_unit: int, count: int) -> Generator[bytes, None, None]:
        """Yield units first_unit, first_unit+1, ... in order, `count` of them or up to the object's end; one `bytes` per unit.

        Blocks. A transfer that breaks goes on at the first unit not yet yielded. Raises StoreUnavailable after the policy's
        deadline without progress, WrongBytes if a unit fails its digest each time, VersionChanged and StoreRefused at
        once. Closing the generator early drops the connection. In a thread of trio's it raises trio.Cancelled soon after
        the task that waits for the thread is cancelled.
        """
        unit, end = first_unit, min(first_unit + count, self.units)
        retries = Retries(self._policy, self._clock, self._chance)
        wrong = 0
        while unit < end:
            try:
                with contextlib.closing(self._attempt(unit, end)) as bodies:
                    for body in bodies:
                        yield body
                        # Only now: the time that the caller took for this unit is not the store's.
                        unit, wrong = unit + 1, 0
                        retries.progressed()
            except StoreUnavailable as error:
                self._pause(retries, unit, error)
            except WrongBytes:
                wrong += 1
                if wrong == WRONG_TRIES:
                    COUNTERS.store_errors += 1
                    raise
                COUNTERS.store_retries += 1
            except ImagefsError:
                COUNTERS.store_errors += 1
                raise

    def verify_unit(self, unit: int, body: bytes) -> None:
        """Return if `body` is unit number `unit`, or if nothing can tell. Raises WrongBytes, and StoreErrors of the digests."""
        if self._digests is not None:
            self._digests.verify(unit, body)

    def nonzero_units(self, first_unit: int, count: int) -> list[int]:
        """Return those of `count` units from `first_unit` on, up to the object's end, that digests do not prove to be zeros.

        Blocks while pages of digests are fetched. Raises StoreErrors; without digests no unit is known to be zeros.
        """
        units = range(first_unit, min(first_unit + count, self.units))
        digests = self._digests
        if digests is None:
            return list(units)
        nonzero = []
        for unit in units:
            if unit % PAGE_UNITS == 0:
                self._check_wanted()
            if not digests.is_zero(unit):
                nonzero.append(unit)
        return nonzero

    def known_zeros(self, first_unit: int, count: int) -> list[int]:
        """Return those of `count` units that digests which are at hand prove to be all zeros. Does not wait."""
        return self._digests.known_zeros(first_unit, count) if self._digests is not None else []

    def missing_pages(self, first_unit: int, count: int) -> list[int]:
        """Return the pages of digests that proving `count` (1 or more) units takes, and that nobody has asked for yet. Does not wait."""
        return self._digests.missing_pages(first_unit, count) if self._digests is not None else []

    def load_page(self, page: int) -> None:
        """Fetch a page of digests; a page that cannot be had is no error here, but to who then proves a unit by it. Blocks."""
        if self._digests is not None:
            with contextlib.suppress(ImagefsError):
                self._digests.load(page)

    def confirm(self) -> None:
        """Return if the store has the object at the pinned version now. Blocks. Raises VersionChanged and other StoreErrors."""
        with contextlib.closing(_as_generator(self._source.stream(0, min(1, self.size)))) as pieces:
            for _ in pieces:
                pass

    def _attempt(self, unit: int, end: int) -> Generator[bytes, None, None]:
        """Yield the verified units of one ranged GET. Raises StoreUnavailable if it ends before unit `end`."""
        offset = unit * UNIT
        length = min(end * UNIT, self.size) - offset
        self._check_wanted()
        meter = _Meter(self._clock)
        self.traffic.asked()
        try:
            with contextlib.closing(_as_generator(self._source.stream(offset, length))) as pieces:
                for body in cut_units(meter.counted(pieces), length, self.name):
                    meter.arrived()
                    self.verify_unit(unit, body)
                    yield body
                    self._check_wanted()
                    unit += 1
                    meter.resume()
            if unit < end:
                raise StoreUnavailable(f"{self.name}: the transfer of {length} bytes from offset {offset} ended before offset {unit * UNIT + UNIT}")
        except StoreUnavailable as error:
            self.traffic.failed(error)
            raise
        finally:
            self.traffic.ended(meter.size, meter.first_unit, meter.gap)

    def _pause(self, retries: Retries, unit: int, error: StoreUnavailable) -> None:
        """Sleep before the next try. Raises StoreUnavailable if there is none."""
        pause = retries.next_pause(error.retry_after if isinstance(error, StoreBusy) else 0.0)
        if pause is None or self._closed.is_set():
            COUNTERS.store_errors += 1
            raise StoreUnavailable(
                f"{self.name}: no bytes at offset {unit * UNIT} for {retries.stalled():.0f} s and {retries.failures} tries; the last one: {error}"
            ) from error
        COUNTERS.store_retries += 1
        self._sleep(pause)

    def _wait(self, pause: float) -> None:
        end = time.monotonic() + pause
        while (rest := end - time.monotonic()) > 0 and not self._closed.wait(min(rest, SLICE)):
            self._check_wanted()

    def _check_wanted(self) -> None:
        """Raise if nobody waits for the bytes any more."""
        if self._closed.is_set():
            raise StoreUnavailable(f"{self.name}: given up, because it is being closed")
        with contextlib.suppress(RuntimeError):  # not a thread of trio's: then nobody can cancel it
            trio.from_thread.check_cancelled()


def cut_units(pieces: Iterator[bytes], length: int, origin: str) -> Iterator[bytes]:
    """Yield what `pieces` bring, cut into units: `length` bytes at most, the last unit as short as that leaves it.

    A stream that ends early yields the whole units that it brought. Raises WrongBytes, naming `origin`, if it brings more than `length`.
    """
    pending: list[bytes] = []
    present = 0  # bytes in `pending`
    remaining = length  # bytes not yet yielded
    for piece in pieces:
        pending.append(piece)
        present += len(piece)
        if present > remaining:
            raise WrongBytes(f"{origin}: the store sent more than the {length} bytes that were asked for")
        if present < min(UNIT, remaining):
            continue
        # One join per unit or more, not one copy per piece: pieces are as small as a network packet.
        joined = b"".join(pending)
        start = 0
        while remaining and present - start >= min(UNIT, remaining):
            body = joined[start : start + UNIT]
            start += len(body)
            remaining -= len(body)
            yield body
        pending, present = [joined[start:]], present - start


class _Meter:
    """What one request brought, and how fast: seconds until its first unit, and the longest ones between two, None before there are any."""

    def __init__(self, clock: Clock) -> None:
        self.size = 0
        self.first_unit: float | None = None
        self.gap: float | None = None
        self._clock = clock
        self._since = clock()

    def counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Pass pieces on, counting their bytes as they arrive."""
        for piece in pieces:
            self.size += len(piece)
            yield piece

    def arrived(self) -> None:
        """Note that a unit is whole."""
        waited = self._clock() - self._since
        if self.first_unit is None:
            self.first_unit = waited
        elif self.gap is None or waited > self.gap:
            self.gap = waited

    def resume(self) -> None:
        """Note that the next unit is waited for: what was done with the last one is not the store's time."""
        self._since = self._clock()


def _as_generator(pieces: Iterator[bytes]) -> Generator[bytes, None, None]:
    """Yield from an iterator that may or may not be a generator, so that it can be closed either way."""
    try:
        yield from pieces
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()

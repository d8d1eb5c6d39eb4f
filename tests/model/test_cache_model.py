"""The cache against a bytearray: whatever is read, evicted, damaged and restarted in whatever order, the bytes are right and the budget holds."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from imagefs.cache.cache import UnitCache
from imagefs.cache.directory import cache_name
from imagefs.cache.unit_map import ENTRY, entry_offset
from imagefs.errors import StoreUnavailable
from imagefs.units import MIB, UNIT
from tests.support.caching import IMAGE, OTHER_IMAGE, Caches, HeldFiller, LoopThread, settled, started
from tests.support.fetched import noise

# Four regions and a bit: data, zeros that cross a region's end, data with a short last unit.
CONTENT = noise(28 * UNIT) + bytes(10 * UNIT) + noise(30 * UNIT + 12_345)
UNITS = -(-len(CONTENT) // UNIT)
LIMITS = [0, 200_000, MIB, 2 * MIB, 3 * MIB + 77, 64 * MIB]
"""From "nothing fits" over "less than the image" to "everything"."""

units = st.integers(0, UNITS - 1)


class CacheModel(RuleBasedStateMachine):
    """One node's cache with two images, of which the second is there to compete for room."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.loop = LoopThread()
        self.limit = 64 * MIB
        self._start()

    def _start(self) -> None:
        self.filler = HeldFiller(CONTENT)
        self.caches, self.cache = self.loop.run(self._open)
        self.rival: UnitCache | None = None

    async def _open(self) -> tuple[Caches, UnitCache]:
        caches = await started(self.path, self.loop.nursery, limit=self.limit, memory=2 * MIB)
        return caches, await caches.open(self.filler)

    def _stop(self) -> None:
        async def stop() -> None:
            await settled(self.cache)
            if self.rival is not None:
                await settled(self.rival)
            self.caches.root.close()

        self.loop.run(stop)

    def teardown(self) -> None:
        self._stop()
        self.loop.stop()
        shutil.rmtree(self.path)

    @rule(offset=st.integers(0, len(CONTENT) + UNIT), length=st.one_of(st.integers(0, 5000), st.integers(0, 2 * MIB)))
    def read(self, offset: int, length: int) -> None:
        assert self.loop.run(self.cache.read, offset, length) == CONTENT[offset : offset + length]

    @rule(offset=st.integers(0, len(CONTENT) + UNIT), length=st.integers(0, MIB))
    def read_inline(self, offset: int, length: int) -> None:
        async def read() -> bytes | bytearray | None:
            return self.cache.read_nowait(offset, length)

        body = self.loop.run(read)
        assert body is None or body == CONTENT[offset : offset + length]

    @rule(unit=units, count=st.integers(1, 40))
    def prefetch(self, unit: int, count: int) -> None:
        self.loop.run(self.cache.prefetch, unit * UNIT, count * UNIT)

    @rule(unit=units, bad=units)
    def read_while_the_store_fails(self, unit: int, bad: int) -> None:
        def fail(now: int) -> None:
            if now == bad:
                raise StoreUnavailable("away")

        self.filler.before = fail
        with contextlib.suppress(StoreUnavailable):
            assert self.loop.run(self.cache.read, unit * UNIT, 100) == CONTENT[unit * UNIT : unit * UNIT + 100]
        self.loop.run(settled, self.cache)
        self.filler.before = lambda now: None

    @rule(region=st.integers(0, UNITS // 16))
    def evict(self, region: int) -> None:
        self.loop.run(self.cache._shelf.evict, [region])

    @rule(size=st.integers(1, 3 * MIB))
    def rival_image(self, size: int) -> None:
        async def read() -> None:
            if self.rival is None:
                self.rival = await self.caches.open(HeldFiller(noise(3 * MIB, 9)), image_id=OTHER_IMAGE)
            assert await self.rival.read(0, size) == noise(3 * MIB, 9)[:size]

        self.loop.run(read)

    @rule(limit=st.sampled_from(LIMITS))
    def restart_with_another_budget(self, limit: int) -> None:
        self._stop()
        self.limit = limit
        self._start()

    @precondition(lambda self: self.cache.storing)
    @rule(damage=st.lists(st.tuples(units, st.integers(0, UNIT - 1)), min_size=1, max_size=4))
    def restart_with_damaged_units(self, damage: list[tuple[int, int]]) -> None:
        self._stop()
        with (self._where() / "units").open("r+b") as file:
            for unit, offset in damage:
                file.seek(min(unit * UNIT + offset, len(CONTENT) - 1))
                file.write(b"?")
        self._start()

    @precondition(lambda self: self.cache.storing)
    @rule(one=units, other=units)
    def restart_with_swapped_entries(self, one: int, other: int) -> None:
        self._stop()
        with (self._where() / "map").open("r+b") as file:
            first = os.pread(file.fileno(), ENTRY, entry_offset(one))
            second = os.pread(file.fileno(), ENTRY, entry_offset(other))
            os.pwrite(file.fileno(), second, entry_offset(one))
            os.pwrite(file.fileno(), first, entry_offset(other))
        self._start()

    @precondition(lambda self: self.cache.storing)
    @rule(name=st.sampled_from(["units", "map"]), size=st.integers(0, len(CONTENT)))
    def restart_with_a_shortened_file(self, name: str, size: int) -> None:
        self._stop()
        path = self._where() / name
        os.truncate(path, min(size, path.stat().st_size))
        self._start()

    @invariant()
    def the_budget_holds(self) -> None:
        # The directory itself is there even with a budget of nothing.
        assert self.caches.used_on_disk() <= max(self.limit, 4096)

    @invariant()
    def promises_are_kept(self) -> None:
        async def check() -> None:
            await settled(self.cache)
            self.cache.check_invariants()
            self.caches.root.check_invariants()

        self.loop.run(check)

    def _where(self) -> Path:
        return self.path / cache_name(IMAGE, "stored", "v1")


CacheModel.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_cache_model = CacheModel.TestCase

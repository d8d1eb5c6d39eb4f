"""The cache under churn: whatever is read, brought, pinned, closed and opened at once, it never takes more than the limit, at no moment."""

import gc
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from imagefs.cache.cache import UnitCache
from imagefs.errors import StoreUnavailable
from imagefs.units import GIB, KIB, MIB, UNIT
from tests.support.caching import Caches, HeldFiller, settled
from tests.support.fetched import noise

SIZE = 6 * MIB + 12_345
IMAGES = [f"11111111-2222-3333-4444-{number:012d}" for number in range(6)]
ROOM = 24 * MIB
CONTENT = noise(2 * MIB) + bytes(MIB) + noise(SIZE - 3 * MIB, 3)


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of ROOM bytes that nobody else writes to."""
    where = tmp_path / "filesystem"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


class Sampler:
    """A thread that looks all the time at what a filesystem's files take, and remembers the most that it saw.

    A walk as `du` does it would add up sizes of different moments: what goes here and comes there meanwhile is counted twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.most = self.samples = 0

    def _run(self) -> None:
        while not self._end.wait(0.0005):
            self.most = max(self.most, used(self._path))
            self.samples += 1

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def used(filesystem: Path) -> int:
    status = os.statvfs(filesystem)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


async def churn(caches: Caches, seed: int, operations: int) -> None:
    """Read, bring, keep, pin and close at random; bytes are always right."""
    chance = random.Random(seed)
    opened: dict[str, UnitCache] = {}
    for _ in range(operations):
        image_id = chance.choice(IMAGES)
        if image_id not in opened:
            opened[image_id] = await caches.open(HeldFiller(CONTENT), image_id=image_id)
        cache = opened[image_id]
        offset, length = chance.randrange(SIZE), chance.choice([1, 4096, UNIT, MIB])
        match chance.randrange(8):
            case 0:
                try:
                    await cache.prefetch(offset, 2 * MIB)
                except StoreUnavailable:
                    continue
            case 1:
                cache.keep(offset, length)
            case 2:
                caches.root.pinned = frozenset(chance.sample(IMAGES, 2))
            case 3:
                await settled(cache)
                del cache, opened[image_id]
                gc.collect()
            case 4 if chance.random() < 0.2:
                await caches.root.prune(cold=True)
            case _:
                assert await cache.read(offset, length) == CONTENT[offset : offset + length]
    for cache in opened.values():
        await settled(cache)


async def run_churn(caches: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let four tasks churn, with the caches tended to all the time."""
    monkeypatch.setattr("imagefs.cache.root.TEND_SECONDS", 0.05)
    await caches.root.start()
    async with trio.open_nursery() as tending:
        tending.start_soon(caches.root.tend)
        async with trio.open_nursery() as workers:
            for seed in range(4):
                workers.start_soon(churn, caches, seed, 60)
        tending.cancel_scope.cancel()
    caches.root.check_invariants()


@pytest.mark.parametrize("limit", [300 * KIB, 3 * MIB, 14 * MIB])
async def test_limit_holds_at_every_sample(filesystem: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Also with far less than what is read, and with everything kept or pinned."""
    with Sampler(filesystem) as sampler:
        await run_churn(Caches(filesystem / "cache", nursery, limit=limit, memory=8 * MIB), monkeypatch)
    assert sampler.samples > 100
    assert 0 < sampler.most <= limit
    assert limit < 3 * MIB or sampler.most > limit // 2  # it does cache


async def test_floor_holds_at_every_sample(filesystem: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has to stay free on the filesystem stays free, although the limit allows more, and when others take room the cache gives way."""
    floor = 10 * MIB
    caches = Caches(filesystem / "cache", nursery, limit=GIB, memory=8 * MIB, floor=floor)
    with Sampler(filesystem) as sampler:
        await run_churn(caches, monkeypatch)
    assert (ROOM - floor) // 2 < sampler.most <= ROOM - floor
    (filesystem / "others").write_bytes(bytes(9 * MIB))
    await caches.budget.trim()
    assert used(filesystem) <= ROOM - floor

"""What admins ask of the cache: orders, jobs, prefetches and pins, over a library of the test's own."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.cache.pins import Pins
from imagefs.cache.root import CacheRoot
from imagefs.catalog import Catalog, CatalogImage
from imagefs.errors import Busy, InvalidInput, StoreUnavailable
from imagefs.library import Library
from imagefs.store.record import ImageRecord
from imagefs.upkeep import Order, Upkeep
from tests.support.caching import IMAGE, OTHER_IMAGE

NOW = "2026-01-01T00:00:00Z"


class Parts:
    """A library whose work the test ends, over a cache that remembers what was asked of it."""

    def __init__(self) -> None:
        self.images = {image_id: CatalogImage(ImageRecord(id=image_id, created_at=NOW, updated_at=NOW), "1") for image_id in (IMAGE, OTHER_IMAGE)}
        self.watchers: list[Callable[[object, object], None]] = []
        self.pinned: frozenset[str] = frozenset()
        self.pruned: list[tuple[str | None, bool]] = []
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.go = trio.Event()
        self.failure: Exception | None = None
        self.state = "none"

    @property
    def snapshot(self) -> SimpleNamespace:
        return SimpleNamespace(images=self.images)

    async def prefetch(self, image: CatalogImage, what: str) -> None:
        self.begun.append(what)
        try:
            await self.go.wait()
        finally:
            self.ended.append(what)
        if self.failure is not None:
            raise self.failure
        self.state = "done"

    def prefetch_state(self, image: CatalogImage) -> str:
        return self.state

    async def prune(self, image_id: str | None, *, cold: bool) -> int:
        self.pruned.append((image_id, cold))
        await self.go.wait()
        return 4096

    async def verify_cached(self, image_id: str | None, progress: Callable[[int, int], None]) -> SimpleNamespace:
        progress(1, 3)
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        return SimpleNamespace(checked=5, damaged=2)


class Desk:
    """An upkeep over parts of the test's own."""

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self.parts = Parts()
        self.pins = Pins(path / "pins")
        self.upkeep = Upkeep(cast("Catalog", self.parts), cast("Library", self.parts), cast("CacheRoot", self.parts), self.pins, nursery)
        self.image, self.other = self.parts.images.values()
        self.errors: list[Exception] = []

    def prefetch(self, what: str = "boot") -> None:
        self.upkeep.prefetch(self.image, "all" if what == "all" else "boot", self.errors.append)

    def result(self, uid: int = 0) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.upkeep.result(uid) or b"{}")
        return found


@pytest.fixture
async def desk(tmp_path: Path, nursery: trio.Nursery) -> Desk:
    return Desk(tmp_path, nursery)


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("prune", Order("prune")),
        (" verify\n", Order("verify")),
        ("prune all", Order("prune", None, True)),
        (f"prune {IMAGE}", Order("prune", IMAGE)),
        (f"prune all {IMAGE}", Order("prune", IMAGE, True)),
        (f"verify {IMAGE}", Order("verify", IMAGE)),
    ],
)
def test_orders(text: str, order: Order) -> None:
    """What can be asked for."""
    assert Order.parse(text.encode()) == order


@pytest.mark.parametrize("text", ["", "all", "prune x", "verify all", "prune all all", f"prune {IMAGE} {IMAGE}", "prune \N{SNOWMAN}", "PRUNE"])
def test_orders_that_are_none(text: str) -> None:
    """Everything else says what can be asked for."""
    with pytest.raises(InvalidInput, match="write prune"):
        Order.parse(text.encode())


async def test_a_job(desk: Desk) -> None:
    """It runs in the background, one at a time; whoever asked for it, and nobody else, sees how far it is and what came of it."""
    desk.upkeep.start(7, Order("verify", IMAGE))
    await wait_all_tasks_blocked()
    assert desk.result(7) | {"state": "running", "done": 1, "total": 3, "image": IMAGE} == desk.result(7)
    assert desk.result(0) == {}
    with pytest.raises(Busy, match="verify is under way"):
        desk.upkeep.start(0, Order("prune"))
    desk.parts.go.set()
    await wait_all_tasks_blocked()
    assert desk.result(7) | {"state": "done", "checked": 5, "damaged": 2, "error": None} == desk.result(7)
    desk.upkeep.start(7, Order("prune", None, True))
    await wait_all_tasks_blocked()
    assert desk.result(7) | {"job": "prune", "state": "done", "freed": 4096} == desk.result(7)
    assert desk.parts.pruned == [(None, True)]


@pytest.mark.parametrize("failure", [StoreUnavailable("away"), ValueError("a mistake")])
async def test_a_job_that_fails(desk: Desk, failure: Exception) -> None:
    """It ends with the reason, ends nothing else, and the next one may begin."""
    desk.parts.failure = failure
    desk.parts.go.set()
    desk.upkeep.start(0, Order("verify"))
    await wait_all_tasks_blocked()
    assert desk.result()["state"] == "failed"
    assert str(failure) in str(desk.result()["error"])
    desk.upkeep.start(0, Order("prune"))


async def test_results_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many callers the last ones are remembered."""
    monkeypatch.setattr("imagefs.upkeep.RESULTS", 2)
    desk.parts.go.set()
    for uid in range(4):
        desk.upkeep.start(uid, Order("prune"))
        await wait_all_tasks_blocked()
    assert [uid for uid in range(4) if desk.result(uid)] == [2, 3]


async def test_a_prefetch(desk: Desk) -> None:
    """Its state can be read while it runs and after it."""
    assert desk.upkeep.prefetch_state(desk.image) == "none"
    desk.prefetch("all")
    assert desk.upkeep.prefetch_state(desk.image) == "all 0/0"
    await wait_all_tasks_blocked()
    desk.parts.state = "all 5/10"
    assert desk.upkeep.prefetch_state(desk.image) == "all 5/10"
    desk.parts.go.set()
    await wait_all_tasks_blocked()
    assert desk.upkeep.prefetch_state(desk.image) == "done"
    assert desk.errors == []


async def test_a_prefetch_gives_way_to_the_next(desk: Desk) -> None:
    """Asking for something else ends what was asked for before; none ends it, without an error."""
    desk.prefetch("boot")
    await wait_all_tasks_blocked()
    desk.prefetch("all")
    await wait_all_tasks_blocked()
    assert (desk.parts.begun, desk.parts.ended) == (["boot", "all"], ["boot"])
    assert desk.upkeep.prefetch_state(desk.image) == "all 0/0"
    desk.upkeep.end_prefetch(desk.image)
    await wait_all_tasks_blocked()
    assert desk.parts.ended == ["boot", "all"]
    assert desk.upkeep.prefetch_state(desk.image) == "none"
    assert desk.errors == []
    desk.upkeep.end_prefetch(desk.image)


@pytest.mark.parametrize("failure", [StoreUnavailable("away"), ValueError("a mistake")])
async def test_a_prefetch_that_fails(desk: Desk, failure: Exception) -> None:
    """Its state says so until the next one begins, and whoever asked for it is told why."""
    desk.parts.failure = failure
    desk.parts.go.set()
    desk.prefetch()
    await wait_all_tasks_blocked()
    assert desk.upkeep.prefetch_state(desk.image) == "failed"
    assert len(desk.errors) == 1
    assert str(failure) in str(desk.errors[0])
    desk.parts.failure = None
    desk.prefetch()
    await wait_all_tasks_blocked()
    assert desk.upkeep.prefetch_state(desk.image) == "done"


async def test_prefetches_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a certain number at once are refused."""
    monkeypatch.setattr("imagefs.upkeep.PREFETCHES", 1)
    desk.prefetch()
    with pytest.raises(Busy, match="wait until some are done"):
        desk.upkeep.prefetch(desk.other, "boot", desk.errors.append)
    desk.prefetch("all")  # in place of the first


async def test_pins(desk: Desk) -> None:
    """The cache is told; a pin of an image that is gone counts for nothing, and again if it comes back."""
    await desk.upkeep.pin(desk.image, True)
    assert desk.upkeep.pinned(desk.image)
    assert not desk.upkeep.pinned(desk.other)
    assert desk.parts.pinned == {IMAGE}
    gone = desk.parts.images.pop(IMAGE)
    desk.parts.watchers[0](None, None)
    assert desk.parts.pinned == frozenset()
    desk.parts.images[IMAGE] = gone
    desk.parts.watchers[0](None, None)
    assert desk.parts.pinned == {IMAGE}
    await desk.upkeep.pin(desk.image, False)
    assert desk.parts.pinned == frozenset()

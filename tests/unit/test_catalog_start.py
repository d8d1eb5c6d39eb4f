"""Tests of how a mount begins with its catalog: what it waits for, and what it begins with."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest
import trio

from imagefs import catalog as module
from imagefs.catalog import Catalog, CatalogImage, RecordDatabase
from imagefs.errors import StoreRefused, StoreUnavailable
from imagefs.store.crowd import read_each
from imagefs.store.protocol import ImageStore, Listed, Read, StoredRecord
from imagefs.store.record import ImageRecord

A, B = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "ab")


def record(image_id: str) -> ImageRecord:
    """Return a small record."""
    return ImageRecord(id=image_id, created_at="2026-01-01T00:00:00Z", updated_at="2026-01-01T00:00:00Z", name=image_id[:1])


class Slow:
    """A store with images A and B whose listing comes once `released` is set, or raises `error`."""

    url = "test:"

    def __init__(self) -> None:
        self.released, self.thrice = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.gently: list[bool] = []

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def list(self, gently: bool = False) -> Iterator[Listed]:
        self.gently.append(gently)
        if len(self.gently) == 3:
            self.thrice.set()
        assert self.released.wait(30)
        for image_id in (A, B):
            yield Listed(image_id, "1")

    def records(self, wanted: Sequence[Listed], take: Read) -> int:
        return read_each(lambda listed: StoredRecord(record(listed.image_id), listed.version), wanted, take)


@pytest.fixture
def store() -> Iterator[Slow]:
    """A store whose threads all end with the test."""
    made = Slow()
    yield made
    made.released.set()


def begin(store: Slow, path: Path, *known: str) -> Catalog:
    """Return the catalog of a node that knows some images from an earlier mount."""
    database = RecordDatabase(path, store.url)
    database.save([CatalogImage(record(image_id), "1") for image_id in known], [])
    database.close()
    return Catalog(cast("ImageStore", store), RecordDatabase(path, store.url))


async def test_a_first_mount_waits_for_all_images(tmp_path: Path, store: Slow) -> None:
    """A node that knows nothing has everything when the mount begins: a name that is missing may be anything."""
    catalog = begin(store, tmp_path / "db")
    threading.Timer(0.2, store.released.set).start()
    async with trio.open_nursery() as nursery:
        await catalog.start(nursery)
        assert set(catalog.snapshot.images) == {A, B}
        nursery.cancel_scope.cancel()


async def test_a_later_mount_begins_with_what_it_knows(tmp_path: Path, store: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a look takes long the mount begins with the images of the mount before, and takes up what the look finds."""
    monkeypatch.setattr(module, "FIRST_LOOK_SECONDS", 0.05)
    catalog = begin(store, tmp_path / "db", A)
    async with trio.open_nursery() as nursery:
        await catalog.start(nursery)
        assert set(catalog.snapshot.images) == {A}
        changed = trio.Event()
        catalog.watchers.append(lambda old, new: changed.set())
        store.released.set()
        await changed.wait()
        assert set(catalog.snapshot.images) == {A, B}
        nursery.cancel_scope.cancel()


async def test_a_later_mount_waits_for_a_look_that_is_quick(tmp_path: Path, store: Slow) -> None:
    """A store that answers soon is seen as it is: what was made since the mount before is there at once."""
    catalog = begin(store, tmp_path / "db", A)
    store.released.set()
    async with trio.open_nursery() as nursery:
        await catalog.start(nursery)
        assert set(catalog.snapshot.images) == {A, B}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("error", "known", "begins"),
    [
        (StoreUnavailable("down"), [A], True),
        (StoreUnavailable("down"), [], False),
        (StoreRefused("denied"), [A], False),
        (StoreRefused("denied"), [], False),
    ],
)
async def test_a_store_that_fails_at_once(tmp_path: Path, store: Slow, error: Exception, known: list[str], begins: bool) -> None:
    """A store that is down is put up with if there is something to show; one that refuses is the caller's to mend."""
    store.error = error
    catalog = begin(store, tmp_path / "db", *known)
    async with trio.open_nursery() as nursery:
        if begins:
            await catalog.start(nursery)
        else:
            with pytest.raises(type(error)):
                await catalog.start(nursery)
        assert set(catalog.snapshot.images) == set(known)
        nursery.cancel_scope.cancel()


async def test_what_nobody_waits_for_is_done_gently(tmp_path: Path, store: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first look is quick unless there are so many images that the mount does not wait for its end; all looks after it are gentle."""
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.01)
    store.released.set()
    async with trio.open_nursery() as nursery:
        await begin(store, tmp_path / "one").start(nursery)
        assert store.gently[0] is False
        assert await trio.to_thread.run_sync(store.thrice.wait, 30)
        assert store.gently[1:] == [True] * (len(store.gently) - 1)
        nursery.cancel_scope.cancel()
    monkeypatch.setattr(module, "QUICK", 0)
    store.gently.clear()
    async with trio.open_nursery() as nursery:
        await begin(store, tmp_path / "two", A).start(nursery)
        assert store.gently[0] is True
        nursery.cancel_scope.cancel()

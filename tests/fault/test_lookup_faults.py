"""Stores that hang while somebody looks up an id that no look has found: the kernel lets all others wait for that answer."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from imagefs.catalog import LOOKUP_SECONDS, SILENCE_SECONDS, Catalog, RecordDatabase
from imagefs.errors import NotFound, StoreUnavailable
from imagefs.store.protocol import ImageStore, StoredRecord

ID = "aaaaaaaa-0000-4000-8000-000000000000"


class HangingStore:
    """A store whose answers come once `released` is set."""

    url = "test:"

    def __init__(self) -> None:
        self.begun, self.released = threading.Event(), threading.Event()
        self.asked = 0

    def find(self, image_id: str) -> StoredRecord:
        self.asked += 1
        self.begun.set()
        self.released.wait()
        raise NotFound(image_id)


@pytest.fixture
def store() -> Iterator[HangingStore]:
    """A store whose threads all end with the test."""
    made = HangingStore()
    yield made
    made.released.set()


async def test_a_store_that_hangs_holds_up_one_lookup_for_a_moment(tmp_path: Path, store: HangingStore, mock_clock: MockClock) -> None:
    """The first lookup gives up soon, those after it do not ask at all for a while, and then the store has another chance."""
    catalog = Catalog(cast("ImageStore", store), RecordDatabase(tmp_path / "db", "test:"))
    refusals: list[str] = []

    async def look_up() -> None:
        with pytest.raises(StoreUnavailable) as refused:
            await catalog.find_soon(ID)
        refusals.append(str(refused.value))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_up)
        await trio.to_thread.run_sync(store.begun.wait)
        mock_clock.jump(LOOKUP_SECONDS)
    for _ in range(100):
        await look_up()
    assert store.asked == 1
    assert len(refusals) == 101
    assert "did not tell of it in 2 s" in refusals[0]
    assert "was not asked" in refusals[100]
    mock_clock.jump(SILENCE_SECONDS)
    store.released.set()
    with pytest.raises(NotFound):
        await catalog.find_soon(ID)
    assert store.asked == 2

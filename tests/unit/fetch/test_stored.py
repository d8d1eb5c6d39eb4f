"""Units of a stored object, when nothing goes wrong."""

import concurrent.futures
import itertools
import threading
import time

import pytest

from imagefs.errors import StoreUnavailable, WrongBytes
from imagefs.fetch.backoff import RetryPolicy
from imagefs.fetch.digests import UnitDigests
from imagefs.fetch.filler import ObjectFiller
from imagefs.fetch.stored import StoredObject, cut_units
from imagefs.store.tree import PAGE_UNITS, page_range
from imagefs.threads import Lane
from imagefs.units import UNIT
from tests.support.fetched import ScriptedObject, hash_tree, noise
from tests.support.lanes import lane_is_empty


def test_an_object_that_nothing_proves_is_called_by_its_image() -> None:
    """The store may be a Glance, which keeps no digests: messages name the image all the same."""
    assert StoredObject(ScriptedObject(b""), None, RetryPolicy(), name="debian").name == "image debian"


def test_units_come_in_order_from_one_request() -> None:
    """A range of units is one ranged GET; each unit is whole, and the last one of the object short."""
    content = noise(5 * UNIT + 123)
    source = ScriptedObject(content)
    units = list(StoredObject(source, None, RetryPolicy()).stream_units(2, 100))
    assert b"".join(units) == content[2 * UNIT :]
    assert [len(unit) for unit in units] == [UNIT, UNIT, UNIT, 123]
    assert source.requests == [(2 * UNIT, 3 * UNIT + 123)]


@pytest.mark.parametrize(("first", "count"), [(3, 1), (6, 0), (9, 2)])
def test_edges(first: int, count: int) -> None:
    """One unit, no unit, and units past the end."""
    content = noise(5 * UNIT)
    source = ScriptedObject(content)
    units = list(StoredObject(source, None, RetryPolicy()).stream_units(first, count))
    assert b"".join(units) == content[first * UNIT : (first + count) * UNIT]
    assert len(source.requests) == len(units)


def test_empty_object() -> None:
    """An object of no bytes has no units and asks for nothing."""
    source = ScriptedObject(b"")
    assert list(StoredObject(source, None, RetryPolicy()).stream_units(0, 1)) == []
    assert source.requests == []


def test_closing_early_drops_the_connection() -> None:
    """A caller who stops reading ends the transfer at once."""
    source = ScriptedObject(noise(4 * UNIT))
    units = StoredObject(source, None, RetryPolicy()).stream_units(0, 4)
    next(units)
    units.close()
    assert source.closed == 1


def test_verify_unit() -> None:
    """Bytes from elsewhere can be proved too; without digests everything passes."""
    content = noise(UNIT)
    tree, digests = hash_tree(content)
    proved = StoredObject(ScriptedObject(content), UnitDigests(tree, UNIT, lambda page: digests, "debian"), RetryPolicy())
    proved.verify_unit(0, content)
    with pytest.raises(WrongBytes):
        proved.verify_unit(0, bytes(UNIT))
    StoredObject(ScriptedObject(content), None, RetryPolicy()).verify_unit(0, bytes(UNIT))


@pytest.mark.parametrize("piece", [1, 1000, UNIT - 1, UNIT, UNIT + 1, 5 * UNIT])
def test_cut_units(piece: int) -> None:
    """Whatever the pieces' size, units are 64 KiB, and the last one is what is left."""
    content = noise(2 * UNIT + 7)
    pieces = (content[start : start + piece] for start in range(0, len(content), piece))
    units = list(cut_units(pieces, len(content), "it"))
    assert [len(unit) for unit in units] == [UNIT, UNIT, 7]
    assert b"".join(units) == content


def test_cut_units_of_too_much() -> None:
    """More bytes than were asked for are refused."""
    with pytest.raises(WrongBytes, match=r"it: .*more than"):
        list(cut_units(iter([bytes(UNIT), b"x"]), UNIT, "it"))


def test_cut_units_of_too_little() -> None:
    """A stream that ends early brings its whole units only."""
    assert list(cut_units(iter([bytes(UNIT + 5)]), 2 * UNIT, "it")) == [bytes(UNIT)]


async def test_object_filler() -> None:
    """The filler of stored bytes delivers each unit with its number, and plans for no more than was missed."""
    content = noise(3 * UNIT + 9)
    filler = ObjectFiller(StoredObject(ScriptedObject(content), None, RetryPolicy()))
    delivered: dict[int, bytes | None] = {}
    await filler.fill(1, 3, delivered.__setitem__)
    assert delivered == {unit: content[unit * UNIT : (unit + 1) * UNIT] for unit in (1, 2, 3)}
    assert filler.size == len(content)
    assert filler.plan(2) == (2, 1)


def test_transfers_do_not_disturb_each_other() -> None:
    """Two interleaved transfers of one object each yield their own units."""
    content = noise(4 * UNIT)
    stored = StoredObject(ScriptedObject(content), None, RetryPolicy())
    pairs = list(itertools.zip_longest(stored.stream_units(0, 2), stored.stream_units(2, 2)))
    assert b"".join(one for one, _ in pairs) + b"".join(two for _, two in pairs) == content


async def test_extents_are_units_that_are_not_proved_zeros() -> None:
    """With digests the zeros are left out; without any nothing is known. No byte of the object is fetched."""
    content = noise(UNIT) + bytes(2 * UNIT) + noise(2 * UNIT) + bytes(77)
    tree, digests = hash_tree(content)
    source = ScriptedObject(content)
    proved = ObjectFiller(StoredObject(source, UnitDigests(tree, len(content), lambda page: digests, "x"), RetryPolicy()))
    assert await proved.extents(0, len(content)) == [(0, UNIT), (3 * UNIT, 5 * UNIT)]
    assert await proved.extents(100, 3 * UNIT) == [(100, UNIT), (3 * UNIT, 3 * UNIT + 100)]
    assert await proved.extents(UNIT, UNIT) == await proved.extents(5 * UNIT, 1000) == await proved.extents(9 * UNIT, 5) == []
    unproved = ObjectFiller(StoredObject(source, None, RetryPolicy()))
    assert await unproved.extents(UNIT, 10 * UNIT) == [(UNIT, len(content))]
    assert source.requests == []


async def test_extents_whose_digests_cannot_be_had_are_unknown() -> None:
    """The store's error comes out: nothing is taken for zeros, nor fetched in vain."""
    content = noise(2 * UNIT)
    tree, _ = hash_tree(content)

    def broken(page: int) -> bytes:
        raise StoreUnavailable("the store is away")

    subject = ObjectFiller(StoredObject(ScriptedObject(content), UnitDigests(tree, len(content), broken, "x"), RetryPolicy()))
    with pytest.raises(StoreUnavailable, match="the store is away"):
        await subject.extents(0, UNIT)


class PagedDigests:
    """Digests of which it is noted what pages were fetched."""

    def __init__(self, content: bytes) -> None:
        self.tree, self.digests = hash_tree(content)
        self.size = len(content)
        self.loaded: list[int] = []

    def load(self, page: int) -> bytes:
        self.loaded.append(page)
        offset, length = page_range(self.size, page)
        return self.digests[offset : offset + length]


async def test_units_that_are_proved_to_be_zeros_are_not_fetched() -> None:
    """With their digests at hand, zeros cost no request; gaps of one or two are fetched along with what is around them."""
    content = noise(2 * UNIT) + bytes(3 * UNIT) + noise(UNIT) + bytes(2 * UNIT) + noise(UNIT) + bytes(UNIT + 5)
    source, paged = ScriptedObject(content), PagedDigests(content)
    filler = ObjectFiller(StoredObject(source, UnitDigests(paged.tree, len(content), paged.load, "x"), RetryPolicy()))
    delivered: dict[int, bytes | None] = {}
    await filler.fill(0, 1, delivered.__setitem__)
    await filler.fill(0, 100, delivered.__setitem__)
    assert sorted(source.requests) == [(0, UNIT), (0, 2 * UNIT), (5 * UNIT, 4 * UNIT)]
    assert paged.loaded == [0]
    assert sorted(delivered) == list(range(11))
    for unit, body in delivered.items():
        expected = content[unit * UNIT : (unit + 1) * UNIT]
        assert body == expected or (body is None and not any(expected))
    assert delivered[2] is delivered[9] is delivered[10] is None
    await filler.fill(9, 5, delivered.__setitem__)
    assert len(source.requests) == 3


async def test_an_image_of_zeros_costs_one_unit() -> None:
    """Of a page whose digests say zeros nothing more is fetched than what its digests were fetched for."""
    content = bytes(100 * UNIT)
    source, paged = ScriptedObject(content), PagedDigests(content)
    filler = ObjectFiller(StoredObject(source, UnitDigests(paged.tree, len(content), paged.load, "x"), RetryPolicy()))
    for first in range(0, 100, 10):
        await filler.fill(first, 10, lambda unit, body: None)
    assert source.requests == [(0, 10 * UNIT)]


async def test_digests_come_beside_the_units() -> None:
    """The pages that prove a fill's units are fetched while these are, not after them."""
    content = noise(UNIT)
    source, paged = ScriptedObject(content), PagedDigests(content)
    asked = threading.Event()

    def load(page: int) -> bytes:
        asked.set()
        return paged.load(page)

    source.script = lambda attempt, offset, length: [content] if asked.wait(30) else [b""]
    filler = ObjectFiller(StoredObject(source, UnitDigests(paged.tree, len(content), load, "x"), RetryPolicy()))
    delivered: dict[int, bytes | None] = {}
    await filler.fill(0, 1, delivered.__setitem__)
    assert delivered == {0: content}
    assert paged.loaded == [0]
    await lane_is_empty(Lane.TABLES)


def test_pages_are_fetched_beside_each_other() -> None:
    """Threads that want different pages do not wait for each other; those that want the same one fetch it once."""
    content = bytes(2 * PAGE_UNITS * UNIT)
    paged = PagedDigests(content)
    both = threading.Barrier(2, timeout=30)

    def load(page: int) -> bytes:
        both.wait()
        return paged.load(page)

    digests = UnitDigests(paged.tree, len(content), load, "x")
    assert digests.missing_pages(PAGE_UNITS - 1, 2) == [0, 1]
    assert digests.known_zeros(0, 10) == []
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(digests.load, [0, 1] * 4))
    assert sorted(paged.loaded) == [0, 1]
    assert digests.missing_pages(PAGE_UNITS - 1, 2) == []
    assert digests.known_zeros(PAGE_UNITS - 2, 4) == list(range(PAGE_UNITS - 2, PAGE_UNITS + 2))


def test_a_page_that_could_not_be_had_is_fetched_by_the_next() -> None:
    """Who waited for a page that did not come asks for it again."""
    paged = PagedDigests(noise(UNIT))
    failing = threading.Event()

    def load(page: int) -> bytes:
        if not failing.is_set():
            failing.set()
            time.sleep(0.05)
            raise StoreUnavailable("away")
        return paged.load(page)

    digests = UnitDigests(paged.tree, UNIT, load, "x")
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        first = threads.submit(digests.load, 0)
        assert failing.wait(30)
        threads.submit(digests.load, 0).result()
        with pytest.raises(StoreUnavailable):
            first.result()

"""Units proved by pages of digests."""

import threading

import pytest

from imagefs.errors import NotFound, WrongBytes
from imagefs.fetch.digests import PAGES_KEPT, UnitDigests
from imagefs.store.record import HashTree
from imagefs.store.tree import DIGEST, PAGE_UNITS, digest_of
from imagefs.units import UNIT
from tests.support.fetched import hash_tree, noise


class Pages:
    """Loads pages of digests, and counts."""

    def __init__(self, digests: bytes) -> None:
        self.digests = digests
        self.loads: list[int] = []

    def __call__(self, page: int) -> bytes:
        self.loads.append(page)
        return self.digests[page * PAGE_UNITS * DIGEST : (page + 1) * PAGE_UNITS * DIGEST]


def test_true_units_pass_and_a_page_is_fetched_once() -> None:
    """Every unit of an image passes, the short last one too, for one page."""
    content = noise(3 * UNIT + 100)
    tree, digests = hash_tree(content)
    pages = Pages(digests)
    subject = UnitDigests(tree, len(content), pages, "debian")
    for unit in range(4):
        subject.verify(unit, content[unit * UNIT : (unit + 1) * UNIT])
    assert pages.loads == [0]


def test_wrong_unit_is_named() -> None:
    """One wrong bit is told with the image, the unit and its offset."""
    content = noise(2 * UNIT)
    tree, digests = hash_tree(content)
    wrong = bytearray(content[UNIT:])
    wrong[77] ^= 1
    with pytest.raises(WrongBytes, match=r"debian.*unit 1.*65536"):
        UnitDigests(tree, len(content), Pages(digests), "debian").verify(1, bytes(wrong))


def test_wrong_page_is_refused_each_time() -> None:
    """A page that is not the record's is not believed and not kept."""
    content = noise(UNIT)
    tree, digests = hash_tree(content)
    pages = Pages(bytes(len(digests)))
    subject = UnitDigests(tree, len(content), pages, "debian")
    for _ in range(2):
        with pytest.raises(WrongBytes, match="page 0"):
            subject.verify(0, content)
    assert pages.loads == [0, 0]


def test_lost_digests_fail_closed() -> None:
    """Where the record promises digests and the store has none, no byte passes."""
    tree, _ = hash_tree(noise(UNIT))

    def lost(page: int) -> bytes:
        raise NotFound(f"no page {page}")

    with pytest.raises(WrongBytes, match="lost its digests"):
        UnitDigests(tree, UNIT, lost, "debian").verify(0, noise(UNIT))


def test_unusable_tree_is_refused() -> None:
    """A tree of another algorithm, or for another size, proves nothing and is refused at once."""
    tree, digests = hash_tree(noise(UNIT))
    with pytest.raises(WrongBytes, match="does not fit"):
        UnitDigests(tree, UNIT * PAGE_UNITS + 1, Pages(digests), "debian")
    with pytest.raises(WrongBytes, match="md5"):
        UnitDigests(HashTree("md5", UNIT, PAGE_UNITS, tree.pages), UNIT, Pages(digests), "debian")


def test_only_the_pages_used_last_are_kept() -> None:
    """A large image keeps a bounded number of pages, and the ones used last."""
    count = PAGES_KEPT + 1
    digest = digest_of(bytes(UNIT))
    page = digest * PAGE_UNITS
    pages = Pages(page * count)
    subject = UnitDigests(HashTree("sha256", UNIT, PAGE_UNITS, (digest_of(page).hex(),) * count), count * PAGE_UNITS * UNIT, pages, "debian")
    for number in (*range(PAGES_KEPT), 0, PAGES_KEPT, 0, 1):
        subject.verify(number * PAGE_UNITS, bytes(UNIT))
    assert pages.loads == [*range(PAGES_KEPT), PAGES_KEPT, 1]


def test_threads_share_one_load() -> None:
    """Sixteen threads that want one page cause one fetch of it."""
    content = noise(16 * UNIT)
    tree, digests = hash_tree(content)
    pages = Pages(digests)
    subject = UnitDigests(tree, len(content), pages, "debian")
    barrier = threading.Barrier(16)
    passed: list[int] = []

    def work(unit: int) -> None:
        barrier.wait()
        subject.verify(unit, content[unit * UNIT : (unit + 1) * UNIT])
        passed.append(unit)

    workers = [threading.Thread(target=work, args=(unit,)) for unit in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(passed) == list(range(16))
    assert pages.loads == [0]


def test_units_of_zeros_are_known_without_their_bytes() -> None:
    """By their digest alone, the short last one too; a page costs one fetch."""
    content = noise(UNIT) + bytes(2 * UNIT) + noise(UNIT - 1) + b"\0" + bytes(100)
    tree, digests = hash_tree(content)
    pages = Pages(digests)
    subject = UnitDigests(tree, len(content), pages, "debian")
    assert [subject.is_zero(unit) for unit in range(5)] == [False, True, True, False, True]
    assert pages.loads == [0]


def test_a_page_that_was_changed_tells_no_zeros() -> None:
    """Who could make a unit look like zeros could take bytes out of a snapshot: the page is proved first."""
    content = noise(2 * UNIT)
    tree, _ = hash_tree(content)
    _, others = hash_tree(bytes(2 * UNIT))
    with pytest.raises(WrongBytes):
        UnitDigests(tree, len(content), Pages(others), "debian").is_zero(0)

"""The arithmetic of the hash tree."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.errors import WrongBytes
from imagefs.store import tree
from imagefs.store.record import HashTree
from imagefs.units import UNIT


def build(body: bytes, *cuts: int) -> tuple[bytes, HashTree]:
    builder = tree.TreeBuilder()
    start = 0
    for cut in (*sorted(cuts), len(body)):
        builder.update(body[start:cut])
        start = cut
    return builder.finish()


def test_the_digests_are_the_hashes_of_the_units() -> None:
    """Each 64 KiB has its SHA-256, the short last unit too, and the page is the hash of the digests."""
    body = b"a" * UNIT + b"b" * UNIT + b"c"
    digests, built = build(body)
    assert digests == b"".join(hashlib.sha256(part).digest() for part in (b"a" * UNIT, b"b" * UNIT, b"c"))
    assert built == HashTree(algorithm="sha256", unit=65536, page_units=1024, pages=(hashlib.sha256(digests).hexdigest(),))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 5 * UNIT), st.lists(st.integers(0, 5 * UNIT), max_size=5))
def test_pieces_make_no_difference(size: int, cuts: list[int]) -> None:
    """However the bytes are cut into pieces, digests and tree are the same."""
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    assert build(body, *[min(cut, size) for cut in cuts]) == build(body)


def test_taken_digests_are_forgotten_and_complete() -> None:
    """What take_digests and finish return is together all digests, once."""
    builder = tree.TreeBuilder()
    taken = []
    for number in range(5):
        builder.update(bytes([number]) * UNIT)
        taken.append(builder.take_digests())
    builder.update(b"end")
    rest, built = builder.finish()
    digests, whole = build(b"".join(bytes([number]) * UNIT for number in range(5)) + b"end")
    assert [len(part) for part in taken] == [32] * 5
    assert (b"".join(taken) + rest, built) == (digests, whole)


def test_an_image_of_more_than_a_page_has_more_pages() -> None:
    """1024 units fill a page; one more begins the next."""
    _, full = build(bytes(1024 * UNIT))
    _, more = build(bytes(1024 * UNIT + 1))
    assert (len(full.pages), len(more.pages)) == (1, 2)
    assert full.pages[0] == more.pages[0]


def test_page_ranges_follow_the_size() -> None:
    """A page is 32 KiB of digests, the last one shorter, and nothing past it."""
    size = 1025 * UNIT - 5
    assert [tree.page_range(size, page) for page in range(3)] == [(0, 32768), (32768, 32), (65536, 0)]
    assert [tree.page_of(unit) for unit in (0, 1023, 1024)] == [0, 0, 1]


def test_a_page_that_is_wrong_is_refused() -> None:
    """A flipped bit, a wrong length and a page that the record does not know are WrongBytes that name the image."""
    body = b"x" * (3 * UNIT)
    digests, built = build(body)
    tree.verify_page(built, len(body), 0, digests, "image a")
    for wrong in (digests[:-1], digests + b"\0", bytes([digests[0] ^ 1]) + digests[1:], b""):
        with pytest.raises(WrongBytes, match="image a"):
            tree.verify_page(built, len(body), 0, wrong, "image a")
    with pytest.raises(WrongBytes):
        tree.verify_page(built, len(body), 1, digests, "image a")


def test_a_unit_that_is_wrong_is_refused_with_its_offset() -> None:
    """A unit must have its own digest: another unit's bytes, and short ones, are WrongBytes."""
    body = b"x" * UNIT + b"y" * UNIT
    digests, _ = build(body)
    tree.verify_unit(digests, 1, b"y" * UNIT, "image a")
    for wrong in (b"x" * UNIT, b"y" * (UNIT - 1)):
        with pytest.raises(WrongBytes, match="image a: the bytes at offset 65536"):
            tree.verify_unit(digests, 1, wrong, "image a")
    with pytest.raises(WrongBytes):
        tree.verify_unit(b"", 1, b"y" * UNIT, "image a")


def test_only_a_tree_that_fits_the_image_is_usable() -> None:
    """Another algorithm, other sizes, or too few pages are not usable."""
    _, built = build(b"x" * UNIT)
    assert tree.usable(built, UNIT)
    assert not tree.usable(built, 1025 * UNIT)
    assert not tree.usable(built, 0)
    assert not tree.usable(HashTree("sha512", UNIT, 1024, built.pages), UNIT)
    assert not tree.usable(HashTree("sha256", UNIT, 512, built.pages), UNIT)

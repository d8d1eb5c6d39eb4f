"""Whatever a source holds: outside of its extents everything reads as zeros, and telling them fetches no image data."""

import functools
import itertools
import os
import random
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.fetch.backoff import RetryPolicy
from imagefs.fetch.digests import UnitDigests
from imagefs.fetch.filler import ObjectFiller
from imagefs.fetch.inplace import InPlaceSource
from imagefs.fetch.stored import StoredObject
from imagefs.image.qcow2.disk import Qcow2Disk
from imagefs.image.qcow2.filler import Qcow2Filler
from imagefs.image.qcow2.image import open_image
from imagefs.image.qcow2.tables import Kind
from imagefs.source import Source
from imagefs.units import KIB, MIB, UNIT
from tests.support.caching import started
from tests.support.fetched import ScriptedObject, hash_tree
from tests.support.qcow2 import FileSource, FileUnits, FilledSource, Sample, make_corpus

Run = tuple[int, bool]
contents = st.tuples(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=10), st.integers(0, UNIT))
ranges = st.lists(st.tuples(st.integers(-5000, 40 * UNIT), st.integers(0, 20 * UNIT)), min_size=1, max_size=6)


def content_of(drawn: tuple[list[Run], int]) -> bytes:
    """Return units of noise and of zeros, the last one short."""
    runs, tail = drawn
    chance = random.Random(4)
    return b"".join(chance.randbytes(count * UNIT) if data else bytes(count * UNIT) for count, data in runs) + bytes(tail)


async def check_extents(source: Source, expected: bytes, wanted: list[tuple[int, int]]) -> None:
    """Check each range: in order, apart, within it, and zeros all around."""
    for drawn_offset, length in wanted:
        offset = max(0, drawn_offset)
        stop = min(offset + length, len(expected))
        found = await source.extents(offset, length)
        assert all(offset <= start < end <= stop for start, end in found)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(found))
        edges = [offset, *(edge for extent in found for edge in extent), max(offset, stop)]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            assert not any(expected[start:end])


def unit_extents(content: bytes) -> list[tuple[int, int]]:
    """Return the units that are not zeros, each for itself."""
    return [(start, min(start + UNIT, len(content))) for start in range(0, len(content), UNIT) if content[start : start + UNIT].strip(b"\0")]


@settings(max_examples=40, deadline=None)
@given(drawn=contents, wanted=ranges, read=ranges, proved=st.booleans())
def test_a_cache_over_a_store_knows_zeros_by_their_digests(
    drawn: tuple[list[Run], int], wanted: list[tuple[int, int]], read: list[tuple[int, int]], proved: bool
) -> None:
    """With digests all of them, before anything was read; without, those that were read; no extent takes a request for data."""
    content = content_of(drawn)
    tree, digests = hash_tree(content)
    source = ScriptedObject(content)
    stored = StoredObject(source, UnitDigests(tree, len(content), lambda page: digests, "x") if proved else None, RetryPolicy())

    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with trio.open_nursery() as nursery:
                caches = await started(Path(directory), nursery)
                cache = await caches.root.open("11111111-2222-3333-4444-555555555555", "stored", "v1", ObjectFiller(stored), nursery, name="x")
                await check_extents(cache, content, wanted)
                assert source.requests == []
                whole = await cache.extents(0, len(content))
                units = unit_extents(content)
                assert sum(stop - start for start, stop in whole) == (sum(stop - start for start, stop in units) if proved else len(content))
                for offset, length in read:
                    await cache.read(max(0, offset), length)
                requests = len(source.requests)
                await check_extents(cache, content, [*wanted, *((max(0, offset), length) for offset, length in read)])
                await cache.read(0, len(content))
                assert sum(stop - start for start, stop in await cache.extents(0, len(content))) == sum(stop - start for start, stop in units)
                assert len(source.requests) >= requests

    trio.run(main)


@settings(max_examples=40, deadline=None)
@given(drawn=contents, wanted=ranges)
def test_a_local_file_knows_its_holes(drawn: tuple[list[Run], int], wanted: list[tuple[int, int]]) -> None:
    """By what the filesystem says; written zeros may count as data, holes never do."""
    content = content_of(drawn)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "object"
        with path.open("wb") as file:
            file.truncate(len(content))
            for start, stop in unit_extents(content):
                os.pwrite(file.fileno(), content[start:stop], start)
        source = InPlaceSource(StoredObject(ScriptedFile(content, path), None, RetryPolicy()))
        trio.run(check_extents, source, content, wanted)
        whole = trio.run(source.extents, 0, len(content))
        assert sum(stop - start for start, stop in whole) == sum(stop - start for start, stop in unit_extents(content))
        source.close()


class ScriptedFile(ScriptedObject):
    """A local object."""

    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(content, path=path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return make_corpus(tmp_path_factory.mktemp("extents"))


@functools.cache
def decoded(path: Path) -> bytes:
    """Return a raw file's bytes."""
    return path.read_bytes()


@pytest.mark.qemu
@settings(max_examples=60, deadline=None)
@given(number=st.integers(0, 30), wanted=st.lists(st.tuples(st.integers(0, 10 * MIB), st.integers(0, 10 * MIB)), min_size=1, max_size=4))
def test_a_qcow2_knows_its_tables(corpus: list[Sample], number: int, wanted: list[tuple[int, int]]) -> None:
    """In every layout, read in place or from a store: unallocated and zero clusters are left out, and nothing but tables is read."""
    subject = [sample for sample in corpus if sample.size <= 16 * MIB][number % 20]
    expected = decoded(subject.raw)

    async def main() -> None:
        stored = FileSource(subject.image)
        image = await open_image(stored, subject.name, 2 * KIB)
        units = FileUnits(subject.image)
        filler = Qcow2Filler(image, units)
        for source in (Qcow2Disk(image, stored, FilledSource(filler)), FilledSource(filler)):
            await check_extents(source, expected, [*wanted, (0, len(expected))])
        assert units.streams == []
        read = list(stored.reads)
        for extent in await image.extents(0, len(expected)):
            if extent.kind in (Kind.DATA, Kind.COMPRESSED):
                assert not any(
                    offset < extent.host_offset + extent.host_length and offset + length > extent.host_offset for offset, length in read[1:]
                )

    trio.run(main)


@pytest.mark.qemu
def test_huge_qcow2_disks_are_told_quickly_and_without_gaps(corpus: list[Sample]) -> None:
    """Of 39 GiB with three islands the extents are the islands."""
    (tall,) = [sample for sample in corpus if sample.name == "tall-2m"]

    async def main() -> None:
        stored = FileSource(tall.image)
        image = await open_image(stored, tall.name)
        found = await Qcow2Disk(image, stored, FilledSource(Qcow2Filler(image, FileUnits(tall.image)))).extents(0, tall.size)
        assert [start for start, _ in found] == list(tall.points[:3])
        assert all(stop - start == 2 * MIB or stop == tall.size for start, stop in found)

    trio.run(main)

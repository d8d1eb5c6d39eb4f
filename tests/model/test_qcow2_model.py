"""The qcow2 reader against QEMU's own: whatever the layout, both give the same bytes at every offset."""

import os
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from imagefs.errors import ImageRefused
from imagefs.image.qcow2.disk import Qcow2Disk
from imagefs.image.qcow2.filler import Qcow2Filler
from imagefs.image.qcow2.header import CORRUPT
from imagefs.image.qcow2.image import open_image
from imagefs.units import KIB, MIB, UNIT, unit_count
from tests.support.qcow2 import FileSource, FileUnits, FilledSource, Patched, Sample, make, make_corpus, qemu_io, sample

pytestmark = pytest.mark.qemu

SMALL_BUDGET = 2 * KIB
"""Room for no more than a few small table pages, so that they come and go during a read."""

Read = tuple[int, int, int]
reads = st.lists(st.tuples(st.integers(0, 20), st.integers(-130 * KIB, 130 * KIB), st.integers(0, 700 * KIB)), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def ranges(subject: Sample, drawn: list[Read]) -> list[tuple[int, int]]:
    """Return drawn reads as offsets and lengths near the points of a sample."""
    return [(max(0, subject.points[point % len(subject.points)] + delta), length) for point, delta, length in drawn]


def raw_bytes(subject: Sample, offset: int, length: int) -> bytes:
    """Return what QEMU decoded."""
    descriptor = os.open(subject.raw, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


def same(one: bytes | bytearray, other: bytes) -> bool:
    """Tell whether two byte strings are equal."""
    return one == other


async def check_reads(subject: Sample, wanted: list[tuple[int, int]], *, waits: bool, budget: int) -> None:
    """Read ranges through the filler alone and through the disk that reads in place, and compare each with QEMU's bytes."""
    stored = FileSource(subject.image, waits=waits)
    image = await open_image(stored, subject.name, budget)
    assert image.size == subject.size
    filled = FilledSource(Qcow2Filler(image, FileUnits(subject.image)))
    disk = Qcow2Disk(image, stored, FilledSource(Qcow2Filler(image, FileUnits(subject.image))))
    for offset, length in wanted:
        expected = raw_bytes(subject, offset, length)
        # `same`, because pytest's comparison of two long byte strings takes minutes when they differ.
        assert same(await filled.read(offset, length), expected)
        at_once = disk.read_nowait(offset, length)
        assert at_once is None or same(at_once, expected)
        assert same(await disk.read(offset, length), expected)
        at_once = disk.read_nowait(offset, length)
        assert (waits or budget < MIB or length > 4 * MIB) if at_once is None else same(at_once, expected)


@settings(max_examples=120, deadline=None)
@given(number=st.integers(0, 30), drawn=reads, waits=st.booleans(), budget=st.sampled_from([SMALL_BUDGET, 16 * MIB]))
def test_reader_gives_qemus_bytes(corpus: list[Sample], number: int, drawn: list[Read], waits: bool, budget: int) -> None:
    """Any reads of any layout give what qemu-img convert gave, with tables and stored bytes at hand or not."""
    subject = corpus[number % len(corpus)]
    trio.run(lambda: check_reads(subject, ranges(subject, drawn), waits=waits, budget=budget))


def test_reader_gives_whole_disks(corpus: list[Sample]) -> None:
    """Every image of the corpus, read from end to end, or where something is if it is huge, is the disk that QEMU decoded."""

    async def read_all() -> None:
        for subject in corpus:
            wanted = [(max(0, point - 1000), 400 * KIB) for point in subject.points]
            wanted += [(0, min(subject.size, 16 * MIB)), (max(0, subject.size - 1), 5), (subject.size + 9, 5)]
            await check_reads(subject, wanted, waits=False, budget=16 * MIB)

    trio.run(read_all)


@settings(max_examples=40, deadline=None)
@given(number=st.integers(0, 30), data=st.data())
def test_plan_costs_no_more_stored_units(corpus: list[Sample], number: int, data: st.DataObject) -> None:
    """The range that a plan widens a unit to is made from the very stored units that the unit alone needs."""
    subject = corpus[number % len(corpus)]
    if subject.size == 0:
        return
    point = data.draw(st.sampled_from(subject.points)) // UNIT
    unit = min(max(0, point + data.draw(st.integers(-20, 20))), unit_count(subject.size) - 1)

    async def compare() -> None:
        image = await open_image(FileSource(subject.image, waits=False), subject.name)
        alone, wide = FileUnits(subject.image), FileUnits(subject.image)
        one, many = FilledSource(Qcow2Filler(image, alone)), FilledSource(Qcow2Filler(image, wide))
        first, count = many.filler.plan(unit)
        assert 0 <= first <= unit < first + count <= unit_count(subject.size)
        await one.filler.fill(unit, 1, one.deliver)
        await many.filler.fill(first, count, many.deliver)
        assert sorted(many.units) == list(range(first, first + count))
        assert sorted(wide.streams) == sorted(alone.streams)

    trio.run(compare)


def sectors(limit: int) -> st.SearchStrategy[tuple[int, int]]:
    """Ranges of whole sectors below `limit` bytes."""
    return st.tuples(st.integers(0, limit // 512 - 1), st.integers(1, 600)).map(
        lambda pair: (pair[0] * 512, min(pair[1] * 512, limit - pair[0] * 512))
    )


@st.composite
def scripts(draw: st.DrawFn) -> tuple[str, int, list[str]]:
    """An image's options and size, and the qemu-io commands that a guest's life was made of."""
    options = draw(st.sampled_from(["cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=16k,extended_l2=on", "compat=0.10"]))
    cluster = {"cluster_size=512": 512, "cluster_size=4k": 4 * KIB}.get(options, 64 * KIB)
    size = draw(st.integers(1, 900)) * 512
    commands = []
    for number in range(1, draw(st.integers(1, 9))):
        verb = draw(st.sampled_from(["write", "write -z", "write -z -u", "discard", "write -c"]))
        offset, length = draw(sectors(size))
        if verb == "write -c":
            offset -= offset % cluster
            length = min(-(-length // cluster) * cluster, size - offset)
        commands.append(f"{verb}{f' -P {number}' if verb in ('write', 'write -c') else ''} {offset} {length}")
    return options, size, commands


def is_marked_corrupt(image: Path) -> bool:
    """Tell whether QEMU has set the corrupt bit, which version 2 has not."""
    patched = Patched(image)
    return patched.get("I", 4) == 3 and bool(patched.get("Q", 72) & CORRUPT)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=scripts())
@example(
    # QEMU 7.2 trips over its own metadata here, and marks the image corrupt.
    (
        "cluster_size=512",
        198656,
        [
            "write -c -P 1 78848 66048",
            "write -z 143360 1024",
            *(f"write -P {number} 0 512" for number in range(3, 7)),
            "write -z -u 0 512",
            "write -c -P 8 0 512",
        ],
    )
)
def test_reader_follows_any_history(script: tuple[str, int, list[str]]) -> None:
    """Whatever a guest wrote, zeroed, discarded and compressed, in whatever order, the whole disk reads as QEMU reads it."""
    options, size, commands = script
    with tempfile.TemporaryDirectory() as directory:
        image = make(Path(directory) / "image.qcow2", size, options)
        qemu_io(image, *commands, check=False)  # compressed writes over allocated clusters are refused: a no-op then
        subject = sample(image)
        if is_marked_corrupt(image):
            with pytest.raises(ImageRefused, match="marked corrupt"):
                trio.run(open_image, FileSource(image), "x")
            return
        trio.run(lambda: check_reads(subject, [(0, size), (size // 2, 70000)], waits=False, budget=16 * MIB))

"""Whatever disk is written as qcow2: QEMU finds the image sound, and QEMU and imagefs's own reader see the very disk."""

import random
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagefs.image.qcow2.deflate import deflate
from imagefs.image.qcow2.disk import Qcow2Disk
from imagefs.image.qcow2.filler import Qcow2Filler
from imagefs.image.qcow2.image import open_image
from imagefs.image.qcow2.writer import CLUSTER, Qcow2Writer, virtual_size
from imagefs.units import MIB
from tests.support.qcow2 import FileOutput, FileSource, FileUnits, FilledSource, check_clean, decoded_by_qemu

pytestmark = pytest.mark.qemu

GROUP = 32768
"""Host clusters that one refcount block counts."""

Run = tuple[int, int, int]
"""Clusters of zeros, then as many clusters of so many bytes of noise each, the rest of them text."""
runs = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40), st.sampled_from([0, 1, 300, 20_000, 60_000, CLUSTER])), max_size=6)


def disk_of(drawn: list[Run], tail: int) -> bytes:
    """Return the disk that the runs describe, with `tail` bytes of text in a last cluster."""
    chance = random.Random(5)
    parts = []
    for zeros, count, noise in drawn:
        parts.append(bytes(zeros * CLUSTER))
        parts += [chance.randbytes(noise) + (b"%d " % number * CLUSTER)[: CLUSTER - noise] for number in range(count)]
    return b"".join(parts) + b"tail"[:1] * tail


@settings(max_examples=40, deadline=None)
@given(drawn=runs, tail=st.sampled_from([0, 1, 512, 40_000]), start=st.one_of(st.just(2), st.integers(GROUP - 80, GROUP)), wide=st.booleans())
@example(drawn=[(0, 30, 60_000)], tail=1, start=GROUP - 3, wide=False)
def test_what_is_written_is_what_is_read(drawn: list[Run], tail: int, start: int, wide: bool) -> None:
    """Any mixture of zeros, text and noise, also where a refcount block's group of host clusters ends, and across L2 tables (`wide`)."""
    disk = disk_of(drawn, tail)
    step = 997 if wide else 1  # clusters from one that has data to the next
    size = len(disk) * step
    whole = disk.ljust(-(-len(disk) // CLUSTER) * CLUSTER, b"\0")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "image.qcow2"
        writer = Qcow2Writer(FileOutput(path), size)
        writer._next = start  # the clusters before are free, which is sound
        placed = {}
        for number in range(len(whole) // CLUSTER):
            body = whole[number * CLUSTER : (number + 1) * CLUSTER]
            if any(body) and number * step * CLUSTER < size:
                placed[number * step] = body
                writer.put(number * step, deflate(body) or body)
        assert writer.finish() == path.stat().st_size
        check_clean(path)
        if not wide:
            same = decoded_by_qemu(path) == disk.ljust(virtual_size(size), b"\0")
            assert same
        trio.run(check_reader, path, virtual_size(size), placed)


async def check_reader(path: Path, size: int, placed: dict[int, bytes]) -> None:
    """Read with imagefs's own reader what was placed; its extents have all of that, and nothing else."""
    stored = FileSource(path)
    image = await open_image(stored, "written")
    disk = Qcow2Disk(image, stored, FilledSource(Qcow2Filler(image, FileUnits(path))))
    assert disk.size == size
    covered = {offset // CLUSTER for start, stop in await disk.extents(0, size) for offset in range(start, stop, CLUSTER)}
    assert covered == set(placed)
    for number, body in placed.items():
        there = body[: size - number * CLUSTER]
        same = await disk.read(number * CLUSTER, CLUSTER) == there
        assert same
    if size <= 16 * MIB:
        expected = b"".join(placed.get(number, bytes(CLUSTER)) for number in range(-(-size // CLUSTER)))[:size]
        same = await disk.read(0, size) == expected
        assert same

"""Images that imagefs writes: QEMU finds them sound and sees the very disk in them, and so does imagefs."""

import struct
from pathlib import Path

import pytest

from imagefs.errors import InvalidInput
from imagefs.image.qcow2.deflate import deflate
from imagefs.image.qcow2.disk import Qcow2Disk
from imagefs.image.qcow2.filler import Qcow2Filler
from imagefs.image.qcow2.image import open_image
from imagefs.image.qcow2.writer import CLUSTER, Qcow2Writer, virtual_size
from imagefs.units import GIB, MIB, TIB
from tests.support.qcow2 import FileOutput, FileSource, FileUnits, FilledSource, check_clean, decoded_by_qemu, pattern, qemu_img, qemu_io

pytestmark = pytest.mark.qemu

GROUP = 32768
"""Host clusters that one refcount block counts."""


def write(path: Path, size: int, clusters: dict[int, bytes]) -> int:
    """Write an image of a disk of `size` bytes whose clusters are zeros but for these; return the bytes that the writer says it has."""
    writer = Qcow2Writer(FileOutput(path), size)
    for number, body in sorted(clusters.items()):
        writer.put(number, deflate(body) or body)
    return writer.finish()


async def opened(path: Path) -> Qcow2Disk:
    """Open an image with imagefs's own reader."""
    stored = FileSource(path)
    image = await open_image(stored, path.name)
    return Qcow2Disk(image, stored, FilledSource(Qcow2Filler(image, FileUnits(path))))


@pytest.mark.parametrize("size", [1, 511, 512, 513, CLUSTER - 1, CLUSTER, CLUSTER + 1, 5 * MIB + 3584, 5 * MIB + 1000])
async def test_a_disk_of_any_size_is_written(tmp_path: Path, size: int) -> None:
    """Text, noise and zeros, with the last cluster short: qemu-img check is content, and both readers see the disk with whole sectors."""
    path = tmp_path / "image.qcow2"
    disk = pattern(size)
    padded = disk.ljust(virtual_size(size), b"\0")
    whole = disk.ljust(-(-size // CLUSTER) * CLUSTER, b"\0")
    parts = {start // CLUSTER: whole[start : start + CLUSTER] for start in range(0, len(whole), CLUSTER)}
    assert write(path, size, {number: body for number, body in parts.items() if any(body)}) == path.stat().st_size
    check_clean(path)
    assert path.stat().st_size % CLUSTER == 0
    same = decoded_by_qemu(path) == padded
    assert same
    disk_read = await opened(path)
    assert disk_read.size == len(padded)
    same = await disk_read.read(0, disk_read.size) == padded
    assert same


@pytest.mark.parametrize("size", [0, 1, GIB, 16 * TIB, 64 * TIB])
async def test_an_empty_disk_takes_no_l2_table(tmp_path: Path, size: int) -> None:
    """There is nothing but a header, refcounts and the L1 table."""
    path = tmp_path / "image.qcow2"
    assert write(path, size, {}) <= 4 * CLUSTER + MIB
    check_clean(path)
    disk = await opened(path)
    assert disk.size == virtual_size(size)
    assert await disk.extents(0, min(size, GIB)) == []


async def test_a_huge_disk_takes_room_for_its_data_only(tmp_path: Path) -> None:
    """Of 64 TiB with a few clusters far from each other there are a few L2 tables, and everything is where it was put."""
    path = tmp_path / "image.qcow2"
    places = [0, 8191, 8192, GIB // CLUSTER, 20 * TIB // CLUSTER + 5, 64 * TIB // CLUSTER - 1]
    clusters = {place: pattern(CLUSTER, seed=place) for place in places}
    size = write(path, 64 * TIB, clusters)
    assert size < MIB + (len(places) * 2 + 8) * CLUSTER
    check_clean(path)
    disk = await opened(path)
    for place, body in clusters.items():
        same = await disk.read(place * CLUSTER, CLUSTER) == body
        assert same
        assert await disk.extents(place * CLUSTER, CLUSTER) == [(place * CLUSTER, (place + 1) * CLUSTER)]
    assert await disk.extents(2 * GIB, 4 * GIB) == []
    qemu_io(path, f"read -P {clusters[places[-1]][-1]} {64 * TIB - 1} 1")


def test_the_header_says_what_it_is(tmp_path: Path) -> None:
    """Version 3, clusters of 64 KiB, refcounts of 16 bits, no backing file, no feature that old readers do not know."""
    path = tmp_path / "image.qcow2"
    write(path, 3 * MIB, {1: b"x" * CLUSTER})
    head = path.read_bytes()[:112]
    assert struct.unpack_from(">4sIQII", head) == (b"QFI\xfb", 3, 0, 0, 16)
    assert struct.unpack_from(">QQQII", head, 72) == (0, 0, 0, 4, 104)
    assert head[104:112] == bytes(8)


def test_compressed_clusters_are_packed(tmp_path: Path) -> None:
    """A thousand small ones take a few host clusters, each counted once for each of them; a plain one between them costs no more than its own."""
    path = tmp_path / "image.qcow2"
    text = {number: (b"%d, " % number * CLUSTER)[:CLUSTER] for number in range(1000)}
    packed = sum(len(deflate(body) or body) for body in text.values())
    size = write(path, 1000 * CLUSTER, text)
    check_clean(path)
    assert size <= packed + 7 * CLUSTER
    text[500] = pattern(CLUSTER * 2, seed=9)[:CLUSTER]
    write(path, 1000 * CLUSTER, text)
    check_clean(path)
    same = decoded_by_qemu(path) == b"".join(text.values())
    assert same


@pytest.mark.parametrize("free", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("compressed", [True, False])
def test_the_next_refcount_block_comes_where_it_must(tmp_path: Path, free: int, compressed: bool) -> None:
    """Data, L2 tables and the tables at the end that meet the end of a refcount block's group are all counted, whatever is the first behind it."""
    path = tmp_path / "image.qcow2"
    writer = Qcow2Writer(FileOutput(path), 4 * GIB)
    writer._next = GROUP - free  # as if all before were full: clusters that nothing uses are no leak
    bodies = {number * 700: pattern(3 * CLUSTER, seed=number)[CLUSTER : 2 * CLUSTER] for number in range(20)}
    for number, body in bodies.items():
        writer.put(number, (deflate(body) if compressed else None) or body)
    assert writer.finish() == path.stat().st_size
    check_clean(path)
    for number, body in bodies.items():
        qemu_io(path, f"read -P {body[0]} {number * CLUSTER} 1", f"read -P {body[-1]} {(number + 1) * CLUSTER - 1} 1")


def test_an_image_of_more_than_one_refcount_block_is_sound(tmp_path: Path) -> None:
    """2.1 GiB of plain clusters, without any poking in the writer."""
    path, count = tmp_path / "image.qcow2", GROUP + 1000
    writer = Qcow2Writer(FileOutput(path), count * CLUSTER)
    body = b"x" + bytes(CLUSTER - 1)
    for number in range(count):
        writer.put(number, body)
    assert writer.finish() == path.stat().st_size
    check_clean(path)
    qemu_io(path, *(f"read -P {ord('x')} {number * CLUSTER} 1" for number in (0, GROUP - 8, GROUP - 7, GROUP - 6, GROUP, count - 1)))


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """What the writer keeps for each 512 MiB of the disk is an offset."""
    writer = Qcow2Writer(FileOutput(tmp_path / "image.qcow2"), 64 * TIB)
    for table in range(2000):
        writer.put(table * 8192, b"x" * 100)
    assert len(writer._l1) == 1999
    assert len(writer._table) * 8 == len(writer._counts) * 2 == CLUSTER
    assert len(writer._open_body) < CLUSTER


def test_whole_clusters_are_written_each_once(tmp_path: Path) -> None:
    """An output sees no cluster twice, so that it may encipher them or write them through."""
    output = FileOutput(tmp_path / "image.qcow2")
    writer = Qcow2Writer(output, 2 * GIB)
    for number in range(0, 30_000, 97):
        body = pattern(CLUSTER, seed=number)
        writer.put(number, deflate(body) or body)
    writer.finish()
    clusters = [offset // CLUSTER + step for offset, length in output.written for step in range(-(-length // CLUSTER))]
    assert all(offset % CLUSTER == 0 and length % CLUSTER == 0 for offset, length in output.written)
    assert len(clusters) == len(set(clusters))


def test_what_cannot_be_put_is_refused(tmp_path: Path) -> None:
    """A cluster that is there already or past the end, none at all, more than one; and a disk that no reader takes."""
    writer = Qcow2Writer(FileOutput(tmp_path / "image.qcow2"), 10 * CLUSTER)
    writer.put(3, b"x" * CLUSTER)
    for number, body in ((3, b"y" * CLUSTER), (2, b"y" * CLUSTER), (10, b"y" * CLUSTER), (5, b""), (5, b"y" * (CLUSTER + 1))):
        with pytest.raises(ValueError, match=f"cluster {number} "):
            writer.put(number, body)
    with pytest.raises(InvalidInput, match="cannot be written as qcow2"):
        Qcow2Writer(FileOutput(tmp_path / "large.qcow2"), 64 * TIB + 1)


def test_every_write_that_fails_is_told(tmp_path: Path) -> None:
    """Whichever write it is, the error comes out of put or finish; with none failing the same image is sound."""
    bodies = {number: pattern(CLUSTER, seed=number) for number in (0, 1, 9000, 9001)}

    def attempt(fail: int | None) -> int:
        output = FileOutput(tmp_path / "image.qcow2")

        def refuse(count: int) -> None:
            if count == fail:
                raise OSError(5, "Input/output error")

        output.fail = refuse
        writer = Qcow2Writer(output, 4 * GIB)
        for number, body in bodies.items():
            writer.put(number, deflate(body) or body)
        writer.finish()
        return len(output.written)

    writes = attempt(None)
    check_clean(tmp_path / "image.qcow2")
    assert writes >= 7
    for number in range(writes):
        with pytest.raises(OSError, match="Input/output error"):
            attempt(number)


def test_qemu_goes_on_writing_into_the_image(tmp_path: Path) -> None:
    """The refcounts are right for a writer too: QEMU overwrites compressed and plain clusters and adds others, and leaks none."""
    path = tmp_path / "image.qcow2"
    write(path, 64 * MIB, {number: pattern(CLUSTER, seed=number) for number in range(0, 500, 3)})
    qemu_io(path, "write -P 7 0 4M", "write -P 8 10M 100k", "write -z 20M 3M", "discard 30M 2M")
    check_clean(path)
    qemu_img("resize", "-f", "qcow2", path, "1G")
    check_clean(path)

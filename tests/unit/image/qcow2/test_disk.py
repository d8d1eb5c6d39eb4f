"""A qcow2 image of a local store: what is not compressed is read where it lies."""

from pathlib import Path

import pytest

from imagefs.errors import ImageRefused
from imagefs.image.qcow2.disk import Qcow2Disk
from imagefs.image.qcow2.filler import Qcow2Filler
from imagefs.image.qcow2.image import open_image
from imagefs.units import KIB, MIB, UNIT
from tests.support.qcow2 import FileSource, FileUnits, FilledSource, Patched, converted, make, pattern, qemu_io, sample

pytestmark = pytest.mark.qemu

SIZE = 6 * MIB


async def opened(image: Path, *, waits: bool = False) -> tuple[Qcow2Disk, FileSource, FilledSource]:
    stored = FileSource(image, waits=waits)
    qcow2 = await open_image(stored, image.stem)
    decoded = FilledSource(Qcow2Filler(qcow2, FileUnits(image)))
    return Qcow2Disk(qcow2, stored, decoded), stored, decoded


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(pattern(SIZE))
    return path


async def test_uncompressed_data_is_read_in_place(tmp_path: Path, source: Path) -> None:
    """Reads of an uncompressed image never touch the cache of decoded bytes, and need no waiting."""
    disk, stored, decoded = await opened(converted(tmp_path, "image", source, "cluster_size=64k"))
    stored.reads.clear()
    for offset, length in ((0, 4 * KIB), (UNIT - 512, KIB), (MIB, MIB), (SIZE - 10, 100), (SIZE, 10), (0, 4 * MIB)):
        same = disk.read_nowait(offset, length) == pattern(SIZE)[offset : offset + length]
        assert same
    assert stored.reads == []
    assert decoded.units == {}


async def test_compressed_clusters_come_from_the_cache(tmp_path: Path, source: Path) -> None:
    """A compressed cluster is waited for once, and is a hit of the cache from then on."""
    image = converted(tmp_path, "image", source, "cluster_size=64k", compress=True)
    disk, _, decoded = await opened(image)
    point = 2 * MIB
    assert disk.read_nowait(point, MIB) is None
    first = await disk.read(point, MIB)
    same = first == pattern(SIZE)[point : point + MIB] == disk.read_nowait(point, MIB)
    assert same
    assert decoded.units


async def test_mixed_ranges_are_put_together(tmp_path: Path) -> None:
    """One read over data, zeros and compressed clusters has each in its place."""
    image = make(tmp_path / "image.qcow2", MIB, "cluster_size=64k")
    qemu_io(image, "write -P 1 0 100k", "write -c -P 2 256k 128k", "write -z 400k 64k", "write -P 3 500k 100k")
    expected = sample(image).raw.read_bytes()
    for waits in (False, True):
        disk, _, decoded = await opened(image, waits=waits)
        same = await disk.read(0, MIB) == expected and await disk.read(99 * KIB, 500 * KIB) == expected[99 * KIB : 599 * KIB]
        assert same
        assert (disk.read_nowait(0, MIB) is None) is waits
        assert set(decoded.units) == {4, 5}


async def test_reads_past_the_end_are_cut(tmp_path: Path, source: Path) -> None:
    """A read is cut at the disk's end, and empty from there on."""
    disk, _, _ = await opened(converted(tmp_path, "image", source, "cluster_size=64k"))
    assert disk.size == SIZE
    assert await disk.read(SIZE - 3, 99) == pattern(SIZE)[-3:]
    for offset in (SIZE, SIZE + 1, 1 << 60):
        assert disk.read_nowait(offset, 5) == b""
        assert await disk.read(offset, 5) == b""


async def test_long_reads_are_taken_in_steps(tmp_path: Path, source: Path) -> None:
    """A read of the whole disk works too, though not without waiting."""
    disk, _, _ = await opened(converted(tmp_path, "image", source, "cluster_size=64k"))
    assert disk.read_nowait(0, SIZE) is None
    same = await disk.read(0, SIZE) == pattern(SIZE)
    assert same


async def test_damaged_clusters_are_refused_alone(tmp_path: Path, source: Path) -> None:
    """A damaged entry gives an error for reads that touch it, with its offset, and for no others."""
    patched = Patched(converted(tmp_path, "image", source, "cluster_size=64k"))
    patched.put("Q", patched.l2_table_offset() + 8 * 5, 1 << 63 | 1 << 40)
    disk, _, _ = await opened(patched.save())
    assert disk.read_nowait(4 * UNIT, UNIT) == pattern(SIZE)[4 * UNIT : 5 * UNIT]
    assert disk.read_nowait(5 * UNIT - 1, 2) is None
    with pytest.raises(ImageRefused, match="image image: damaged at guest offset 327680: L2 entry 0x8000010000000000 points beyond"):
        await disk.read(5 * UNIT - 1, 2)


async def test_short_last_cluster_is_padded(tmp_path: Path, source: Path) -> None:
    """The file may end inside its last data cluster; the guest reads zeros from there."""
    image = converted(tmp_path, "image", source, "cluster_size=64k")
    disk, _, _ = await opened(image)
    whole = await disk.read(0, SIZE)
    patched = Patched(image)
    last = max(range(SIZE // UNIT), key=lambda cluster: patched.get("Q", patched.l2_table_offset() + 8 * cluster))
    end = (patched.get("Q", patched.l2_table_offset() + 8 * last) & ((1 << 56) - 1)) + 1000
    del patched.body[end:]
    disk, _, decoded = await opened(patched.save())
    expected = bytes(whole[last * UNIT : last * UNIT + 1000]) + bytes(UNIT - 1000)
    assert disk.read_nowait(last * UNIT, UNIT) == expected
    assert await disk.read(last * UNIT, UNIT) == expected
    assert await decoded.read(last * UNIT, UNIT) == expected

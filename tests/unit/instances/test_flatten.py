"""Disks made into images: the same bytes, no zeros, little memory, nobody held up."""

import threading
from pathlib import Path
from typing import Literal

import pytest
import trio

from imagefs import threads
from imagefs.errors import InvalidInput, NoSpace, StoreUnavailable
from imagefs.extents import clipped
from imagefs.holes import allocated_bytes
from imagefs.image.qcow2.deflate import deflate
from imagefs.instances.flatten import IN_FLIGHT, PIECE, flatten, virtual_size
from imagefs.instances.spool import Spool
from imagefs.units import GIB, KIB, MIB, TIB
from tests.support.overlay import PatternBase, new_disk
from tests.support.qcow2 import check_clean, decoded_by_qemu, pattern

pytestmark = pytest.mark.qemu

Format = Literal["qcow2", "raw"]
CLUSTER = 64 * KIB


class Sparse:
    """A Source of `size` bytes, zeros but for `parts` (offset: bytes). It notes what is read, and may do something before that."""

    def __init__(self, size: int, parts: dict[int, bytes]) -> None:
        self.size = size
        self.parts = dict(sorted(parts.items()))
        self.reads: list[tuple[int, int]] = []
        self.asked: list[tuple[int, int]] = []
        self.reading = 0
        self.most = 0
        self.error: dict[int, Exception] = {}

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        return None

    async def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        self.reading += 1
        self.most = max(self.most, self.reading)
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self.reading -= 1
        if offset in self.error:
            raise self.error[offset]
        body = bytearray(length)
        for start, part in self.parts.items():
            for first, last in clipped([(start, start + len(part))], offset, offset + length):
                body[first - offset : last - offset] = part[first - start : last - start]
        return bytes(body[: max(0, self.size - offset)])

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        self.asked.append((offset, length))
        await trio.lowlevel.checkpoint()
        return clipped([(start, start + len(part)) for start, part in self.parts.items()], offset, min(offset + length, self.size))

    def whole(self) -> bytes:
        body = bytearray(self.size)
        for start, part in self.parts.items():
            body[start : start + len(part)] = part
        return bytes(body)


class Told:
    """What progress was told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.steps.append((done, total))


def saved(spool: Spool, path: Path) -> Path:
    """Write what a spool's reader gives to a file."""
    with path.open("wb") as file:
        reader = spool.reader()
        while piece := reader.read(MIB):
            file.write(piece)
    return path


@pytest.fixture(params=["qcow2", "raw"])
def disk_format(request: pytest.FixtureRequest) -> Format:
    found: Format = request.param
    return found


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("size", [20 * MIB + 3584, 20 * MIB + 1001])
async def test_the_image_is_the_disk(tmp_path: Path, disk_format: Format, encrypted: bool, size: int) -> None:
    """Extents of any place and length, with zeros in them too: QEMU sees the same disk, and the image has the bytes that were said."""
    parts = {0: pattern(100), 700_000: pattern(3 * MIB, 2), 5 * MIB: bytes(MIB), 9 * MIB - 1: pattern(2, 3), 12 * MIB: pattern(4 * MIB, 4)}
    disk = Sparse(size, {**parts, size - 5: b"\1end\2"})
    with_spool = Spool(tmp_path, encrypted=encrypted)
    told = Told()
    stored = await flatten(disk, disk_format, with_spool, told)
    path = saved(with_spool, tmp_path / "image")
    assert path.stat().st_size == stored == with_spool.size
    if disk_format == "qcow2":
        check_clean(path)
        found = decoded_by_qemu(path)
    else:
        found = path.read_bytes()
    assert len(found) == virtual_size(size, disk_format)
    same = found == disk.whole().ljust(len(found), b"\0")
    assert same
    assert told.steps == sorted(told.steps)
    assert told.steps[-1] == (size, size)
    with_spool.close()


async def test_only_extents_are_read(tmp_path: Path, disk_format: Format) -> None:
    """In pieces of 1 MiB, widened to whole clusters and each byte once; of 4 TiB there is nothing but questions."""
    disk = Sparse(4 * TIB, {TIB + 5: b"x" * 10, TIB + 3 * CLUSTER - 1: b"y" * 2, 2 * TIB - 10: pattern(3 * MIB)})
    spool = Spool(tmp_path)
    await flatten(disk, disk_format, spool, Told())
    assert sorted(disk.reads)[:2] == [(TIB, CLUSTER), (TIB + 2 * CLUSTER, 2 * CLUSTER)]
    assert all(length <= PIECE and offset // PIECE == (offset + length - 1) // PIECE for offset, length in disk.reads)
    assert len(disk.reads) < 9
    assert sum(length for _, length in disk.reads) <= 3 * MIB + 6 * CLUSTER
    assert all(length <= GIB for _, length in disk.asked)
    spool.close()


async def test_an_overlay_is_flattened_with_its_base(tmp_path: Path, disk_format: Format) -> None:
    """What was written, what was zeroed and what the base shows; what is behind the base's end and was never written is not there."""
    (tmp_path / "disk").mkdir()
    base = PatternBase(3 * MIB + 700)
    disk = new_disk(tmp_path / "disk", 40 * MIB, base)
    disk.write_nowait(MIB, b"written" * 1000)
    disk.write_nowait(2 * MIB, bytes(200 * KIB))
    disk.write_nowait(39 * MIB + 8 * KIB, b"far" * 4000)
    disk.freeze()
    spool = Spool(tmp_path)
    stored = await flatten(disk, disk_format, spool, Told())
    path = saved(spool, tmp_path / "image")
    assert path.stat().st_size == stored
    found = decoded_by_qemu(path) if disk_format == "qcow2" else path.read_bytes()
    same = found == await disk.read(0, disk.size)
    assert same
    if disk_format == "raw":
        assert allocated_bytes(spool._file) < 4 * MIB
    spool.close()
    disk.close()


@pytest.mark.parametrize("size", [1, 512, CLUSTER])
async def test_a_disk_of_nothing_but_zeros(tmp_path: Path, disk_format: Format, size: int) -> None:
    """Its image is sound, and takes no data."""
    spool = Spool(tmp_path)
    stored = await flatten(Sparse(size, {}), disk_format, spool, Told())
    path = saved(spool, tmp_path / "image")
    assert path.stat().st_size == stored
    if disk_format == "qcow2":
        check_clean(path)
    else:
        assert path.read_bytes() == bytes(size)
    spool.close()


async def test_a_few_pieces_are_on_their_way_at_once(tmp_path: Path, disk_format: Format) -> None:
    """Enough to hide the store's distance, no more than the memory is meant for."""
    disk = Sparse(64 * MIB, {0: b"x" * 64 * MIB})
    spool = Spool(tmp_path)
    await flatten(disk, disk_format, spool, Told())
    assert 1 < disk.most <= IN_FLIGHT
    assert len(disk.reads) == 64
    spool.close()


async def test_pieces_are_stored_in_order_however_long_each_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece that is slow to compress holds the later ones back and not up."""
    first = threading.Event()

    def slow(cluster: bytes) -> bytes | None:
        if cluster[0] == 1:
            assert first.wait(30)
        elif cluster[0] == 3:
            first.set()
        return deflate(cluster)

    monkeypatch.setattr("imagefs.instances.flatten.deflate", slow)
    disk = Sparse(4 * MIB, {number * MIB: bytes([number + 1]) * MIB for number in range(4)})
    spool = Spool(tmp_path)
    with trio.fail_after(60):
        await flatten(disk, "qcow2", spool, Told())
    path = saved(spool, tmp_path / "image")
    check_clean(path)
    same = decoded_by_qemu(path) == disk.whole()
    assert same
    spool.close()


@pytest.mark.parametrize("where", [0, 7 * MIB, 15 * MIB])
async def test_a_disk_that_cannot_be_read_ends_it(tmp_path: Path, disk_format: Format, where: int) -> None:
    """The very error of the disk comes out, and nothing is at work any more."""
    disk = Sparse(16 * MIB, {0: b"x" * 16 * MIB})
    disk.error[where] = StoreUnavailable("the store is away")
    spool = Spool(tmp_path)
    with pytest.raises(StoreUnavailable, match="the store is away"):
        await flatten(disk, disk_format, spool, Told())
    assert disk.reading == 0
    assert threads.busy()["pack"] == 0
    spool.close()


async def test_tables_that_cannot_be_read_end_it(tmp_path: Path, disk_format: Format) -> None:
    """So does a failure to tell the extents, in the middle too."""

    class Dark(Sparse):
        async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
            if offset:
                raise StoreUnavailable("no tables")
            return await super().extents(offset, length)

    spool = Spool(tmp_path)
    with pytest.raises(StoreUnavailable, match="no tables"):
        await flatten(Dark(2 * GIB, {0: b"x" * 3 * MIB}), disk_format, spool, Told())
    spool.close()


async def test_a_disk_that_is_short_of_bytes_ends_it(tmp_path: Path, disk_format: Format) -> None:
    """Bytes that are not given are never taken for zeros."""

    class Short(Sparse):
        async def read(self, offset: int, length: int) -> bytes:
            return (await super().read(offset, length))[:-1]

    spool = Spool(tmp_path)
    with pytest.raises(StoreUnavailable, match="gave 1048575 of 1048576 bytes at offset 0"):
        await flatten(Short(MIB, {0: b"x" * MIB}), disk_format, spool, Told())
    spool.close()


async def test_what_progress_raises_ends_it(tmp_path: Path, disk_format: Format) -> None:
    """It passes through as it is."""

    def stop(done: int, total: int) -> None:
        raise NoSpace("enough")

    spool = Spool(tmp_path)
    with pytest.raises(NoSpace, match="enough"):
        await flatten(Sparse(9 * MIB, {0: b"x" * 9 * MIB}), disk_format, spool, stop)
    spool.close()


async def test_cancelling_waits_for_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a cancelled flatten has returned, nothing touches the spool any more."""
    begun, go = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    write_at = Spool.write_at
    writing: list[str] = []

    def slow(self: Spool, offset: int, body: bytes) -> None:
        writing.append("begin")
        token.run_sync_soon(begun.set)
        assert go.wait(30)
        write_at(self, offset, body)
        writing.append("end")

    monkeypatch.setattr(Spool, "write_at", slow)
    spool = Spool(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flatten, Sparse(9 * MIB, {0: pattern(9 * MIB)}), "raw", spool, Told())
        await begun.wait()
        nursery.cancel_scope.cancel()
        go.set()
    assert writing.count("begin") == writing.count("end")
    assert threads.busy()["disk"] == threads.busy()["pack"] == 0
    spool.close()


async def test_a_disk_that_is_too_large_for_qcow2_is_refused(tmp_path: Path) -> None:
    """Before anything is read."""
    disk = Sparse(65 * TIB, {0: b"x"})
    spool = Spool(tmp_path)
    with pytest.raises(InvalidInput, match="TiB are the most"):
        await flatten(disk, "qcow2", spool, Told())
    assert disk.reads == []
    spool.close()

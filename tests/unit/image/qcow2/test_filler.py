"""Guest units of a qcow2 image: fetched once, inflated once, and damaged ones refused alone."""

import contextlib
import random
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import trio

from imagefs.errors import ImagefsError, ImageRefused, StoreUnavailable, WrongBytes
from imagefs.image.qcow2.filler import BATCH, Qcow2Filler, RecentUnits
from imagefs.image.qcow2.image import open_image
from imagefs.image.qcow2.tables import Kind
from imagefs.units import KIB, MIB, UNIT, unit_count
from tests.support.qcow2 import FileSource, FileUnits, FilledSource, Patched, converted, make, pattern, qemu_io, sample

pytestmark = pytest.mark.qemu

SIZE = 6 * MIB
NOISE = random.Random(5).randbytes(SIZE // 2)


def halves() -> bytes:
    """Half noise and half zeros in each 64 KiB, so that clusters compress to about 32 KiB."""
    return b"".join(NOISE[at // 2 : at // 2 + UNIT // 2] + bytes(UNIT // 2) for at in range(0, SIZE, UNIT))


class FailingUnits(FileUnits):
    """Stored units of a file, some of which cannot be had."""

    def __init__(self, path: Path, error: ImagefsError, bad: Callable[[int], bool]) -> None:
        super().__init__(path)
        self._error = error
        self._bad = bad

    def stream_units(self, first_unit: int, count: int) -> Generator[bytes, None, None]:
        for unit, body in enumerate(super().stream_units(first_unit, count), first_unit):
            if self._bad(unit):
                raise self._error
            yield body


class CountingUnits(FileUnits):
    """Stored units of a file, counted."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.yielded = 0

    def stream_units(self, first_unit: int, count: int) -> Generator[bytes, None, None]:
        for body in super().stream_units(first_unit, count):
            self.yielded += 1
            yield body


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(halves())
    return path


async def opened(image: Path, stored: FileUnits | None = None) -> tuple[FilledSource, FileUnits]:
    stored = stored or FileUnits(image)
    return FilledSource(Qcow2Filler(await open_image(FileSource(image, waits=False), image.stem), stored)), stored


async def test_fill_streams_in_long_requests(tmp_path: Path, source: Path) -> None:
    """Everything comes in a few requests of at most 2 MiB, and nothing is fetched twice but units shared by two requests."""
    filled, stored = await opened(converted(tmp_path, "image", source, "cluster_size=64k", compress=True))
    assert await filled.read(0, SIZE) == halves()
    assert all(count <= 32 for _, count in stored.streams)
    assert sum(count for _, count in stored.streams) <= unit_count(stored.size) + len(stored.streams)
    assert len(stored.streams) <= 2 * -(-SIZE // BATCH)


async def test_fill_uses_recent_units(tmp_path: Path, source: Path) -> None:
    """Clusters in a stored unit that was just fetched cost no further request."""
    filled, stored = await opened(converted(tmp_path, "image", source, "cluster_size=64k", compress=True))
    for unit in range(unit_count(SIZE)):
        await filled.read(unit * UNIT, UNIT)
    fetched = [unit for first, count in stored.streams for unit in range(first, first + count)]
    assert len(fetched) == len(set(fetched))


async def test_fill_uses_recent_units_at_both_ends(tmp_path: Path, source: Path) -> None:
    """Of a range whose first and last units were just fetched, only the middle is requested."""
    filled, stored = await opened(converted(tmp_path, "image", source, "cluster_size=64k"))
    units: dict[int, bytes | None] = {}
    for first, count in ((4, 2), (10, 3)):
        await filled.filler.fill(first, count, units.__setitem__)
    stored.streams.clear()
    await filled.filler.fill(4, 9, units.__setitem__)
    assert [count for _, count in stored.streams] == [4]
    same = b"".join(units[unit] or bytes(UNIT) for unit in range(4, 13)) == halves()[4 * UNIT : 13 * UNIT]
    assert same


async def test_fill_needs_no_request_for_zeros(tmp_path: Path) -> None:
    """Unallocated guest bytes come from nowhere."""
    filled, stored = await opened(make(tmp_path / "image.qcow2", SIZE))
    units: dict[int, bytes | None] = {}
    await filled.filler.fill(3, 5, units.__setitem__)
    assert units == dict.fromkeys(range(3, 8))
    assert stored.streams == []


async def test_fill_passes_over_units_behind_the_end(tmp_path: Path) -> None:
    """A range that goes past the disk's end gives the units that there are, the last one short."""
    filled, _ = await opened(make(tmp_path / "image.qcow2", UNIT + 512))
    await filled.filler.fill(1, 9, filled.deliver)
    await filled.filler.fill(7, 2, filled.deliver)
    assert filled.units == {1: bytes(512)}


async def test_plan_widens_to_the_cluster(tmp_path: Path, source: Path) -> None:
    """One unit of a 2 MiB compressed cluster widens to all that the cluster's stored units bring; it is inflated once."""
    filled, _ = await opened(converted(tmp_path, "image", source, "cluster_size=2M", compress=True))
    first, count = filled.filler.plan(40)
    assert first <= 32
    assert first + count >= 64


async def test_plan_widens_to_neighbours(tmp_path: Path, source: Path) -> None:
    """Half-size compressed clusters bring a neighbour along; uncompressed ones do not."""
    filled, stored = await opened(converted(tmp_path, "small", source, "cluster_size=64k", compress=True))
    first, count = filled.filler.plan(41)
    assert 2 <= count <= 3
    await filled.filler.fill(first, count, filled.deliver)
    assert sum(units for _, units in stored.streams) <= 2
    filled, _ = await opened(converted(tmp_path, "large", source, "cluster_size=64k"))
    assert filled.filler.plan(41) == (41, 1)


async def test_plan_without_tables_is_the_unit(tmp_path: Path, source: Path) -> None:
    """When the tables are not at hand, the plan does not wait for them."""
    image = converted(tmp_path, "image", source, "cluster_size=64k", compress=True)
    filler = Qcow2Filler(await open_image(FileSource(image), "x"), FileUnits(image))
    assert filler.plan(41) == (41, 1)


async def refused_units(image: Path, error: type[ImagefsError], reason: str, stored: FileUnits | None = None) -> set[int]:
    """Fill the whole disk, expect an error, and return the units that were not delivered."""
    filled, _ = await opened(image, stored)
    with pytest.raises(error, match=reason):
        await filled.filler.fill(0, unit_count(filled.size), filled.deliver)
    expected = halves()
    for unit, body in filled.units.items():
        same = body == expected[unit * UNIT : (unit + 1) * UNIT]
        assert same, unit
    return set(range(unit_count(filled.size))) - set(filled.units)


def entry_of(patched: Patched, cluster: int) -> int:
    """Return where the L2 entry of a cluster is."""
    return patched.l2_table_offset() + 8 * cluster


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
async def test_garbage_refuses_its_cluster_alone(tmp_path: Path, source: Path, compression: str) -> None:
    """A compressed cluster whose bytes are garbage is refused; all others are delivered by the same fill."""
    image = converted(tmp_path, "image", source, f"compression_type={compression}", compress=True)
    patched = Patched(image)
    host_offset = patched.get("Q", entry_of(patched, 7)) & ((1 << 54) - 1)
    patched.body[host_offset : host_offset + 1000] = b"\xff" * 1000
    patched.save()
    assert await refused_units(image, ImageRefused, "guest offset 458752.* damaged") == {7}


async def test_bomb_refuses_its_cluster_alone(tmp_path: Path, source: Path) -> None:
    """A compressed cluster that inflates to more than a cluster is refused."""
    large = tmp_path / "bomb"
    large.write_bytes(bytes(2 * MIB) + NOISE[: 2 * MIB])
    donor = Patched(converted(tmp_path, "donor", large, "cluster_size=2M", compress=True))
    # All of the first cluster is zeros, which convert leaves out; the second one is noise and is stored as it is.
    image = make(tmp_path / "bomb.qcow2", 4 * MIB, "cluster_size=2M")
    qemu_io(image, "write -c -P 7 0 2M")
    donor = Patched(image)
    bomb_offset = donor.get("Q", donor.l2_table_offset()) & ((1 << 49) - 1)
    bomb = donor.body[bomb_offset : bomb_offset + 3000]
    patched = Patched(converted(tmp_path, "image", source, "cluster_size=64k", compress=True))
    host_offset = patched.get("Q", entry_of(patched, 9)) & ((1 << 54) - 1)
    patched.body[host_offset : host_offset + len(bomb)] = bomb
    assert await refused_units(patched.save(), ImageRefused, "more than a cluster") == {9}


async def test_l2_entry_beyond_the_end_refuses_its_cluster_alone(tmp_path: Path, source: Path) -> None:
    """An L2 entry that points behind the file's end is refused when it is read, and its neighbours are not."""
    patched = Patched(converted(tmp_path, "image", source, "cluster_size=64k"))
    patched.put("Q", entry_of(patched, 5), 1 << 63 | 1 << 40)
    assert await refused_units(patched.save(), ImageRefused, "beyond the file's end") == {5}


@pytest.mark.parametrize("entry", [1 << 50, 0x30000, 0x30001])
async def test_bad_l1_entries_end(tmp_path: Path, source: Path, entry: int) -> None:
    """An L1 entry that points behind the end, at the L1 table itself or at no cluster refuses its range, and nothing hangs."""
    patched = Patched(converted(tmp_path, "image", source, "cluster_size=64k"))
    assert patched.l1_table_offset == 0x30000
    patched.put("Q", patched.l1_table_offset, entry)
    assert await refused_units(patched.save(), ImageRefused, "L1 entry 0") == set(range(unit_count(SIZE)))


async def test_l2_table_made_of_other_tables_ends(tmp_path: Path, source: Path) -> None:
    """An L1 entry that points at a refcount table gives refusals or bytes of the file, and ends."""
    for offset in (0x10000, 0x20000):
        patched = Patched(converted(tmp_path, "image", source, "cluster_size=64k"))
        patched.put("Q", patched.l1_table_offset, 1 << 63 | offset)
        filled, _ = await opened(patched.save())
        with contextlib.suppress(ImageRefused):
            await filled.filler.fill(0, unit_count(SIZE), filled.deliver)


async def test_truncated_file_refuses_what_is_missing(tmp_path: Path, source: Path) -> None:
    """Of a file that was cut, the clusters that are there are read, and the others are refused."""
    patched = Patched(converted(tmp_path, "image", source, "cluster_size=64k"))
    del patched.body[3 * MIB :]
    missing = await refused_units(patched.save(), ImageRefused, "beyond the file's end")
    assert missing
    assert 0 not in missing


async def test_aliases_of_one_cluster_are_read(tmp_path: Path, source: Path) -> None:
    """8192 entries that name one host cluster are odd, but each read of them ends and costs no more than others."""
    patched = Patched(converted(tmp_path, "image", source, "cluster_size=64k"))
    entry = patched.get("Q", entry_of(patched, 3))
    for cluster in range(8192):
        patched.put("Q", entry_of(patched, cluster), entry)
    filled, stored = await opened(patched.save())
    assert await filled.read(0, 4 * MIB) == halves()[3 * UNIT : 4 * UNIT] * 64
    assert len(stored.streams) == 1


async def test_wrong_bytes_spare_other_units(tmp_path: Path, source: Path) -> None:
    """When one stored unit fails its digest, all guest units that do not need it are delivered."""
    image = converted(tmp_path, "image", source, "cluster_size=64k", compress=True)
    stored = FailingUnits(image, WrongBytes("unit 20 is wrong"), lambda unit: unit == 20)
    missing = await refused_units(image, WrongBytes, "unit 20", stored)
    extents = [(await (await open_image(FileSource(image), "x")).extents(unit * UNIT, UNIT))[0] for unit in range(unit_count(SIZE))]
    needing = {
        unit
        for unit, extent in enumerate(extents)
        if extent.kind is Kind.COMPRESSED and extent.host_offset < 21 * UNIT and extent.host_offset + extent.host_length > 20 * UNIT
    }
    assert missing == needing


async def test_store_errors_pass_through(tmp_path: Path, source: Path) -> None:
    """A store that does not answer is said to be so, after what arrived was delivered."""
    image = converted(tmp_path, "image", source, "cluster_size=64k")
    stored = FailingUnits(image, StoreUnavailable("connection refused"), lambda unit: unit >= 15)
    assert len(await refused_units(image, StoreUnavailable, "connection refused", stored)) < unit_count(SIZE)


async def test_cancelled_fill_stops_at_the_next_stored_unit(tmp_path: Path, source: Path) -> None:
    """A fill that nobody waits for any more ends its requests early, and delivers nothing after it has returned."""
    filled, stored = await opened(converted(tmp_path, "image", source, "cluster_size=64k"), CountingUnits(tmp_path / "image.qcow2"))
    assert isinstance(stored, CountingUnits)
    with trio.CancelScope() as scope:

        def deliver(unit: int, body: bytes | None) -> None:
            filled.deliver(unit, body)
            trio.from_thread.run_sync(scope.cancel)

        await filled.filler.fill(0, 16, deliver)
    assert scope.cancelled_caught
    assert stored.yielded == len(filled.units) == 1


async def test_short_table_is_refused(tmp_path: Path, source: Path) -> None:
    """A source that gives less of a table than there must be is not believed."""
    image = converted(tmp_path, "image", source, "cluster_size=64k")
    tables = FileSource(image, waits=False)
    opened_image = await open_image(tables, "x")
    with image.open("r+b") as file:
        file.truncate(0x30000 + 4)
    with pytest.raises(ImageRefused, match="of a table at 196608"):
        await opened_image.extents(0, UNIT)
    assert opened_image.stored_size == tables.size


async def test_small_clusters_are_gathered(tmp_path: Path) -> None:
    """A guest unit whose 512-byte clusters lie all over the file is put together from all of them."""
    image = make(tmp_path / "image.qcow2", MIB, "cluster_size=512")
    clusters = list(range(0, MIB // 512, 3))
    random.Random(1).shuffle(clusters)
    qemu_io(image, *(f"write -P {cluster % 251 + 1} {cluster * 512} 512" for cluster in clusters))
    subject = sample(image)
    filled, _ = await opened(image)
    same = await filled.read(0, MIB) == subject.raw.read_bytes()
    assert same


def test_recent_units_stay_within_their_budget() -> None:
    """The least recently used stored units go first."""
    recent = RecentUnits(3 * UNIT)
    for unit in range(3):
        recent.add(unit, pattern(10, unit))
    assert recent.get(0) == pattern(10, 0)
    recent.add(3, b"")
    assert [unit for unit in range(4) if recent.get(unit) is not None] == [0, 2, 3]
    assert RecentUnits(8 * KIB).get(0) is None

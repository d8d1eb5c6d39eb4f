"""Tests of guessing what a guest reads: on a small guest that mke2fs made, on disks that are none, and on disks that fail."""

import os
import statistics
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio
import trio.testing

from imagefs.errors import ImageRefused, StoreUnavailable
from imagefs.profile import warmup
from imagefs.profile.rounds import Plan, Round
from imagefs.profile.warmup import PIECE, warm_extents
from imagefs.units import KIB, MIB, UNIT
from imagefs.urgency import Urgency
from tests.support.plans import GUEST_ROOT, bytes_of, debugfs, make_ext, make_guest, partitioned, plant

MUCH = 1 << 30


class GuessedDisk:
    """A disk that is cached unit by unit, and knows what was asked of it."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.size = len(body)
        self.here: set[int] = set()
        self.prefetched: list[tuple[int, int, Urgency]] = []
        self.read_bytes = 0
        self.at_once = self.most_at_once = 0
        self.failing: Exception | None = None
        self.short = False

    def is_here(self, offset: int, length: int) -> bool:
        return set(range(offset // UNIT, -(-(offset + length) // UNIT))) <= self.here

    def keep(self, offset: int, length: int) -> None:
        raise AssertionError("a guess is not kept")

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        return self.body[offset : offset + length] if self.is_here(offset, length) else None

    async def prefetch(self, offset: int, length: int, urgency: Urgency = Urgency.AHEAD) -> None:
        self.prefetched.append((offset, length, urgency))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await trio.lowlevel.checkpoint()
        self.at_once -= 1
        self.here.update(range(offset // UNIT, -(-(offset + length) // UNIT)))

    async def read(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.failing is not None and len(self.prefetched) > 3:
            raise self.failing
        self.read_bytes += length
        return self.body[offset : offset + (length // 2 if self.short else length)]

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        return [(offset, min(offset + length, self.size))]


async def guessed(disk: GuessedDisk, budget: int = MUCH) -> list[tuple[int, int]]:
    """Return what is yielded, having checked what holds for any disk: whole units within it, none twice, no more than the budget."""
    found: list[tuple[int, int]] = []
    told: set[int] = set()
    async for offset, length in warm_extents(disk, budget):
        assert offset % UNIT == 0
        assert 0 < length <= PIECE
        assert 0 <= offset < disk.size
        assert offset + length <= disk.size
        units = set(span(offset, length))
        assert not units & told
        told |= units
        found.append((offset, length))
    assert cost(disk, found) <= budget
    return found


def span(offset: int, length: int) -> range:
    """Return the units of a range."""
    return range(offset // UNIT, -(-(offset + length) // UNIT))


def covered(disk: GuessedDisk, found: list[tuple[int, int]]) -> set[int]:
    """Return the units that are here after the guess, or on their way."""
    return disk.here.union(*(span(*extent) for extent in found))


def cost(disk: GuessedDisk, found: list[tuple[int, int]]) -> int:
    """Return the bytes that are fetched because of the guess."""
    return sum(min(UNIT, disk.size - unit * UNIT) for unit in covered(disk, found))


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_guest(tmp_path_factory.mktemp("guest"))


def units_of(guest: bytes, path: str, tmp_path: Path) -> set[int]:
    """Return the units that a file of the guest lies in, by debugfs."""
    image = tmp_path / "root"
    if not image.exists():
        image.write_bytes(guest[GUEST_ROOT:])
    block_size = next(int(line.split()[-1]) for line in debugfs(image, "stats", "-h").splitlines() if line.startswith("Block size"))
    return {(GUEST_ROOT + int(block) * block_size) // UNIT for block in debugfs(image, "blocks", path).split()}


async def test_what_a_boot_reads_is_guessed_and_other_files_are_not(guest: bytes, tmp_path: Path) -> None:
    """The kernel and initrd of GRUB's first entry, PID 1, the units and what they start, and its interpreter; not the old kernel."""
    disk = GuessedDisk(guest)
    units = covered(disk, await guessed(disk))
    for path in ("/boot/grub/grub.cfg", "/boot/vmlinuz-6.1.0-9-amd64", "/boot/initrd.img-6.1.0-9-amd64", "/usr/lib/systemd/systemd",
                 "/usr/lib/systemd/system/unit50.service", "/opt/web/server", "/usr/bin/python3.11", "/etc/fstab"):  # fmt: skip
        wanted = units_of(guest, path, tmp_path)
        assert wanted, path
        assert wanted <= units, path
    for path in ("/boot/vmlinuz-5.10.0-1-amd64", "/opt/never/read"):
        wanted = units_of(guest, path, tmp_path)
        assert len(wanted & units) <= 3, path  # its neighbours' units, at its ends
    assert {0, disk.size // UNIT - 1} <= units


async def test_the_kernel_comes_before_the_system(guest: bytes, tmp_path: Path) -> None:
    """GRUB reads first, and what it reads is told first."""
    order = [unit for extent in await guessed(GuessedDisk(guest)) for unit in span(*extent)]
    kernel = [order.index(unit) for unit in units_of(guest, "/boot/vmlinuz-6.1.0-9-amd64", tmp_path) if unit in order]
    python = [order.index(unit) for unit in units_of(guest, "/usr/bin/python3.11", tmp_path) if unit in order]
    assert statistics.median(kernel) < statistics.median(python)
    assert len(kernel) > 40


async def test_structure_is_read_in_exact_units_and_few_at_a_time(guest: bytes) -> None:
    """What is read on the way is brought as if a reader waited, without windows around it, and a small part of the disk."""
    disk = GuessedDisk(guest)
    await guessed(disk)
    assert {urgency for _, _, urgency in disk.prefetched} == {Urgency.DEMAND}
    assert 1 < disk.most_at_once <= 16
    assert sum(length for _, length, _ in disk.prefetched) < 8 * MIB


@pytest.mark.parametrize("budget", [0, 1, UNIT, 5 * UNIT, MIB, 4 * MIB])
async def test_the_budget_holds(guest: bytes, budget: int) -> None:
    """What is read and what is told are within the budget together."""
    disk = GuessedDisk(guest)
    await guessed(disk, budget)
    assert sum(length for _, length, _ in disk.prefetched) <= budget


@pytest.mark.parametrize(
    "body",
    [b"", b"x", bytes(100), bytes(UNIT + 1), bytes(64 * MIB), os.urandom(3 * MIB), b"\x55\xaa" * 5 * MIB, b"\xff" * 20 * MIB],
    ids=["nothing", "a byte", "100 bytes", "a unit and a byte", "zeros", "random", "signatures", "ones"],
)
async def test_a_disk_that_makes_no_sense_costs_its_edges(body: bytes) -> None:
    """At most 4 MiB are told and read of what cannot be parsed."""
    disk = GuessedDisk(body)
    found = await guessed(disk)
    assert cost(disk, found) <= 4 * MIB


async def test_unknown_partitions_cost_little(tmp_path: Path) -> None:
    """A table full of partitions that hold nothing that is known adds a look at some of them."""
    script = "".join(f"size=2048, type={number:08X}-0000-4000-8000-000000000000\n" for number in range(1, 100))
    partitioned(tmp_path / "disk", "gpt", script, 256 * MIB)
    disk = GuessedDisk((tmp_path / "disk").read_bytes())
    found = await guessed(disk)
    assert cost(disk, found) <= 4 * MIB


async def test_a_store_that_fails_is_the_readers_to_know(guest: bytes) -> None:
    """A StoreError ends the guess as what it is, not as a group of errors."""
    disk = GuessedDisk(guest)
    disk.failing = StoreUnavailable("the link is down")
    with pytest.raises(StoreUnavailable, match="the link is down"):
        await guessed(disk)


async def test_what_is_refused_is_left_out(guest: bytes) -> None:
    """A range that the image's format refuses ends the way to it and nothing else."""
    disk = GuessedDisk(guest)
    disk.failing = ImageRefused("a cluster outside the file")
    assert await guessed(disk)


async def test_short_answers_end_the_way_to_them(guest: bytes) -> None:
    """A disk that gives less than was asked for is guessed at as far as it goes."""
    disk = GuessedDisk(guest)
    disk.short = True
    assert await guessed(disk)


async def test_a_slow_disk_ends_the_structure(guest: bytes, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute no more is read, and what is known is told."""

    class SlowDisk(GuessedDisk):
        async def prefetch(self, offset: int, length: int, urgency: Urgency = Urgency.AHEAD) -> None:
            await trio.sleep(20)
            await super().prefetch(offset, length, urgency)

    async def advanced(plan: Plan[None], answers: list[bytes] | None) -> Round | None:
        return warmup._step(plan, answers)  # no thread: the clock would jump while it works

    monkeypatch.setattr(warmup, "_advance", advanced)
    disk = SlowDisk(guest)
    await guessed(disk)
    assert trio.current_time() <= 100


async def test_closing_and_cancelling_leave_nothing(guest: bytes) -> None:
    """A guess may be given up at any extent and at any read."""
    disk = GuessedDisk(guest)
    guess: AsyncGenerator[tuple[int, int], None] = warm_extents(disk, MUCH)
    await anext(guess)
    await guess.aclose()
    for extents in range(1, 30, 3):
        with trio.CancelScope() as scope:
            left = extents
            async for _ in warm_extents(GuessedDisk(guest), MUCH):
                left -= 1
                if not left:
                    scope.cancel()
    assert await guessed(disk)


async def test_a_disk_that_is_no_cache_is_read_plainly(tmp_path: Path) -> None:
    """Without a prefetch there is nothing but read."""

    class Plain:
        def __init__(self, body: bytes) -> None:
            self.body, self.size, self.reads = body, len(body), 0

        def read_nowait(self, offset: int, length: int) -> bytes | None:
            return None

        async def read(self, offset: int, length: int) -> bytes:
            self.reads += 1
            return self.body[offset : offset + length]

        async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
            return []

    plant(tmp_path / "tree", {"/usr/lib/systemd/systemd": b"pid 1" * 100 * KIB})
    make_ext(tmp_path / "tree", tmp_path / "image", 16 * MIB, "-t", "ext4")
    disk = Plain((tmp_path / "image").read_bytes())
    found = [extent async for extent in warm_extents(disk, MUCH)]
    assert disk.reads
    assert bytes_of(disk.body, found, disk.size).count(b"pid 1" * 1000) >= 50


async def test_newest_kernel_without_a_configuration(tmp_path: Path) -> None:
    """A filesystem of its own for /boot, without grub.cfg: the newest version is it."""
    files: dict[str, bytes | str] = {"/vmlinuz-6.1.0-9-amd64": b"nine " * 400 * KIB, "/vmlinuz-6.1.0-10-amd64": b"ten " * 400 * KIB}
    plant(tmp_path / "tree", files)
    make_ext(tmp_path / "tree", tmp_path / "image", 16 * MIB, "-t", "ext4")
    disk = GuessedDisk((tmp_path / "image").read_bytes())
    found = bytes_of(disk.body, await guessed(disk), disk.size)
    assert found.count(b"ten ") > 300 * KIB
    assert found.count(b"nine ") < 100 * KIB

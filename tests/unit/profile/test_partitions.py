"""Tests of finding partitions, against tables that sfdisk made, and of tables that lead nowhere."""

import struct
from pathlib import Path

import pytest

from imagefs.profile.partitions import MAX_PARTITIONS, Partition, find_partitions
from imagefs.units import KIB, MIB
from tests.support.plans import partitioned, run_plan

SIZE = 64 * MIB


def found(disk: bytes) -> list[Partition]:
    partitions, _ = run_plan(find_partitions(disk[: 64 * KIB], len(disk)), disk)
    return partitions


def test_primary_and_logical_partitions_of_an_mbr(tmp_path: Path) -> None:
    """A chain of logical partitions is followed; kinds are told from types."""
    script = "start=2048, size=8192, type=83\nstart=16384, size=65536, type=5\nstart=20480, size=4096, type=83\nstart=28672, size=4096, type=82\n"
    partitioned(tmp_path / "disk", "dos", script, SIZE)
    assert found((tmp_path / "disk").read_bytes()) == [
        Partition(MIB, 4 * MIB), Partition(10 * MIB, 2 * MIB), Partition(14 * MIB, 2 * MIB, "swap"),
    ]  # fmt: skip


def test_partitions_of_a_gpt(tmp_path: Path) -> None:
    """Kinds are told from type GUIDs, in the order of the table."""
    bios = "21686148-6449-6E6F-744E-656564454649"
    script = f"start=2048, size=2048, type={bios}\nstart=4096, size=8192, type=U\nstart=12288, size=4096, type=S\nstart=16384, type=L\n"
    partitioned(tmp_path / "disk", "gpt", script, SIZE)
    partitions = found((tmp_path / "disk").read_bytes())
    assert [(part.start, part.kind) for part in partitions] == [(MIB, "bios"), (2 * MIB, "esp"), (6 * MIB, "swap"), (8 * MIB, "")]
    assert partitions[1].length == 4 * MIB


@pytest.mark.parametrize("disk", [bytes(MIB), b"\xeb" * MIB, b"", b"\x55\xaa"], ids=["zeros", "anything", "nothing", "two bytes"])
def test_a_disk_without_a_table_is_one_partition(disk: bytes) -> None:
    """A filesystem may begin at the disk's first byte."""
    assert found(disk) == [Partition(0, len(disk))]


def table(*entries: tuple[int, int, int]) -> bytes:
    """Return a sector with (type, first, count) entries."""
    sector = bytearray(512)
    for index, (kind, first, count) in enumerate(entries):
        sector[446 + 16 * index + 4] = kind
        struct.pack_into("<II", sector, 446 + 16 * index + 8, first, count)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def test_a_chain_of_logical_partitions_that_goes_round_ends() -> None:
    """The next table may be the same one again."""
    disk = bytearray(MIB)
    disk[:512] = table((5, 100, 1000))
    disk[100 * 512 : 101 * 512] = table((0x83, 10, 20), (5, 0, 1000))
    partitions, course = run_plan(find_partitions(bytes(disk[: 64 * KIB]), MIB), bytes(disk))
    assert set(partitions) == {Partition(110 * 512, 20 * 512)}
    assert len(course.rounds) < 20


def test_partitions_are_cut_to_the_disk() -> None:
    """One that begins outside is none, one that ends outside ends with the disk."""
    disk = table((0x83, 1000, 0xFFFFFFFF), (0x83, 0xFFFFFFF0, 8)) + bytes(MIB - 512)
    assert found(disk) == [Partition(1000 * 512, MIB - 1000 * 512)]


@pytest.mark.parametrize(("at", "count", "step"), [(2, 0xFFFFFFFF, 128), (2, 128, 0), (2, 128, 127), (1 << 60, 128, 128), (0, 128, 0xFFFFFF80)])
def test_a_damaged_gpt_ends_within_bounds(at: int, count: int, step: int) -> None:
    """Counts, sizes and places of nonsense give no partition outside the disk, and no endless list."""
    disk = bytearray(MIB)
    disk[:512] = table((0xEE, 1, 2047))
    struct.pack_into("<8s", disk, 512, b"EFI PART")
    struct.pack_into("<QII", disk, 512 + 72, at, count, step)
    for entry in range(1024, 48 * KIB, 128):
        struct.pack_into("<16sQQ", disk, entry, b"x" * 16, 0, 0)
        struct.pack_into("<QQ", disk, entry + 32, 34, 1 << 50)
    partitions = found(bytes(disk))
    assert len(partitions) <= MAX_PARTITIONS
    assert all(part.start >= 0 and part.start + part.length <= MIB for part in partitions)

"""A guess at damaged disks: whatever the bytes are, it ends, stays within its bounds and inside the disk, and raises nothing."""

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagefs.profile import elf
from imagefs.profile.forecast import forecast
from imagefs.profile.warmup import warm_extents
from imagefs.units import KIB, MIB, UNIT
from tests.support.plans import GUEST_ROOT, make_guest, run_plan

BUDGET = 32 * MIB


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_guest(tmp_path_factory.mktemp("guest"))


class Damaged:
    """A disk that counts what is read of it, and gives bytes with damages in them."""

    def __init__(self, body: bytes, damages: list[tuple[int, bytes]]) -> None:
        raw = bytearray(body)
        for offset, what in damages:
            raw[offset : offset + len(what)] = what
        self.body = bytes(raw[: len(body)])
        self.size = len(self.body)
        self.read_bytes = 0

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        return None

    async def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset < self.size
        self.read_bytes += length
        return self.body[offset : offset + length]

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        return []


async def _check(disk: Damaged) -> None:
    told = 0
    seen: set[int] = set()
    async for offset, length in warm_extents(disk, BUDGET):
        assert offset >= 0
        assert length > 0
        assert offset + length <= disk.size
        assert not seen & set(range(offset // UNIT, -(-(offset + length) // UNIT)))
        seen.update(range(offset // UNIT, -(-(offset + length) // UNIT)))
        told += length
    assert told <= BUDGET
    assert disk.read_bytes <= 128 * MIB


# Where structure is: table, superblock, descriptors, bitmaps and the first inodes and directories of the guest.
_PLACES = st.one_of(
    st.integers(0, 4 * KIB),
    st.integers(GUEST_ROOT, GUEST_ROOT + 8 * KIB),
    st.integers(GUEST_ROOT, GUEST_ROOT + MIB),
    st.integers(0, 40 * MIB),
)
_BYTES = st.one_of(
    st.binary(min_size=1, max_size=64),
    st.sampled_from([b"\xff" * 4, bytes(4), b"\x01\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff" * 512, bytes(4 * KIB)]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages=st.lists(st.tuples(_PLACES, _BYTES), min_size=1, max_size=12))
def test_a_damaged_guest_is_guessed_within_bounds(guest: bytes, damages: list[tuple[int, bytes]]) -> None:
    """Any damage to tables, superblock, inodes, maps, directories and files."""
    trio.run(_check, Damaged(guest, damages))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(1, 8)), min_size=1, max_size=6))
def test_structures_in_wrong_places(guest: bytes, moves: list[tuple[int, int, int]]) -> None:
    """Blocks of structure copied over others: directories that hold themselves, maps that point to maps."""
    damages = [(GUEST_ROOT + to * KIB, guest[GUEST_ROOT + start * KIB : GUEST_ROOT + (start + count) * KIB]) for start, to, count in moves]
    trio.run(_check, Damaged(guest, damages))


@settings(max_examples=60, deadline=None)
@given(
    start=st.sampled_from([b"", b"\x55\xaa", b"XFSB", b"\xeb\x3c\x90MSDOS5.0", b"LABELONE"]),
    at=st.sampled_from([0, 3, 510, 512, 1024, 1080, 64 * KIB + 64]),
    filling=st.binary(min_size=1, max_size=KIB),
)
def test_disks_of_anything(start: bytes, at: int, filling: bytes) -> None:
    """Bytes that repeat, with a signature of something somewhere."""
    body = (filling * (2 * MIB // len(filling) + 1))[: 2 * MIB]
    trio.run(_check, Damaged(body, [(at, start), (510, b"\x55\xaa")]))


@settings(max_examples=30, deadline=None)
@given(size=st.integers(0, 1 << 62), body=st.binary(max_size=4 * KIB))
def test_the_plan_ends_whatever_it_is_answered(size: int, body: bytes) -> None:
    """A plan that is answered with the same bytes wherever it looks comes to an end."""
    plan = forecast(size)
    asked = next(plan)
    for _ in range(1000):
        try:
            asked = plan.send([body[:length] for _, length in asked.wanted])
        except StopIteration:
            return
    raise AssertionError("a plan must end")


@given(head=st.binary(max_size=KIB), dynamic=st.binary(max_size=KIB), names=st.binary(max_size=KIB))
def test_parsers_of_programs_take_anything(head: bytes, dynamic: bytes, names: bytes) -> None:
    """ELF files are anybody's too."""
    place = elf.parse_program(b"\x7fELF\x02\x01" + head)
    needs = elf.parse_dynamic(place or elf.Program(0, 0, ((0, 0, 1 << 63),)), dynamic)
    for name in elf.parse_names(needs, names) if needs else []:
        assert "/" not in name


def test_the_sound_guest_is_guessed(guest: bytes) -> None:
    """The one that is damaged above has a kernel that is found."""
    _, course = run_plan(forecast(len(guest)), guest)
    assert sum(length for _, length in course.likely) > 6 * MIB

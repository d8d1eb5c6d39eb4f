"""An overlay against what a disk is: bytes at offsets, that survive crashes as far as they were promised to."""

import contextlib
import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from imagefs.overlay.block_map import PAGE_BLOCKS
from imagefs.overlay.disk import OverlayDisk
from imagefs.units import BLOCK
from tests.support.overlay import BASE_IDENTITY, Host, PatternBase, build, new_disk, pattern

BLOCKS = 2 * PAGE_BLOCKS + 5
SIZE = (BLOCKS - 1) * BLOCK + 700
"""Three pages of the durable map, and a last block that is short."""
BASE_SIZE = (PAGE_BLOCKS + 1) * BLOCK + 1234
WINDOWS = [range(8), range(PAGE_BLOCKS - 4, PAGE_BLOCKS + 5), range(BLOCKS - 8, BLOCKS)]
"""The blocks that are touched: at the start, where a map page and the base end, and at the end of the disk."""

Range = tuple[int, int]


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    """An offset and a length within a window; often whole blocks, sometimes empty."""
    window = draw(st.sampled_from(WINDOWS))
    first = draw(st.integers(window.start, window.stop - 1))
    count = draw(st.integers(1, window.stop - first))
    start, stop = first * BLOCK, min(SIZE, (first + count) * BLOCK)
    if draw(st.booleans()):
        start = draw(st.integers(start, min(stop, start + BLOCK)))
        stop = draw(st.integers(max(start, stop - BLOCK), stop))
    return start, stop - start


def content(length: int, seed: int) -> bytes:
    """Noise in which some blocks' worth of bytes are zeros; all zeros for seed 0."""
    chance = random.Random(seed)
    pieces = (chance.randbytes(BLOCK) if seed and chance.random() < 0.7 else bytes(BLOCK) for _ in range(length // BLOCK + 1))
    return b"".join(pieces)[:length]


contents = st.integers(0, 1 << 16)


class Killed(Exception):
    """The daemon is gone: nothing runs after this."""


class OverlayMachine(RuleBasedStateMachine):
    """Writes, zeroes, flushes, restarts and loses power; `blocks` is what a reader must see."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.generation = 0
        self.blocks: dict[int, bytes] = {}

    @initialize(over_image=st.booleans(), has_holes=st.booleans())
    def start(self, over_image: bool, has_holes: bool) -> None:
        self.base = PatternBase(BASE_SIZE) if over_image else None
        self.host = Host(has_holes=has_holes)
        (self.directory / "0").mkdir()
        self.disk = new_disk(self.directory / "0", SIZE, self.base, self.host.calls())
        self.made = len(self.host.log)
        self.first = {block: self.fresh(block) for window in WINDOWS for block in window}

    def teardown(self) -> None:
        if hasattr(self, "disk"):
            self.read_all()
            self.disk.close()
        shutil.rmtree(self.directory)

    # What a reader must see.

    def length(self, block: int) -> int:
        return min(BLOCK, SIZE - block * BLOCK)

    def fresh(self, block: int) -> bytes:
        """Return what a block shows that was never written."""
        shown = max(0, min(BASE_SIZE - block * BLOCK, BLOCK)) if self.base else 0
        return pattern(block * BLOCK, shown).ljust(self.length(block), b"\0")[: self.length(block)]

    def now(self, block: int) -> bytes:
        return self.blocks.get(block, self.first[block])

    def expect(self, offset: int, body: bytes) -> None:
        """Note a write: in the model, and in the host's log for what may be there after a power loss."""
        changes = {}
        for block in range(offset // BLOCK, -(-(offset + len(body)) // BLOCK)):
            start, stop = max(offset, block * BLOCK), min(offset + len(body), (block + 1) * BLOCK)
            old = self.now(block)
            changes[block] = old[: start - block * BLOCK] + body[start - offset : stop - offset] + old[stop - block * BLOCK :]
        self.blocks |= changes
        self.host.log.append(("begin", None, changes))

    def shown(self, offset: int, length: int) -> bytes:
        if not length:
            return b""
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        return b"".join(self.now(block) for block in range(first, last + 1))[offset - first * BLOCK :][:length]

    def run(self, work: Callable[[], Awaitable[object]]) -> None:
        trio.run(self._run, work)

    async def _run(self, work: Callable[[], Awaitable[object]]) -> None:
        await work()

    # What happens.

    @rule(where=ranges(), seed=contents, slow=st.booleans())
    def write(self, where: Range, seed: int, slow: bool) -> None:
        offset, length = where
        body = content(length, seed)
        if self.base:
            self.base.slow = slow

        async def work() -> None:
            assert await self.disk.write(offset, body) == length

        self.expect(offset, body)
        self.run(work)

    def write_at_once(self, where: Range, seed: int) -> None:
        """Write on the event loop; the base is in memory. A block that is not is left out, which does not happen here."""
        body = content(where[1], seed)
        if self.base:
            self.base.slow = False
        self.expect(where[0], body)
        assert self.disk.write_nowait(where[0], body) == where[1]

    @rule(where=ranges())
    def write_zeroes(self, where: Range) -> None:
        self.expect(where[0], bytes(where[1]))
        self.run(lambda: self.disk.write_zeroes(*where))

    @rule(where=ranges())
    def discard(self, where: Range) -> None:
        offset, length = where
        start = -(-offset // BLOCK) * BLOCK
        stop = offset + length if offset + length == SIZE else (offset + length) // BLOCK * BLOCK
        if start < stop:
            self.expect(start, bytes(stop - start))
        self.run(lambda: self.disk.discard(offset, length))

    @rule(where=ranges(), slow=st.booleans())
    def read(self, where: Range, slow: bool) -> None:
        if self.base:
            self.base.slow = slow

        async def work() -> None:
            assert await self.disk.read(*where) == self.shown(*where)
            assert self.disk.read_nowait(*where) in (None, self.shown(*where))

        self.run(work)

    @rule()
    def flush(self) -> None:
        self.flush_with()

    @rule(during=st.lists(st.tuples(ranges(), contents), max_size=3), before=st.lists(st.tuples(ranges(), contents), max_size=2))
    def flush_while_writing(self, during: list[tuple[Range, int]], before: list[tuple[Range, int]]) -> None:
        """Writes that come after a flush took the states, before and while the data is synced."""
        self.flush_with(before, during)

    def flush_with(self, before: Sequence[tuple[Range, int]] = (), during: Sequence[tuple[Range, int]] = ()) -> None:
        def writes(some: Sequence[tuple[Range, int]], suffix: str) -> None:
            if suffix == ".data":
                for where, seed in some:
                    trio.from_thread.run_sync(self.write_at_once, where, seed)

        self.host.before_sync = lambda suffix: writes(before, suffix)
        self.host.during_sync = lambda suffix: writes(during, suffix)
        begun = len(self.host.log)
        self.run(self.disk.flush)
        self.host.log.append(("flushed", None, begun))
        self.host.before_sync = self.host.during_sync = lambda suffix: None

    @rule()
    def restart(self) -> None:
        """The daemon dies of kill -9: nothing is flushed, and nothing may be lost."""
        self.disk.close()
        self.disk = OverlayDisk.open(self.directory / str(self.generation), "vda", self.base, self.host.calls())

    @rule(suffix=st.sampled_from([".data", ".map"]))
    def restart_while_flushing(self, suffix: str) -> None:
        """The daemon dies in the middle of a flush."""

        def die(where: str) -> None:
            if where == suffix:
                raise Killed

        self.host.during_sync = die
        with contextlib.suppress(Killed):
            self.run(self.disk.flush)
        self.host.during_sync = lambda suffix: None
        self.restart()

    @rule(chance=st.randoms(use_true_random=False), back=st.integers(0, 5), during=st.lists(st.tuples(ranges(), contents), max_size=1))
    def lose_power_while_flushing(self, chance: random.Random, back: int, during: list[tuple[Range, int]]) -> None:
        self.flush_with((), during)
        self.lose_power(chance, back)

    @rule(chance=st.randoms(use_true_random=False), back=st.integers(0, 40))
    def lose_power(self, chance: random.Random, back: int) -> None:
        """The power fails `back` steps of the host ago; any part of what was not synced is lost."""
        until = max(self.made, len(self.host.log) - back)
        allowed = self.allowed(until)
        pages = self.host.after_power_loss(until, chance)
        old = self.directory / str(self.generation)
        sizes = {suffix: (old / f"vda{suffix}").stat().st_size for suffix in (".data", ".map")}
        self.disk.close()
        self.generation += 1
        directory = self.directory / str(self.generation)
        build(directory, "vda", pages, sizes)
        shutil.copy(old / "vda.live", directory / "vda.live")  # of another boot: must not be believed
        shutil.rmtree(old)
        self.host = Host(self.generation, pages, self.host.has_holes)
        self.made = 0
        self.disk = OverlayDisk.open(directory, "vda", self.base, self.host.calls())
        self.take_stock(allowed)

    def allowed(self, until: int) -> dict[int, set[bytes]]:
        """Return what each block may hold after a power loss: what it did when the last flush to end began, or anything since."""
        log = self.host.log[:until]
        begun = max((content for kind, _, content in log if kind == "flushed" and isinstance(content, int)), default=0)
        allowed = {block: {body} for block, body in self.first.items()}
        for index, (kind, _, changes) in enumerate(log):
            if kind == "begin":
                assert isinstance(changes, dict)
                for block, body in changes.items():
                    allowed[block] = {body} if index < begun else allowed[block] | {body}
        return allowed

    def take_stock(self, allowed: dict[int, set[bytes]]) -> None:
        if self.base:
            self.base.slow = False
        found = {}
        for block in self.first:
            body = self.disk.read_nowait(block * BLOCK, BLOCK)
            assert body is not None
            assert bytes(body) in allowed[block], f"block {block} holds what nobody wrote"
            found[block] = bytes(body)
        self.first, self.blocks = found, {}

    @invariant()
    def maps_fit(self) -> None:
        if hasattr(self, "disk"):
            self.disk.check_invariants()

    def read_all(self) -> None:
        if self.base:
            self.base.slow = False
        for window in WINDOWS:
            length = min(SIZE, window.stop * BLOCK) - window.start * BLOCK
            assert self.disk.read_nowait(window.start * BLOCK, length) == self.shown(window.start * BLOCK, length)


OverlayMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class TestOverlay(OverlayMachine.TestCase):  # type: ignore[misc, valid-type]  # hypothesis makes the class at run time
    """Whatever is written, flushed and lost: each block reads as it must."""


def test_identity_is_kept(tmp_path: Path) -> None:
    """The identity of the base is what the disk was made with, also after opening it again."""
    new_disk(tmp_path, SIZE, PatternBase(BASE_SIZE)).close()
    disk = OverlayDisk.open(tmp_path, "vda", PatternBase(BASE_SIZE))
    assert disk.base_identity == BASE_IDENTITY
    disk.close()

"""What models of disks share: what each block must show, and what it may show after a power loss."""

import random
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from imagefs.overlay.block_map import PAGE_BLOCKS
from imagefs.overlay.disk import OverlayDisk
from imagefs.overlay.key import NodeKey
from imagefs.overlay.merge import MergingDisk
from imagefs.units import BLOCK
from tests.support.overlay import Host, PatternBase, pattern

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


class DiskMachine(RuleBasedStateMachine):
    """Writes, reads and flushes `disk`; `blocks` is what a reader must see of those that were written, `first` of all others."""

    base: PatternBase | None
    host: Host
    node_key: NodeKey | None
    first: dict[int, bytes]

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.generation = 0
        self.blocks: dict[int, bytes] = {}

    @property
    def disk(self) -> OverlayDisk | MergingDisk:
        """What the guest reads and writes."""
        raise AttributeError("the machine has not started")

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

    def set_slow(self, slow: bool) -> None:
        if self.base:
            self.base.slow = slow

    # What happens.

    @rule(where=ranges(), seed=contents, slow=st.booleans())
    def write(self, where: Range, seed: int, slow: bool) -> None:
        offset, length = where
        body = content(length, seed)
        self.set_slow(slow)

        async def work() -> None:
            assert await self.disk.write(offset, body) == length

        self.expect(offset, body)
        self.run(work)

    def write_at_once(self, where: Range, seed: int) -> None:
        """Write on the event loop; the base is in memory. A block that is not is left out, which does not happen here."""
        body = content(where[1], seed)
        self.set_slow(False)
        self.expect(where[0], body)
        assert self.disk.write_nowait(where[0], body) == where[1]

    @rule(where=ranges(), slow=st.booleans())
    def read(self, where: Range, slow: bool) -> None:
        self.set_slow(slow)

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
        def writes(some: Sequence[tuple[Range, int]], name: str) -> None:
            if name.endswith(".data"):
                for where, seed in some:
                    trio.from_thread.run_sync(self.write_at_once, where, seed)

        self.flush_and(lambda name: writes(before, name), lambda name: writes(during, name))

    def flush_and(self, before: Callable[[str], None], during: Callable[[str], None]) -> None:
        """Flush; `before` and `during` are called at each sync, in its thread."""
        self.host.before_sync, self.host.during_sync = before, during
        begun = len(self.host.log)
        self.run(self.disk.flush)
        self.host.log.append(("flushed", None, begun))
        self.host.before_sync = self.host.during_sync = lambda name: None

    # What may be lost.

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
        self.set_slow(False)
        found = {}
        for block in self.first:
            body = self.disk.read_nowait(block * BLOCK, BLOCK)
            assert body is not None
            assert bytes(body) in allowed[block], f"block {block} holds what nobody wrote"
            found[block] = bytes(body)
        self.first, self.blocks = found, {}

    def read_all(self) -> None:
        self.set_slow(False)
        for window in WINDOWS:
            length = min(SIZE, window.stop * BLOCK) - window.start * BLOCK
            assert self.disk.read_nowait(window.start * BLOCK, length) == self.shown(window.start * BLOCK, length)

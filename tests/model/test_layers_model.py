"""A disk of several layers, which snapshots freeze and merging takes away, against what a disk is: bytes at offsets."""

import contextlib
import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from imagefs.errors import LayerFrozen
from imagefs.overlay.disk import OverlayDisk
from imagefs.overlay.merge import MergingDisk
from imagefs.source import Source
from imagefs.units import BLOCK
from tests.support.disk_model import BASE_SIZE, SIZE, WINDOWS, DiskMachine, Killed, Range, content, contents, ranges
from tests.support.overlay import BASE_IDENTITY, NODE_KEY, Host, PatternBase, add_layer, build

MOST_LAYERS = 4


class SteppedDisk(MergingDisk):
    """A pair that calls `on_move` after each piece that was moved, before anybody else runs."""

    def __init__(self, upper: OverlayDisk, lower: OverlayDisk) -> None:
        super().__init__(upper, lower)
        self.on_move: Callable[[], None] = lambda: None
        self.in_part = False

    async def _move(self, state: int, first: int, end: int) -> None:
        await super()._move(state, first, end)
        self.on_move()

    async def flush(self) -> None:
        if not self.in_part:
            await super().flush()

    async def merge_some(self, moves: int) -> None:
        """Merge until `moves` pieces were moved, and one more, and break off; without a flush, for one may be running."""
        left = [None] * moves
        with trio.CancelScope() as scope:
            self.on_move = lambda: left.pop() if left else scope.cancel()
            self.in_part = True
            await self.merge()
        self.on_move, self.in_part = lambda: None, False


class LayersMachine(DiskMachine):
    """Writes, snapshots, merges, restarts and loses power. `views` is what must still be seen of snapshots, by the number of their layer.

    A stack's record, the names of its layers, is in the host's log; like a daemon's it is durable before the next step.
    """

    stems: list[str]
    layers: list[OverlayDisk]
    pair: SteppedDisk | None
    at: int
    """Of the pair: the number of its lower layer."""

    @property
    def disk(self) -> OverlayDisk | MergingDisk:
        return self.pair if self.pair is not None and self.at + 2 == len(self.layers) else self.layers[-1]

    @property
    def place(self) -> Path:
        return self.directory / str(self.generation)

    @initialize(over_image=st.booleans(), has_holes=st.booleans(), encrypted=st.booleans())
    def start(self, over_image: bool, has_holes: bool, encrypted: bool) -> None:
        self.node_key = NODE_KEY if encrypted else None
        self.base = PatternBase(BASE_SIZE) if over_image else None
        self.host = Host(has_holes=has_holes)
        self.place.mkdir()
        self.stems = ["vda"]
        self.made_names = 0
        OverlayDisk.create(self.place, "vda", SIZE, BASE_IDENTITY if self.base else "", self.host.calls(), node_key=self.node_key)
        self.views: dict[int, dict[int, bytes]] = {}
        self.kept: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        self.keep_record()
        self.open(as_pair=False)
        self.made = len(self.host.log)
        self.first = {block: self.fresh(block) for window in WINDOWS for block in window}

    def teardown(self) -> None:
        if hasattr(self, "layers"):
            self.read_all()
            self.close()
        shutil.rmtree(self.directory)

    def keep_record(self) -> None:
        """Write the record, and remember what of the files the host's log does not have."""
        for name in (f"{stem}{suffix}" for stem in self.stems for suffix in (".data", ".map")):
            self.sizes[name] = (self.place / name).stat().st_size
        for path in self.place.glob("*.key"):
            self.kept[path.name] = path.read_bytes()
        self.host.log.append(("record", None, list(self.stems)))

    def open(self, as_pair: bool) -> None:
        below: Source | None = self.base
        self.layers, self.pair, self.at = [], None, 0
        for stem in self.stems:
            below = OverlayDisk.open(self.place, stem, below, self.host.calls(), node_key=self.node_key)
            self.layers.append(below)
        for layer in self.layers[:-1]:
            layer.freeze()
        if as_pair and len(self.layers) > 1:
            self.begin_merge_at(len(self.layers) - 2)

    def close(self) -> None:
        for layer in self.layers:
            layer.close()

    # Snapshots.

    def snapshot_now(self) -> None:
        """As a daemon does it: the new layer, the record, and then in one step the switch."""
        if len(self.layers) == MOST_LAYERS:
            return
        below = self.disk
        self.made_names += 1
        self.stems.append(f"vda@{self.made_names}")
        layer = add_layer(self.place, self.stems[-1], below, self.host.calls(), node_key=self.node_key)
        self.keep_record()
        self.views[len(self.layers) - 1] = self.first | self.blocks
        self.layers.append(layer)

    def begin_merge_at(self, lower: int) -> None:
        """Any two neighbours; those above the pair stay frozen but for the top."""
        self.pair, self.at = SteppedDisk(self.layers[lower + 1], self.layers[lower]), lower
        self.views.pop(lower, None)
        if lower + 2 < len(self.layers):
            self.pair.freeze()

    @rule()
    def snapshot(self) -> None:
        self.snapshot_now()

    def may_begin(self) -> bool:
        return len(self.layers) > 1 and (self.pair is None or self.pair is not self.disk)

    @precondition(may_begin)
    @rule(lower=st.integers(0, MOST_LAYERS - 2))
    def begin_merge(self, lower: int) -> None:
        """A pair that was merging below the top may be given up, as it is, for another."""
        self.begin_merge_at(lower % (len(self.layers) - 1))

    @precondition(lambda self: self.pair is not None)
    @rule(moves=st.integers(0, 8))
    def go_on_merging(self, moves: int) -> None:
        assert self.pair is not None
        self.run(partial(self.pair.merge_some, moves))

    def flush_while_merging(self, moves: int, during: Sequence[tuple[Range, int]], number: int) -> None:
        """Blocks move, and the guest writes, at sync `number` of a flush."""
        pair = self.pair
        assert pair is not None
        syncs: list[str] = []

        def at_sync(name: str) -> None:
            syncs.append(name)
            if len(syncs) == number // 2 + 1:
                trio.from_thread.run(pair.merge_some, moves)
                for where, seed in during:
                    trio.from_thread.run_sync(self.write_at_once, where, seed)

        self.flush_and(at_sync if number % 2 else lambda name: None, lambda name: None if number % 2 else at_sync(name))

    @precondition(lambda self: self.pair is not None)
    @rule(moves=st.integers(0, 4), during=st.lists(st.tuples(ranges(), contents), max_size=2), number=st.integers(0, 7))
    def flush_and_merge(self, moves: int, during: list[tuple[Range, int]], number: int) -> None:
        self.flush_while_merging(moves, during, number)

    @precondition(lambda self: self.pair is not None)
    @rule(
        written=st.lists(st.tuples(ranges(), contents), max_size=2),
        moves=st.integers(0, 4),
        number=st.integers(0, 7),
        chance=st.randoms(use_true_random=False),
        back=st.integers(0, 8),
    )
    def flush_and_merge_and_lose_power(self, written: list[tuple[Range, int]], moves: int, number: int, chance: random.Random, back: int) -> None:
        """What was flushed in the upper layer moves while the lower one is flushed, and then the power fails."""
        self.flush()
        for where, seed in written:
            self.write_at_once(where, seed)
        self.flush_while_merging(moves, written, number)
        self.lose_power(chance, back, back % 2 == 0)

    @precondition(lambda self: self.pair is not None)
    @rule(during=st.lists(st.tuples(ranges(), contents), max_size=3), drop=st.booleans())
    def complete_merge(self, during: list[tuple[Range, int]], drop: bool) -> None:
        """The guest writes while the rest is merged; then the upper layer is dropped, or that is what the daemon has died before."""
        pair = self.pair
        assert pair is not None

        left = list(during)
        pair.on_move = lambda: self.write_at_once(*left.pop()) if left else None
        self.run(pair.merge)
        pair.on_move = lambda: None
        assert pair.remaining == 0
        if drop:
            self.drop_upper(pair)

    def drop_upper(self, pair: MergingDisk) -> None:
        lower = self.at
        stem = self.stems.pop(lower + 1)
        self.keep_record()
        was_top = pair is self.disk
        upper = self.layers.pop(lower + 1)
        self.pair = None
        if not was_top:
            self.layers[lower + 1].rebase(self.layers[lower])
            self.layers[lower].freeze()
        self.views = {number if number <= lower else number - 1: view for number, view in self.views.items()}
        self.run(pair.settled)
        self.run(upper.settled)
        upper.close()
        OverlayDisk.delete(self.place, stem)

    @rule(where=ranges(), seed=contents, merges=st.booleans())
    def write_while_a_snapshot_comes(self, where: Range, seed: int, merges: bool) -> None:
        """A write that waits for the image finds that its layer was frozen, and perhaps thawed again, and goes to what is the top then."""
        offset, length = where
        body = content(length, seed)
        frozen = self.first | self.blocks
        self.expect(offset, body)

        def restack() -> None:
            assert self.base is not None
            self.base.on_read = lambda: None
            self.snapshot_now()
            if len(self.layers) - 2 in self.views:
                self.views[len(self.layers) - 2] = frozen
            if merges and self.may_begin():
                self.begin_merge_at(len(self.layers) - 2)

        async def work() -> None:
            while True:
                with contextlib.suppress(LayerFrozen):
                    assert await self.disk.write(offset, body) == length
                    return

        if self.base is not None and len(self.layers) < MOST_LAYERS:
            self.base.on_read = restack
        self.set_slow(True)
        self.run(work)
        if self.base is not None:
            self.base.on_read = lambda: None

    # Crashes.

    @rule(as_pair=st.booleans())
    def restart(self, as_pair: bool) -> None:
        """The daemon dies of kill -9: nothing is flushed, and nothing may be lost. A pair may be opened as one again, or as a stack."""
        self.close()
        self.open(as_pair)

    @rule(number=st.integers(0, 5), as_pair=st.booleans())
    def restart_while_flushing(self, number: int, as_pair: bool) -> None:
        """The daemon dies at one of the syncs of a flush."""
        syncs: list[str] = []

        def die(name: str) -> None:
            syncs.append(name)
            if len(syncs) > number:
                raise Killed

        self.host.during_sync = die
        with contextlib.suppress(Killed):
            self.run(self.disk.flush)
        self.host.during_sync = lambda name: None
        self.restart(as_pair)

    @rule(chance=st.randoms(use_true_random=False), back=st.integers(0, 12), written=st.lists(st.tuples(ranges(), contents), max_size=2))
    def lose_power_while_flushing(self, chance: random.Random, back: int, written: list[tuple[Range, int]]) -> None:
        for where, seed in written:
            self.write_at_once(where, seed)
        self.flush_with((), written[:1])
        self.lose_power(chance, back, back % 2 == 0)

    @rule(chance=st.randoms(use_true_random=False), back=st.integers(0, 60), as_pair=st.booleans())
    def lose_power(self, chance: random.Random, back: int, as_pair: bool) -> None:
        """The power fails `back` steps of the host ago; any part of what was not synced is lost. Snapshots are given up."""
        until = max(self.made, len(self.host.log) - back)
        allowed = self.allowed(until)
        pages = self.host.after_power_loss(until, chance)
        records = [what for kind, _, what in self.host.log[:until] if kind == "record"]
        assert isinstance(records[-1], list)
        self.stems = list(records[-1])
        self.close()
        shutil.rmtree(self.place)
        self.generation += 1
        build(self.place, pages, {name: size for name, size in self.sizes.items() if name.rpartition(".")[0] in self.stems})
        for stem in self.stems:
            if self.node_key:
                (self.place / f"{stem}.key").write_bytes(self.kept[f"{stem}.key"])
        self.host = Host(self.generation, pages, self.host.has_holes)
        self.keep_record()
        self.made = len(self.host.log)
        self.views = {}
        self.open(as_pair)
        self.take_stock(allowed)

    # What holds at any time.

    @invariant()
    def maps_fit(self) -> None:
        for layer in getattr(self, "layers", []):
            layer.check_invariants()

    @invariant()
    def snapshots_stay(self) -> None:
        self.set_slow_if_started(False)
        for number, view in getattr(self, "views", {}).items():
            for block, body in view.items():
                assert self.layers[number].read_nowait(block * BLOCK, BLOCK) == body, f"block {block} of layer {number} changed"

    def set_slow_if_started(self, slow: bool) -> None:
        if hasattr(self, "layers"):
            self.set_slow(slow)

    @rule(where=ranges(), whole=st.booleans())
    def ask_for_extents(self, where: Range, whole: bool) -> None:
        """Extents are in order, within the range, and cover all that is not zeros."""
        start, length = (0, SIZE) if whole else where
        found: list[tuple[int, int]] = []

        async def work() -> None:
            found.extend(await self.disk.extents(start, length))

        self.run(work)
        edges = [edge for extent in found for edge in extent]
        assert edges == sorted(edges)
        assert all(start <= first < stop <= start + length for first, stop in found)

        def covered(offset: int) -> bool:
            return any(first <= offset < stop for first, stop in found)

        for block in self.first:
            body = self.now(block)
            for offset in range(max(start, block * BLOCK), min(start + length, block * BLOCK + len(body))):
                if body[offset - block * BLOCK]:
                    assert covered(offset), f"offset {offset} is not zero, and in no extent"
                    break


LayersMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


class TestLayers(LayersMachine.TestCase):  # type: ignore[misc, valid-type]  # hypothesis makes the class at run time
    """Whatever is written, frozen, merged, flushed and lost: each block reads as it must."""

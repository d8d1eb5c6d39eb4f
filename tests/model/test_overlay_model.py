"""An overlay against what a disk is: bytes at offsets, that survive crashes as far as they were promised to."""

import contextlib
import random
import shutil
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from imagefs.overlay.disk import OverlayDisk
from imagefs.units import BLOCK
from tests.support.disk_model import BASE_SIZE, SIZE, WINDOWS, DiskMachine, Killed, Range, contents, ranges
from tests.support.overlay import BASE_IDENTITY, NODE_KEY, Host, PatternBase, build, new_disk


class OverlayMachine(DiskMachine):
    """Writes, zeroes, flushes, restarts and loses power; `blocks` is what a reader must see."""

    overlay: OverlayDisk

    @property
    def disk(self) -> OverlayDisk:
        return self.overlay

    @initialize(over_image=st.booleans(), has_holes=st.booleans(), encrypted=st.booleans())
    def start(self, over_image: bool, has_holes: bool, encrypted: bool) -> None:
        self.node_key = NODE_KEY if encrypted else None
        self.base = PatternBase(BASE_SIZE) if over_image else None
        self.host = Host(has_holes=has_holes)
        (self.directory / "0").mkdir()
        self.overlay = new_disk(self.directory / "0", SIZE, self.base, self.host.calls(), node_key=self.node_key)
        self.made = len(self.host.log)
        self.first = {block: self.fresh(block) for window in WINDOWS for block in window}

    def teardown(self) -> None:
        if hasattr(self, "disk"):
            self.read_all()
            self.disk.close()
        shutil.rmtree(self.directory)

    # What happens.

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

    @rule()
    def restart(self) -> None:
        """The daemon dies of kill -9: nothing is flushed, and nothing may be lost."""
        self.disk.close()
        self.overlay = OverlayDisk.open(self.directory / str(self.generation), "vda", self.base, self.host.calls(), node_key=self.node_key)

    @rule(name=st.sampled_from(["vda.data", "vda.map"]))
    def restart_while_flushing(self, name: str) -> None:
        """The daemon dies in the middle of a flush."""

        def die(where: str) -> None:
            if where == name:
                raise Killed

        self.host.during_sync = die
        with contextlib.suppress(Killed):
            self.run(self.disk.flush)
        self.host.during_sync = lambda name: None
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
        sizes = {name: (old / name).stat().st_size for name in ("vda.data", "vda.map")}
        self.disk.close()
        self.generation += 1
        directory = self.directory / str(self.generation)
        build(directory, pages, sizes)
        shutil.copy(old / "vda.live", directory / "vda.live")  # of another boot: must not be believed
        if self.node_key:
            shutil.copy(old / "vda.key", directory / "vda.key")
        shutil.rmtree(old)
        self.host = Host(self.generation, pages, self.host.has_holes)
        self.made = 0
        self.overlay = OverlayDisk.open(directory, "vda", self.base, self.host.calls(), node_key=self.node_key)
        self.take_stock(allowed)

    @invariant()
    def maps_fit(self) -> None:
        if hasattr(self, "disk"):
            self.disk.check_invariants()


OverlayMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class TestOverlay(OverlayMachine.TestCase):  # type: ignore[misc, valid-type]  # hypothesis makes the class at run time
    """Whatever is written, flushed and lost: each block reads as it must."""


def test_identity_is_kept(tmp_path: Path) -> None:
    """The identity of the base is what the disk was made with, also after opening it again."""
    new_disk(tmp_path, SIZE, PatternBase(BASE_SIZE)).close()
    disk = OverlayDisk.open(tmp_path, "vda", PatternBase(BASE_SIZE))
    assert disk.base_identity == BASE_IDENTITY
    disk.close()

"""What tests of overlays share: a base that counts, and a host that records what reaches its disk and can lose power."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from imagefs.holes import punch_hole
from imagefs.overlay.block_map import MAP_PAGE
from imagefs.overlay.calls import Calls
from imagefs.overlay.disk import OverlayDisk
from imagefs.overlay.key import NodeKey
from imagefs.overlay.layer import Layer

BASE_IDENTITY = "6ad2b0e4-7a3f-4c57-9a0c-2f3f6b0a9c11@1"
PERIOD = random.Random(7).randbytes(5003)
NODE_KEY = NodeKey(bytes(range(32)))


def pattern(offset: int, length: int) -> bytes:
    """Return `length` bytes at `offset` of an endless base whose blocks all differ."""
    start = offset % len(PERIOD)
    return (PERIOD * (2 + length // len(PERIOD)))[start : start + length]


class PatternBase:
    """A Source of `size` bytes of `pattern`; counts its calls, and has nothing in memory if `slow`."""

    def __init__(self, size: int, slow: bool = False) -> None:
        self._size = size
        self.slow = slow
        self.calls = 0
        self.on_read: Callable[[], object] = lambda: None

    @property
    def size(self) -> int:
        return self._size

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        self.calls += 1
        return None if self.slow else pattern(offset, max(0, min(length, self._size - offset)))

    async def read(self, offset: int, length: int) -> bytes:
        self.calls += 1
        self.on_read()
        return pattern(offset, max(0, min(length, self._size - offset)))

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        self.calls += 1
        return [(offset, min(offset + length, self._size))] if offset < self._size else []


Page = tuple[str, int]
"""A file's name, and the number of a 4 KiB page in it."""


class Host:
    """A host whose disk holds only what was synced: it records every write to the data files and durable maps instead of syncing them.

    `log` is the order of what happened: ("write", page, content), ("sync", file name, writes before this index are durable), and what a
    test notes itself.
    """

    def __init__(self, boot: int = 0, pages: dict[Page, bytes] | None = None, has_holes: bool = True) -> None:
        self.boot = boot
        self.has_holes = has_holes
        self.log: list[tuple[str, object, object]] = []
        self.first_pages = dict(pages or {})
        self._cached = dict(self.first_pages)
        self.before_sync: Callable[[str], None] = lambda name: None
        self.during_sync: Callable[[str], None] = lambda name: None

    def calls(self) -> Calls:
        """Return the calls of this host."""
        return Calls(pwrite=self._pwrite, fdatasync=self._fdatasync, punch_hole=self._punch_hole, boot_id=lambda: self.boot.to_bytes(16, "big"))

    def _name(self, fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    def _pwrite(self, fd: int, body: bytes | bytearray | memoryview, offset: int) -> int:
        if (name := self._name(fd)).endswith((".data", ".map")):
            self._record(name, offset, bytes(body))
        return os.pwrite(fd, body, offset)

    def _punch_hole(self, fd: int, offset: int, length: int) -> None:
        if not self.has_holes:
            raise OSError(errno.EOPNOTSUPP, "this filesystem has no holes")
        self._record(self._name(fd), offset, bytes(length))
        punch_hole(fd, offset, length)

    def _record(self, name: str, offset: int, body: bytes) -> None:
        position = 0
        while position < len(body):
            number, start = divmod(offset + position, MAP_PAGE)
            piece = body[position : position + MAP_PAGE - start]
            old = self._cached.get((name, number), bytes(MAP_PAGE))
            self._cached[name, number] = new = old[:start] + piece + old[start + len(piece) :]
            self.log.append(("write", (name, number), new))
            position += len(piece)

    def _fdatasync(self, fd: int) -> None:
        name = self._name(fd)
        self.before_sync(name)
        covered = len(self.log)
        self.during_sync(name)
        self.log.append(("sync", name, covered))

    def after_power_loss(self, until: int, chance: random.Random) -> dict[Page, bytes]:
        """Return the pages on the disk if the power failed when `log` had `until` entries: of what was not synced, any part in any order."""
        versions: dict[Page, list[tuple[int, bytes]]] = {page: [(-1, body)] for page, body in self.first_pages.items()}
        for index, (kind, what, content) in enumerate(self.log[:until]):
            if kind == "write":
                assert isinstance(what, tuple)
                assert isinstance(content, bytes)
                versions.setdefault(what, [(-1, bytes(MAP_PAGE))]).append((index, content))
            elif kind == "sync":
                assert isinstance(content, int)
                for page, bodies in versions.items():
                    if page[0] == what:
                        durable = [version for version in bodies if version[0] < content][-1:]
                        bodies[:] = durable + [version for version in bodies if version[0] >= content]
        return {page: chance.choice(bodies)[1] for page, bodies in versions.items()}


def build(directory: Path, pages: dict[Page, bytes], sizes: dict[str, int]) -> None:
    """Make files of these names and sizes out of pages."""
    directory.mkdir()
    for name, size in sizes.items():
        with (directory / name).open("wb") as file:
            file.truncate(size)
            for (where, number), body in pages.items():
                if where == name and any(body):
                    os.pwrite(file.fileno(), body, number * MAP_PAGE)


def new_disk(directory: Path, size: int, base: PatternBase | None, calls: Calls | None = None, *, node_key: NodeKey | None = None) -> OverlayDisk:
    """Make and open a disk named vda; encrypted if there is a node key."""
    chosen = calls or Calls()
    OverlayDisk.create(directory, "vda", size, BASE_IDENTITY if base else "", chosen, node_key=node_key)
    return OverlayDisk.open(directory, "vda", base, chosen, node_key=node_key)


def add_layer(directory: Path, name: str, below: Layer, calls: Calls | None = None, *, node_key: NodeKey | None = None) -> OverlayDisk:
    """Make and open a layer over `below`, and freeze that: what a snapshot does."""
    chosen = calls or Calls()
    OverlayDisk.create(directory, name, below.size, below.identity, chosen, node_key=node_key)
    layer = OverlayDisk.open(directory, name, below, chosen, node_key=node_key)
    below.freeze()
    return layer

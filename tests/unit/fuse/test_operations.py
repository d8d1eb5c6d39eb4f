"""Tests of how directories are listed: in what order, how often a list is made, and how long it is kept."""

import errno
import stat
import types
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from pyfuse3 import FUSEError, RequestContext

from imagefs.errors import Denied
from imagefs.files.node import Attributes, Children, Node, directory_attributes
from imagefs.files.tree import Tree
from imagefs.fuse.operations import LISTINGS, Operations
from imagefs.identity.caller import Caller, Groups

ASKING = cast("RequestContext", types.SimpleNamespace(uid=5, gid=5, umask=0, pid=1))


class Crowd(Node):
    """A directory of a thousand files, which counts how often it is listed."""

    kind = "crowd"

    def __init__(self, key: str = "") -> None:
        super().__init__(key)
        self.version: object = 1
        self.denied = False
        self.listed = 0
        self.given = 0

    def attributes(self) -> Attributes:
        return directory_attributes(self.inode, 0o755, 0, 0, 0)

    def listing_version(self) -> object:
        return self.version

    async def children(self, caller: Caller) -> Children:
        if self.denied:
            raise Denied("no")
        self.listed += 1
        await trio.lowlevel.checkpoint()
        return [(f"file {number}", self._give) for number in range(1000)]

    def _give(self) -> Node:
        self.given += 1
        return self


class Forest:
    """What Operations needs of a tree: directories by number."""

    def __init__(self, *nodes: Node) -> None:
        self._nodes = {node.inode: node for node in nodes}
        self.told: list[Node] = []

    def node(self, inode: int) -> Node:
        return self._nodes[inode]

    def know(self, node: Node) -> Node:
        self.told.append(node)
        return node


def operations(tmp_path: Path, *nodes: Node) -> Operations:
    """Return the handlers of a tree with these directories."""
    return Operations(cast("Tree", Forest(*nodes)), Groups(lambda uid: None), str(tmp_path))


def handle(number: int) -> Any:
    """Return an inode number or a handle as pyfuse3 passes it."""
    return number


async def test_a_list_is_made_once_for_all_who_want_it(tmp_path: Path) -> None:
    """However many open and close a directory, at once or in turn, it is listed anew only when something has changed."""
    crowd = Crowd()
    handlers = operations(tmp_path, crowd)

    async def use() -> None:
        await handlers.releasedir(await handlers.opendir(handle(crowd.inode), ASKING))

    for listed in (1, 2):
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(use)
        await use()
        assert crowd.listed == listed
        crowd.version = 2
    assert crowd.given == 0  # no node was made for names that nobody read


async def test_a_list_that_nothing_tells_the_age_of_is_made_each_time(tmp_path: Path) -> None:
    """A directory without versions is listed at each opening, and its list goes with its last reader."""
    crowd = Crowd()
    crowd.version = None
    handlers = operations(tmp_path, crowd)
    for listed in (1, 2):
        number = await handlers.opendir(handle(crowd.inode), ASKING)
        assert crowd.listed == listed
        await handlers.releasedir(number)
    assert not handlers._listings


async def test_a_list_that_is_refused_is_not_kept(tmp_path: Path) -> None:
    """Who may not list a directory any more does not get the list that was made before, and others are not held up."""
    crowd = Crowd()
    handlers = operations(tmp_path, crowd)
    await handlers.opendir(handle(crowd.inode), ASKING)
    crowd.version, crowd.denied = 2, True
    with pytest.raises(FUSEError) as refused:
        await handlers.opendir(handle(crowd.inode), ASKING)
    assert refused.value.errno == errno.EACCES
    assert not handlers._listings
    crowd.denied = False
    await handlers.opendir(handle(crowd.inode), ASKING)


async def test_few_lists_are_kept(tmp_path: Path) -> None:
    """Of many directories the lists that were opened longest ago go."""
    crowds = [Crowd(str(number)) for number in range(LISTINGS + 5)]
    handlers = operations(tmp_path, *crowds)
    for crowd in crowds:
        await handlers.opendir(handle(crowd.inode), ASKING)
    assert list(handlers._listings) == [crowd.inode for crowd in crowds[5:]]


async def test_others_have_their_turn_while_a_list_is_made(tmp_path: Path) -> None:
    """Ordering a thousand names gives way several times to what else there is to do."""
    crowd = Crowd()
    handlers = operations(tmp_path, crowd)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await handlers.opendir(handle(crowd.inode), ASKING)
        nursery.cancel_scope.cancel()
    assert turns >= 3


class Workshop(Crowd):
    """A directory that notes what is made in it."""

    read_only = False

    def __init__(self) -> None:
        super().__init__("workshop")
        self.made: list[tuple[str, ...]] = []

    async def make_file(self, caller: Caller, name: str, mode: int) -> Node:
        self.made.append(("file", name))
        return self

    async def make_link(self, caller: Caller, name: str, target: str) -> Node:
        self.made.append(("link", name, target))
        return self


class Shelf(Crowd):
    """A directory in which nothing is ever made."""

    kind = "shelf"


async def test_links_and_files_are_made_by_their_directory(tmp_path: Path) -> None:
    """A symbolic link comes with its target, as the bytes that it is; a plain file may come from mknod too. The kernel is told of both once."""
    workshop = Workshop()
    handlers = operations(tmp_path, workshop)
    number = handle(workshop.inode)
    await handlers.symlink(number, cast("Any", b"vdc"), cast("Any", b"../../volumes/\xff"), ASKING)
    await handlers.mknod(number, cast("Any", b"db1"), cast("Any", stat.S_IFREG | 0o600), 0, ASKING)
    assert workshop.made == [("link", "vdc", "../../volumes/\udcff"), ("file", "db1")]
    assert cast("Any", handlers)._tree.told == [workshop, workshop]


@pytest.mark.parametrize(("directory", "number"), [(Workshop, errno.EPERM), (Shelf, errno.EROFS)])
async def test_what_is_no_file_of_its_own_is_refused_and_makes_nothing(tmp_path: Path, directory: type[Crowd], number: int) -> None:
    """Devices, pipes, hard links and new names are no files to be made: a rename must not leave an empty volume behind."""
    parent = directory()
    handlers = operations(tmp_path, parent)
    inode, name = handle(parent.inode), cast("Any", b"name")
    for attempt in (
        handlers.mknod(inode, name, cast("Any", stat.S_IFIFO | 0o600), 0, ASKING),
        handlers.mknod(inode, name, cast("Any", stat.S_IFBLK | 0o600), 1, ASKING),
        handlers.link(inode, inode, name, ASKING),
        handlers.rename(inode, name, inode, name, cast("Any", 0), ASKING),
    ):
        with pytest.raises(FUSEError) as refused:
            await attempt
        assert refused.value.errno == number
    assert getattr(parent, "made", []) == []

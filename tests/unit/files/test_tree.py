"""Tests of the tree: nodes by inode number, and what is kept of them."""

import gc
from pathlib import Path
from typing import cast

import pytest

from imagefs.catalog import Catalog, CatalogImage, RecordDatabase
from imagefs.config import IdentityConfig
from imagefs.errors import NoAttribute, NotFound, NotPermitted
from imagefs.files.instance import InstanceParts
from imagefs.files.tree import Tree
from imagefs.identity.caller import Caller
from imagefs.identity.map import IdentityMap
from imagefs.instances.attachments import Attachments
from imagefs.instances.snapshots import Snapshots
from imagefs.library import Library
from imagefs.properties.access import Access
from imagefs.properties.mode import Mode
from imagefs.properties.policy import Policies
from imagefs.properties.protection import UNPROTECTED
from imagefs.sight import Sights
from imagefs.statedir import StateDirectory
from imagefs.store.protocol import ImageStore
from imagefs.store.record import ImageRecord
from imagefs.upkeep import Upkeep
from imagefs.volumes.registry import Volumes
from tests.support.instances import instances_of

ROOT = Caller(0, 0)
COUNT = 500


class IdleUpkeep:
    """An upkeep that nobody asked for anything."""

    def result(self, uid: int) -> None:
        return None


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A tree over a catalog of COUNT images, with no instances."""
    state = StateDirectory(tmp_path / "state")
    database = RecordDatabase(state.catalog, "test:")
    now = "2026-01-01T00:00:00Z"
    images = (
        ImageRecord(id=f"{number:08x}-0000-4000-8000-000000000000", created_at=now, updated_at=now, name=f"i{number}") for number in range(COUNT)
    )
    database.save([CatalogImage(record, "1") for record in images], [])
    catalog = Catalog(cast("ImageStore", None), database)
    library = cast("Library", None)
    instances = instances_of(state, loaded=False, catalog=catalog, library=library)
    identities = IdentityMap(IdentityConfig(), 0, "test")
    sights = Sights(catalog, identities, Access(Policies.of({}), UNPROTECTED), identities.everyone)
    volumes = Volumes(state)
    parts = InstanceParts(instances, volumes, Attachments(volumes), cast("Snapshots", None), sights, {}, tmp_path)
    return Tree(catalog, library, cast("Upkeep", IdleUpkeep()), parts, lambda: b"", owner=(0, 0), instances_owner=(0, 0, 0o755))


def kept(tree: Tree) -> int:
    """Return how many nodes the tree holds on to."""
    gc.collect()
    return len(tree._nodes)


async def test_node_that_was_forgotten_is_found_again(tree: Tree) -> None:
    """A node that the kernel asks for after it was forgotten is found by its number, and no other is kept for that."""
    images = await tree.root.lookup(ROOT, "images")
    image = tree.know(await images.lookup(ROOT, f"{7:08x}-0000-4000-8000-000000000000"))
    before = kept(tree)
    inode, name = image.inode, repr(image)
    tree.forget(inode, 1)
    del image
    assert kept(tree) == before - 1
    assert repr(tree.node(inode)) == name
    assert kept(tree) == before


async def test_reason_of_a_failure_outlives_what_the_kernel_knows(tree: Tree) -> None:
    """Who is refused a change can read why, even if the kernel has forgotten the file in between, as it does after every change of the image."""
    images = await tree.root.lookup(ROOT, "images")
    image = tree.know(await images.lookup(ROOT, f"{7:08x}-0000-4000-8000-000000000000"))
    inode = image.inode
    with pytest.raises(NotPermitted):
        await image.set_xattr(ROOT, "user.size", b"1", Mode.SET)
    tree.forget(inode, 1)
    del image
    gc.collect()
    assert b"size" in tree.node(inode).xattrs(ROOT)["user.imagefs.error"]


async def test_node_that_the_kernel_was_told_of_again_stays(tree: Tree) -> None:
    """Forgetting an earlier mention of a node, while the kernel has been told of it again, leaves the node known."""
    names = await tree.root.lookup(ROOT, "names")
    link = tree.know(await names.lookup(ROOT, "i7"))
    again = tree.know(await names.lookup(ROOT, "i7"))
    assert again.inode == link.inode
    tree.forget(link.inode, 1)
    assert tree.node(link.inode) is again
    tree.forget(link.inode, 1)
    with pytest.raises(NotFound):
        tree.node(link.inode)


def test_number_of_nothing_is_searched_for_once(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that names nothing is not found, keeps no node, and costs one search until the catalog changes."""
    before, searches = kept(tree), 0
    all_nodes = tree._all_nodes

    def counted() -> object:
        nonlocal searches
        searches += 1
        return all_nodes()

    monkeypatch.setattr(tree, "_all_nodes", counted)
    for _ in range(10):
        with pytest.raises(NotFound):
            tree.node(12345)
    assert searches == 1
    assert kept(tree) == before
    tree._catalog._replace(dict(tree._catalog.snapshot.images))
    with pytest.raises(NotFound):
        tree.node(12345)
    assert searches == 2


async def test_lists_that_depend_on_the_caller_are_found_by_number(tree: Tree) -> None:
    """The list of each such directory can be made again for a reader after another reader of the same identity has closed it."""
    for name in ("images", "raw", "names", ".imagefs"):
        directory = await tree.root.lookup(ROOT, name)
        taken = [entry for entry, _ in await directory.children(ROOT)]
        assert [entry for entry, _ in await tree.listing(directory.listing_inode(ROOT))] == taken, name
    assert "images" in taken


@pytest.mark.parametrize("name", ["user.imagefs.deactivate", "user.imagefs.member.somebody"])
async def test_what_a_stranger_removes_does_not_reach_the_store(tree: Tree, name: str) -> None:
    """Who neither owns an image nor is its member is told at once that there is nothing to remove: here is no store to ask."""
    tree._sights.replace(Access(Policies.of({"get_image": "@"}), UNPROTECTED))
    images = await tree.root.lookup(ROOT, "images")
    image = await images.lookup(Caller(5, 5), f"{7:08x}-0000-4000-8000-000000000000")
    with pytest.raises(NoAttribute):
        await image.remove_xattr(Caller(5, 5), name)

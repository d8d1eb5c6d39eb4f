"""This module is the whole tree: it puts the parts together and finds nodes by inode number.

Inode numbers derive from ids, so a handle that an earlier daemon gave out still names its node: if the number is not known,
all nodes are gone through once.
"""

from collections.abc import Callable, Iterator
from typing import Final

from imagefs.catalog import Catalog, Snapshot
from imagefs.errors import NotFound
from imagefs.files.fixed import RootDirectory, StatusDirectory
from imagefs.files.flavors import FlavorsDirectory
from imagefs.files.image import ImageFile, StoredImageFile
from imagefs.files.images import ImagesDirectory, listing_inode
from imagefs.files.instance import InstanceParts
from imagefs.files.instances import InstancesDirectory
from imagefs.files.names import NamesDirectory
from imagefs.files.node import Children, Node
from imagefs.files.raw import DiskImageFile
from imagefs.files.volumes import VolumesDirectory
from imagefs.identity.caller import Caller
from imagefs.library import Library
from imagefs.upkeep import Upkeep

MISSING_LIMIT: Final = 4096
"""Inode numbers that are remembered to name nothing."""
Invalidate = Callable[[int, str], None]
"""Called with a directory's inode number and a name in it that the kernel must forget."""


class Tree:
    """All nodes of a mount that `owner` owns."""

    def __init__(
        self,
        catalog: Catalog,
        library: Library,
        upkeep: Upkeep,
        parts: InstanceParts,
        metrics: Callable[[], bytes],
        *,
        owner: tuple[int, int],
        instances_owner: tuple[int, int, int],
    ) -> None:
        """`parts` is what instances are made of; `owner` the mounting user's uid and gid.

        `instances_owner` are the uid, gid and mode of instances/ and volumes/.
        """
        sights = parts.sights
        self._images = ImagesDirectory("images", StoredImageFile, catalog, library, upkeep, sights, owner)
        self._raw = ImagesDirectory("raw", DiskImageFile, catalog, library, upkeep, sights, owner)
        self._names = NamesDirectory(sights, owner)
        self._volumes_directory = VolumesDirectory(parts.volumes, *instances_owner)
        self._instances_directory = InstancesDirectory(parts, self._volume_file, *instances_owner)
        self._flavors = FlavorsDirectory(parts.flavors, sights, *owner)
        self._status = StatusDirectory(metrics, sights, upkeep, *owner)
        self._catalog = catalog
        self._instances = parts.instances
        self._volumes = parts.volumes
        self._sights = sights
        top: dict[str, Node] = {
            "images": self._images,
            "raw": self._raw,
            "names": self._names,
            "flavors": self._flavors,
            "instances": self._instances_directory,
            "volumes": self._volumes_directory,
            ".imagefs": self._status,
        }
        self.root = RootDirectory(top, *owner, catalog.look, sights, upkeep)
        self._always: dict[int, Node] = {node.inode: node for node in (self.root, *top.values())}
        self._nodes: dict[int, Node] = dict(self._always)
        self._told: dict[int, int] = {}
        self._missing: set[int] = set()
        self._missing_as_of = (-1, -1, -1)
        self.invalidate: Invalidate = lambda inode, name: None
        catalog.watchers.append(self._catalog_changed)

    def _volume_file(self, name: str) -> Node:
        return self._volumes_directory.node(self._volumes.get(name))

    def node(self, inode: int) -> Node:
        """Return the node with this inode number. Raises NotFound for one that is gone."""
        found = self._nodes.get(inode)
        if found is None:
            found = self._search(inode)
            if found is None:
                raise NotFound(f"there is no inode {inode} any more")
            self._nodes[inode] = found
        return found

    async def listing(self, number: int) -> Children:
        """Return the children that the list of this number has (see Node.listing_inode), for one that an earlier daemon gave out.

        Who opened it was checked then, so what does not depend on the caller is listed as root sees it. Raises NotFound.
        """
        for directory in (self._images, self._raw, self._names, self._flavors, self._status):
            for identity in self._sights.everyone():
                if listing_inode(directory, identity) == number:
                    return await directory.children_of(self._sights.sight(identity))
        return await self.node(number).children(Caller(0, 0))

    def open_disks(self) -> list[str]:
        """Return the paths, below the mount point, of the disks that somebody has open."""
        disks = [f"instances/{name}/{disk}" for name, instance in self._instances.by_name.items() for disk in instance.busy()]
        return disks + [f"volumes/{name}" for name, volume in self._volumes.by_name.items() if volume.disk.opens]

    def know(self, node: Node) -> Node:
        """Remember a node that the kernel is told of, once more, and return it."""
        self._nodes[node.inode] = node
        self._told[node.inode] = self._told.get(node.inode, 0) + 1
        return node

    def forget(self, inode: int, times: int) -> None:
        """Forget a node that the kernel has forgotten as often as it was told of it.

        The kernel may be told of a node again while it is forgetting it: then the count is not down to nothing. A node that it asks
        for all the same, as after a restart of the daemon, is found again by `node` if it is one that lasts.
        """
        left = self._told.get(inode, 0) - times
        if left > 0:
            self._told[inode] = left
            return
        self._told.pop(inode, None)
        if inode not in self._always:
            self._nodes.pop(inode, None)

    def _search(self, inode: int) -> Node | None:
        """Go through all nodes there could be. One that is not there is searched for once, until something changes."""
        as_of = (self._catalog.snapshot.generation, self._instances.generation, self._volumes.generation)
        if self._missing_as_of != as_of or len(self._missing) >= MISSING_LIMIT:
            self._missing_as_of, self._missing = as_of, set()
        if inode in self._missing:
            return None
        found = next((node for node in self._all_nodes() if node.inode == inode), None)
        if found is None:
            self._missing.add(inode)
        return found

    def _all_nodes(self) -> Iterator[Node]:
        for instance in self._instances.by_name.values():
            yield from self._instances_directory.nodes_of(instance)
        for volume in self._volumes.by_name.values():
            yield self._volumes_directory.node(volume)
        for fixed in (self._flavors, self._status):
            yield from fixed.fixed
        for image in self._catalog.snapshot.images.values():
            yield self._images.file(image)
            yield self._raw.file(image)

    def _catalog_changed(self, old: Snapshot, new: Snapshot) -> None:
        """Make the kernel forget what it may have cached of images that are gone, have new bytes or changed at all."""
        for image_id, image in old.images.items():
            newer = new.images.get(image_id)
            if newer is image:
                continue
            gone = newer is None or newer.data_version != image.data_version
            for directory in (self._images, self._raw):
                self.invalidate(directory.inode, image_id)
                if gone:
                    self._drop(directory.forget(image))

    def rules_changed(self) -> None:
        """Make the kernel forget what it may have cached of any image: other callers may see it by now."""
        for image_id in self._catalog.snapshot.images:
            for directory in (self._images, self._raw):
                self.invalidate(directory.inode, image_id)

    def _drop(self, node: ImageFile | None) -> None:
        """Let go of a node unless it is open: its reads go on at the old version, or fail with a reason."""
        if node is not None and not node.in_use:
            self._nodes.pop(node.inode, None)

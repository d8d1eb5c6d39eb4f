"""This module is the whole tree: it puts the parts together and finds nodes by inode number.

Inode numbers derive from ids, so a handle that an earlier daemon gave out still names its node: if the number is not known,
all nodes are gone through once.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from imagefs.catalog import Catalog, CatalogImage, Snapshot
from imagefs.errors import Denied, NotFound
from imagefs.files.fixed import RootDirectory, flavors_directory, status_directory
from imagefs.files.images import DiskImageFile, ImageFile, ImagesDirectory, NamesDirectory, StoredImageFile
from imagefs.files.instances import InstancesDirectory
from imagefs.files.node import Node
from imagefs.flavors import Flavor
from imagefs.identity import Caller
from imagefs.instances.registry import Instances
from imagefs.library import Library

MISSING_LIMIT: Final = 4096
"""Inode numbers that are remembered to name nothing."""
Invalidate = Callable[[int, str], None]
"""Called with a directory's inode number and a name in it that the kernel must forget."""


class Tree:
    """All nodes of a mount that `uid` owns; only that user and root are let in."""

    def __init__(
        self,
        catalog: Catalog,
        library: Library,
        instances: Instances,
        flavors: Mapping[str, Flavor],
        metrics: Callable[[], bytes],
        *,
        owner: tuple[int, int],
        instances_owner: tuple[int, int, int],
    ) -> None:
        """`owner` is the mounting user's uid and gid, `instances_owner` the uid, gid and mode of instances/."""
        self._owner = owner
        self._images = ImagesDirectory("images", StoredImageFile, catalog, library, *owner)
        self._raw = ImagesDirectory("raw", DiskImageFile, catalog, library, *owner)
        self._names = NamesDirectory(catalog, *owner)
        self._instances_directory = InstancesDirectory(instances, *instances_owner)
        self._flavors = flavors_directory(flavors, *owner)
        self._status = status_directory(metrics, *owner)
        self._catalog = catalog
        self._instances = instances
        top: dict[str, Node] = {
            "images": self._images,
            "raw": self._raw,
            "names": self._names,
            "flavors": self._flavors,
            "instances": self._instances_directory,
            ".imagefs": self._status,
        }
        self.root = RootDirectory(top, *owner, catalog.look)
        self._always: dict[int, Node] = {node.inode: node for node in (self.root, *top.values())}
        self._nodes: dict[int, Node] = dict(self._always)
        self._missing: set[int] = set()
        self._missing_as_of = (-1, -1)
        self.invalidate: Invalidate = lambda inode, name: None
        catalog.watchers.append(self._catalog_changed)

    def admit(self, caller: Caller) -> None:
        """Raise Denied unless the caller is root or the mounting user."""
        if caller.uid not in (0, self._owner[0]):
            raise Denied(f"uid {caller.uid} is neither root nor the user who mounted")

    def node(self, inode: int) -> Node:
        """Return the node with this inode number. Raises NotFound for one that is gone."""
        found = self._nodes.get(inode)
        if found is None:
            found = self._search(inode)
            if found is None:
                raise NotFound(f"there is no inode {inode} any more")
            self.know(found)
        return found

    def open_disks(self) -> list[str]:
        """Return the paths, below the mount point, of the disks that somebody has open."""
        return [f"instances/{name}/{disk}" for name, instance in self._instances.by_name.items() for disk in instance.busy()]

    def know(self, node: Node) -> Node:
        """Remember a node that the kernel is told of, and return it."""
        self._nodes[node.inode] = node
        return node

    def forget(self, inode: int) -> None:
        """Forget a node that the kernel has forgotten. If it asks for it all the same, it is found again by `node`."""
        if inode not in self._always:
            self._nodes.pop(inode, None)

    def _search(self, inode: int) -> Node | None:
        """Go through all nodes there could be. One that is not there is searched for once, until something changes."""
        as_of = (self._catalog.snapshot.generation, self._instances.generation)
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
            directory = self._instances_directory.node(instance)
            yield directory
            yield from (directory.disk(name) for name in instance.disks)
        for fixed in (self._flavors, self._status, self._names):
            yield from (node for _, node in fixed.children(Caller(0, 0)))
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
                    self._drop(directory.forget(image), image)
        for name in old.names.keys() - new.names.keys():
            self.invalidate(self._names.inode, name)

    def _drop(self, node: ImageFile | None, image: CatalogImage) -> None:
        """Keep a node that is still open: its reads go on at the old version, or fail with a reason."""
        if node is not None and not node.in_use:
            self.forget(node.inode)

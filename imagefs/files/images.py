"""This module is images/ and raw/: the files of what the store has that a caller sees."""

import collections
import time
import weakref
from typing import Final

from imagefs.catalog import Catalog, CatalogImage
from imagefs.errors import Denied
from imagefs.files.children import MadeChildren
from imagefs.files.image import ImageFile, image_key
from imagefs.files.node import PUBLIC_TIMEOUT, Attributes, Children, Node, directory_attributes, inode_of
from imagefs.identity.caller import Caller
from imagefs.identity.map import Identity
from imagefs.library import Library
from imagefs.sight import Sight, Sights
from imagefs.upkeep import Upkeep

_FAILED: Final = 64
"""Nodes on which an operation failed that are kept for who asks for the reason."""


class ImagesDirectory(Node):
    """images/ or raw/: one file for each image of the catalog that the caller sees."""

    kind = "directory"

    def __init__(
        self, key: str, file_class: type[ImageFile], catalog: Catalog, library: Library, upkeep: Upkeep, sights: Sights, owner: tuple[int, int]
    ) -> None:
        """`file_class` is what the files of this directory are."""
        super().__init__(key)
        self._file_class = file_class
        self._catalog = catalog
        self._library = library
        self._upkeep = upkeep
        self._sights = sights
        self._owner = owner
        # Nodes live as long as the kernel knows them: a hundred thousand images that nobody looks at take no memory here.
        self._files: weakref.WeakValueDictionary[int, ImageFile] = weakref.WeakValueDictionary()
        self._failed: collections.deque[ImageFile] = collections.deque(maxlen=_FAILED)
        self._made_ns = time.time_ns()

    def attributes(self) -> Attributes:
        """As Node says. Its time never changes: it would tell of images that the caller does not see."""
        return directory_attributes(self.inode, 0o555, *self._owner, self._made_ns, name_timeout=PUBLIC_TIMEOUT)

    async def lookup(self, caller: Caller, name: str) -> Node:
        """As Node says; an id that no look at the store has found yet is asked for."""
        return self.file(await self._sights.of(caller).find(name))

    async def children(self, caller: Caller) -> Children:
        """As Node says: the default listing of Glance. Raises Denied without the policy get_images."""
        return await self.children_of(self._sights.of(caller))

    async def children_of(self, sight: Sight) -> Children:
        """Return the children that an identity sees."""
        check_may_list(sight)
        return MadeChildren(await sight.listed(), lambda image: image.id, self.file)

    def listing_version(self) -> object:
        """As Node says."""
        return self._sights.generation

    def listing_inode(self, caller: Caller) -> int:
        """As Node says."""
        return listing_inode(self, self._sights.of(caller).identity)

    def file(self, image: CatalogImage) -> ImageFile:
        """Return the node of an image at its present version; always the same one."""
        found = self._files.get(self._inode_of(image))
        if found is None:
            found = self._file_class(image, self._catalog, self._library, self._upkeep, self._sights, self._owner, self._keep)
            self._files[found.inode] = found
        return found

    def _inode_of(self, image: CatalogImage) -> int:
        return inode_of(self._file_class.kind, image_key(image))

    def _keep(self, node: ImageFile) -> None:
        if node not in self._failed:
            self._failed.append(node)

    def forget(self, image: CatalogImage) -> ImageFile | None:
        """Drop the node of an image that is gone, and return it."""
        return self._files.pop(self._inode_of(image), None)


def check_may_list(sight: Sight) -> None:
    """Raise Denied unless the identity may list images: the policy get_images."""
    if not sight.access.may_list(sight.identity):
        raise Denied("the policy get_images does not let this caller list images")


def listing_inode(directory: Node, identity: Identity) -> int:
    """Return what names the list of a directory that an identity sees; it outlives the daemon."""
    roles = "\0".join(sorted(identity.roles))
    return inode_of("listing", f"{directory.inode}\0{identity.project_id}\0{identity.user_id}\0{roles}")

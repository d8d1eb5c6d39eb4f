"""This module is images/, raw/ and names/: what the store has, read-only, with properties as extended attributes."""

import calendar
import functools
import os
import stat
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from imagefs.catalog import Catalog, CatalogImage
from imagefs.errors import ImagefsError, NotFound
from imagefs.files.node import PUBLIC_TIMEOUT, Attributes, Node, OpenMode, check_read_only, directory_attributes
from imagefs.identity import Caller
from imagefs.library import Library
from imagefs.properties.view import XattrView, as_xattrs
from imagefs.source import Source
from imagefs.store.record import is_image_id

CACHED: Final = "user.imagefs.cached"


class ImageFile(Node):
    """One image at one version of its bytes: a new version is another node, with another inode number and its own pages."""

    shows_disk: ClassVar[bool] = False

    def __init__(self, image: CatalogImage, catalog: Catalog, library: Library, uid: int, gid: int) -> None:
        """Take the image as the catalog has it now; its attributes follow the catalog, its bytes do not."""
        super().__init__(image_key(image))
        self._image = image
        self._catalog = catalog
        self._library = library
        self._owner = (uid, gid)
        self._opens = 0
        self._source: Source | None = None
        self._view: tuple[CatalogImage, XattrView] | None = None
        self.error: str | None = None

    @property
    def image(self) -> CatalogImage:
        """The image with its newest record, or the last one known if it is gone or has other bytes by now."""
        newest = self._catalog.snapshot.images.get(self._image.record.id)
        if newest is not None and newest.data_version == self._image.data_version:
            self._image = newest
        return self._image

    @property
    def size(self) -> int:
        """Bytes of the file."""
        if self._source is not None:
            return self._source.size
        return self.image.record.size or 0

    @property
    def in_use(self) -> bool:
        """Whether somebody has the file open."""
        return self._opens > 0

    def attributes(self) -> Attributes:
        """As Node says."""
        image = self.image
        created, updated = _nanoseconds(image.record.created_at), _nanoseconds(image.record.updated_at)
        shared = image.record.visibility == "public" and image.record.status == "active"
        shown = Attributes(self.inode, stat.S_IFREG | 0o444, *self._owner, self.size, self.size, created, updated)
        if shared:
            shown.name_timeout = shown.attributes_timeout = PUBLIC_TIMEOUT
        return shown

    async def open(self, caller: Caller, flags: int) -> OpenMode:
        """As Node says. Raises StoreError, ImageRefused; the reason is then in user.imagefs.error."""
        check_read_only(self, flags)
        self.check(caller, os.R_OK)
        await self._open_source()
        self._opens += 1
        return OpenMode(keep_pages=True)

    async def close(self) -> None:
        """As Node says; the library may close the image once nobody reads it."""
        self._opens = max(0, self._opens - 1)
        if self._opens == 0:
            self._source = None

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """As Node says."""
        return self._source.read_nowait(offset, length) if self._source is not None else None

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """As Node says. Raises StoreError, ImageRefused."""
        source = self._source or await self._open_source()
        try:
            return await source.read(offset, length)
        except ImagefsError as error:
            self.error = str(error)
            raise

    def xattrs(self, caller: Caller) -> Mapping[str, bytes]:
        """As Node says."""
        view = self._properties()
        own = {CACHED: b""}  # listed; what it says is for `xattr` to find out
        if view.omitted:
            own["user.imagefs.omitted"] = str(view.omitted).encode()
        if self.error is not None:
            own["user.imagefs.error"] = self.error.encode()
        return view.xattrs | own

    async def xattr(self, caller: Caller, name: str) -> bytes:
        """As Node says."""
        if name == CACHED:
            cached = await self._library.cached_bytes(self.image, self.size, of_disk=self.shows_disk)
            return f"{cached}/{self.size}".encode()
        return await super().xattr(caller, name)

    async def _open_source(self) -> Source:
        try:
            opened = await self._library.open(self.image)
            self._source = source = opened.as_disk() if self.shows_disk else opened.stored
        except ImagefsError as error:
            self.error = str(error)
            raise
        self.error = None
        return source

    def _properties(self) -> XattrView:
        image = self.image
        if self._view is None or self._view[0] is not image:
            self._view = (image, as_xattrs(image.record))
        return self._view[1]


class StoredImageFile(ImageFile):
    """images/<id>: the bytes as stored."""

    kind = "images"


class DiskImageFile(ImageFile):
    """raw/<id>: the image as a disk."""

    kind = "raw"
    shows_disk = True

    def attributes(self) -> Attributes:
        """As Node says. A size that is only guessed is not for the kernel to keep: it would cut reads at it."""
        shown = super().attributes()
        if self._source is None and self.image.record.virtual_size is None:
            shown.name_timeout = shown.attributes_timeout = 0.0
        return shown

    @property
    def size(self) -> int:
        """Bytes of the disk: known for sure once the image is open, until then what its record says."""
        if self._source is not None:
            return self._source.size
        record = self.image.record
        return record.virtual_size if record.virtual_size is not None else record.size or 0


class ImagesDirectory(Node):
    """images/ or raw/: one file for each image of the catalog."""

    kind = "directory"

    def __init__(self, key: str, file_class: type[ImageFile], catalog: Catalog, library: Library, uid: int, gid: int) -> None:
        """`file_class` is what the files of this directory are."""
        super().__init__(key)
        self._file_class = file_class
        self._catalog = catalog
        self._library = library
        self._owner = (uid, gid)
        # Nodes live as long as the kernel knows them: a hundred thousand images that nobody looks at take no memory here.
        self._files: weakref.WeakValueDictionary[str, ImageFile] = weakref.WeakValueDictionary()
        self._changed_ns = time.time_ns()

    def attributes(self) -> Attributes:
        """As Node says."""
        return directory_attributes(self.inode, 0o555, *self._owner, self._changed_ns, name_timeout=PUBLIC_TIMEOUT)

    async def lookup(self, caller: Caller, name: str) -> Node:
        """As Node says; an id that no look at the store has found yet is asked for."""
        self.check(caller, os.X_OK)
        image = self._catalog.snapshot.images.get(name)
        if image is None:
            if not is_image_id(name):
                raise NotFound(f"there is no image {name}")
            image = await self._catalog.find(name)
        return self.file(image)

    def children(self, caller: Caller) -> Sequence[tuple[str, Node]]:
        """As Node says; hidden images are left out."""
        self.check(caller, os.R_OK)
        return [(image_id, self.file(image)) for image_id, image in self._catalog.snapshot.images.items() if not image.record.os_hidden]

    def file(self, image: CatalogImage) -> ImageFile:
        """Return the node of an image at its present version; always the same one."""
        key = image_key(image)
        found = self._files.get(key)
        if found is None:
            found = self._files[key] = self._file_class(image, self._catalog, self._library, *self._owner)
        return found

    def forget(self, image: CatalogImage) -> ImageFile | None:
        """Drop the node of an image that is gone, and return it."""
        self._changed_ns = time.time_ns()
        return self._files.pop(image_key(image), None)


class NameLink(Node):
    """names/<name>: a symbolic link to the image."""

    kind = "names"

    def __init__(self, name: str, image_id: str, uid: int, gid: int) -> None:
        """Take the file name and the image that it means now."""
        super().__init__(f"{name}\0{image_id}")
        self._target = f"../images/{image_id}"
        self._owner = (uid, gid)
        self._made_ns = time.time_ns()

    def attributes(self) -> Attributes:
        """As Node says."""
        return Attributes(self.inode, stat.S_IFLNK | 0o777, *self._owner, len(self._target), 0, self._made_ns, self._made_ns)

    def target(self) -> str:
        """As Node says."""
        return self._target


class NamesDirectory(Node):
    """names/: image names as the catalog makes them fit for files."""

    kind = "directory"

    def __init__(self, catalog: Catalog, uid: int, gid: int) -> None:
        """Take the catalog and the owner of the links."""
        super().__init__("names")
        self._catalog = catalog
        self._owner = (uid, gid)
        self._made_ns = time.time_ns()

    def attributes(self) -> Attributes:
        """As Node says."""
        return directory_attributes(self.inode, 0o555, *self._owner, self._made_ns, name_timeout=PUBLIC_TIMEOUT)

    async def lookup(self, caller: Caller, name: str) -> Node:
        """As Node says."""
        self.check(caller, os.X_OK)
        image_id = self._catalog.snapshot.names.get(name)
        if image_id is None:
            raise NotFound(f"no image is named '{name}'")
        return NameLink(name, image_id, *self._owner)

    def children(self, caller: Caller) -> Sequence[tuple[str, Node]]:
        """As Node says; names of hidden images are left out."""
        self.check(caller, os.R_OK)
        snapshot = self._catalog.snapshot
        return [
            (name, NameLink(name, image_id, *self._owner))
            for name, image_id in snapshot.names.items()
            if not snapshot.images[image_id].record.os_hidden
        ]


def image_key(image: CatalogImage) -> str:
    """Return what names an image and the version of its bytes in inode numbers."""
    return f"{image.record.id}\0{image.data_version}"


@functools.lru_cache(maxsize=16384)
def _nanoseconds(timestamp: str) -> int:
    try:
        return calendar.timegm(time.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ")) * 10**9
    except ValueError:
        return 0

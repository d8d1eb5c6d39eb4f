"""This module is images/ and raw/: what the store has, read-only, with properties as extended attributes, for those who may see it."""

import calendar
import collections
import contextlib
import functools
import os
import stat
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Final

from imagefs.catalog import Catalog, CatalogImage, Snapshot
from imagefs.errors import Denied, ImagefsError, InvalidInput, NotPermitted, Unsupported
from imagefs.files.node import PUBLIC_TIMEOUT, Attributes, Children, Failures, Node, OpenMode, check_read_only, directory_attributes, inode_of
from imagefs.identity.caller import Caller
from imagefs.identity.map import Identity
from imagefs.library import Library
from imagefs.properties.change import Mode, remove_attribute, set_attribute
from imagefs.properties.visibility import membership
from imagefs.sight import CACHED, Sight, Sights
from imagefs.source import Source
from imagefs.store.record import ImageRecord

MEMBER: Final = "user.imagefs.member."
ERROR: Final = "user.imagefs.error"
_FAILED: Final = 64
"""Nodes on which an operation failed that are kept for who asks for the reason."""


class ImageFile(Node):
    """One image at one version of its bytes: a new version is another node, with another inode number and its own pages."""

    shows_disk: ClassVar[bool] = False

    def __init__(
        self,
        image: CatalogImage,
        catalog: Catalog,
        library: Library,
        sights: Sights,
        owner: tuple[int, int],
        keep: Callable[["ImageFile"], None],
    ) -> None:
        """Take the image as the catalog has it now; its attributes follow the catalog, its bytes do not. `owner` is a uid and a gid.

        `keep` is called when an operation failed: the kernel may forget the node before the caller asks it for the reason.
        """
        super().__init__(image_key(image))
        self._image = image
        self._as_of: Snapshot | None = None
        self._catalog = catalog
        self._library = library
        self._sights = sights
        self._owner = owner
        self._keep = keep
        self._opens = 0
        self._source: Source | None = None
        self._failures = Failures()
        self.error: str | None = None

    @property
    def image(self) -> CatalogImage:
        """The image with its newest record, or the last one known if it is gone or has other bytes by now."""
        if self._as_of is self._catalog.snapshot:
            return self._image
        self._as_of = self._catalog.snapshot
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
        """As Node says. What not every caller sees, the kernel must ask for each time: it shares names and attributes among all."""
        image = self.image
        created, updated = _nanoseconds(image.record.created_at), _nanoseconds(image.record.updated_at)
        timeout = PUBLIC_TIMEOUT if image.record.status == "active" and self._sights.is_public(image) else 0.0
        return Attributes(
            self.inode,
            stat.S_IFREG | 0o444,
            *self._owner,
            self.size,
            self.size,
            created,
            updated,
            name_timeout=timeout,
            attributes_timeout=timeout,
        )

    def check(self, caller: Caller, wanted: int) -> None:
        """As Node says: policies decide who reads. Raises NotFound where the caller must not know that there is an image."""
        sight = self._sight(caller)
        if wanted & os.R_OK:
            sight.access.check_download(sight.identity, self.image.record)
        if wanted & (os.W_OK | os.X_OK):
            raise Denied(f"{self!r} is never written or run")

    async def open(self, caller: Caller, flags: int) -> OpenMode:
        """As Node says. Raises NotFound, Denied, StoreError, ImageRefused; the reason is then in user.imagefs.error."""
        self._sight(caller)
        check_read_only(self, flags)
        with self._noting(caller):
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

    # -- extended attributes --------------------------------------------------------------------

    def xattrs(self, caller: Caller) -> Mapping[str, bytes]:
        """As Node says: what the caller may read, and imagefs's own. Raises NotFound."""
        own: dict[str, bytes] = {}
        if (error := self._failures.of(caller) or self.error) is not None:
            own[ERROR] = error.encode("utf-8", "replace")
        return self._sight(caller).xattrs(self.image).xattrs | own

    def xattr_names(self, caller: Caller) -> Sequence[bytes]:
        """As Node says. Raises NotFound."""
        names = self._sight(caller).xattrs(self.image).names
        return names if (self._failures.of(caller) or self.error) is None else (*names, ERROR.encode())

    def xattr_nowait(self, caller: Caller, name: bytes) -> bytes | None:
        """As Node says. Raises NotFound."""
        return self._sight(caller).xattrs(self.image).by_name.get(name)

    async def xattr(self, caller: Caller, name: str) -> bytes:
        """As Node says."""
        sight = self._sight(caller)
        image = self.image
        if name == CACHED:
            cached = await self._library.cached_bytes(image, self.size, of_disk=self.shows_disk)
            return f"{cached}/{self.size}".encode()
        if name.startswith(MEMBER):
            member = sight.access.member(sight.identity, image.record, name.removeprefix(MEMBER))
            if member is not None:
                return member.status.encode()
        return await super().xattr(caller, name)

    async def set_xattr(self, caller: Caller, name: str, value: bytes, mode: Mode) -> None:
        """Write one attribute through to the store, by the rules for the caller. Raises as `properties.change` says, and StoreError."""
        key = self._writable(caller, name)
        await self._write(caller, lambda record, identity: set_attribute(record, key, value, mode, identity, self._sights.access))

    async def remove_xattr(self, caller: Caller, name: str) -> None:
        """Remove one attribute from the store, by the rules for the caller. Raises as `properties.change` says, and StoreError."""
        key = self._writable(caller, name)
        await self._write(caller, lambda record, identity: remove_attribute(record, key, identity, self._sights.access))

    def _writable(self, caller: Caller, name: str) -> str:
        self._sight(caller)
        if not name.startswith("user."):
            raise Unsupported(f"{self!r} has attributes of the kind user. only")
        return name.removeprefix("user.")

    async def _write(self, caller: Caller, change: Callable[[ImageRecord, Identity], ImageRecord]) -> None:
        """Decide on the record as the store has it at that moment. What is refused anyhow does not get as far as the store."""
        sight = self._sight(caller)
        identity = sight.identity
        with self._noting(caller):
            try:
                change(self.image.record, identity)
            except (NotPermitted, InvalidInput):
                raise
            except ImagefsError:
                if not sight.access.mutable(identity, self.image.record) and membership(self.image.record, identity.project_id) is None:
                    raise  # such a caller changes nothing, whatever is in the store by now
            await self._catalog.update(self.image.record.id, lambda record: change(record, identity))
        self._failures.clear(caller)

    # -- parts ----------------------------------------------------------------------------------

    def _sight(self, caller: Caller) -> Sight:
        """Return the caller's sight. Raises NotFound if it does not see this image."""
        sight = self._sights.of(caller)
        sight.check(self.image)
        return sight

    @contextlib.contextmanager
    def _noting(self, caller: Caller) -> Iterator[None]:
        try:
            yield
        except ImagefsError as error:
            self._failures.note(caller, error)
            self._keep(self)
            raise

    async def _open_source(self) -> Source:
        try:
            opened = await self._library.open(self.image)
            self._source = source = opened.as_disk() if self.shows_disk else opened.stored
        except ImagefsError as error:
            self.error = str(error)
            self._keep(self)
            raise
        self.error = None
        return source


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
    """images/ or raw/: one file for each image of the catalog that the caller sees."""

    kind = "directory"

    def __init__(self, key: str, file_class: type[ImageFile], catalog: Catalog, library: Library, sights: Sights, owner: tuple[int, int]) -> None:
        """`file_class` is what the files of this directory are."""
        super().__init__(key)
        self._file_class = file_class
        self._catalog = catalog
        self._library = library
        self._sights = sights
        self._owner = owner
        # Nodes live as long as the kernel knows them: a hundred thousand images that nobody looks at take no memory here.
        self._files: weakref.WeakValueDictionary[str, ImageFile] = weakref.WeakValueDictionary()
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
        return [(image.record.id, functools.partial(self.file, image)) for image in await sight.listed()]

    def listing_version(self) -> object:
        """As Node says."""
        return self._sights.generation

    def listing_inode(self, caller: Caller) -> int:
        """As Node says."""
        return listing_inode(self, self._sights.of(caller).identity)

    def file(self, image: CatalogImage) -> ImageFile:
        """Return the node of an image at its present version; always the same one."""
        key = image_key(image)
        found = self._files.get(key)
        if found is None:
            found = self._files[key] = self._file_class(image, self._catalog, self._library, self._sights, self._owner, self._keep)
        return found

    def _keep(self, node: ImageFile) -> None:
        if node not in self._failed:
            self._failed.append(node)

    def forget(self, image: CatalogImage) -> ImageFile | None:
        """Drop the node of an image that is gone, and return it."""
        return self._files.pop(image_key(image), None)


def check_may_list(sight: Sight) -> None:
    """Raise Denied unless the identity may list images: the policy get_images."""
    if not sight.access.may_list(sight.identity):
        raise Denied("the policy get_images does not let this caller list images")


def listing_inode(directory: Node, identity: Identity) -> int:
    """Return what names the list of a directory that an identity sees; it outlives the daemon."""
    roles = "\0".join(sorted(identity.roles))
    return inode_of("listing", f"{directory.inode}\0{identity.project_id}\0{identity.user_id}\0{roles}")


def image_key(image: CatalogImage) -> str:
    """Return what names an image and the version of its bytes in inode numbers."""
    return f"{image.record.id}\0{image.data_version}"


@functools.lru_cache(maxsize=16384)
def _nanoseconds(timestamp: str) -> int:
    try:
        return calendar.timegm(time.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ")) * 10**9
    except ValueError:
        return 0

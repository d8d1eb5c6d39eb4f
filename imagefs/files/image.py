"""This module is an image as a file: read-only, with properties as extended attributes, for those who may see it."""

import calendar
import contextlib
import functools
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Final

from imagefs.catalog import Catalog, CatalogImage
from imagefs.errors import AlreadyExists, Denied, ImagefsError, InvalidInput, NoAttribute, NotPermitted, Unsupported
from imagefs.files.node import PUBLIC_TIMEOUT, Attributes, Failures, Node, OpenMode, check_read_only
from imagefs.identity.caller import Caller
from imagefs.identity.map import Identity
from imagefs.library import AS_STORED, Library, OpenImage
from imagefs.properties.change import Mode, remove_attribute, set_attribute
from imagefs.properties.visibility import membership
from imagefs.sight import CACHED, PIN, PREFETCH, Sight, Sights
from imagefs.source import Source
from imagefs.store.record import ImageRecord
from imagefs.upkeep import Upkeep

MEMBER: Final = "user.imagefs.member."
ERROR: Final = "user.imagefs.error"
_CONTROLS: Final = {PREFETCH: "cache_image", PIN: "manage_image_cache"}
"""Attributes that tell and steer what the cache has of the image, and the policies that guard them."""


class ImageFile(Node):
    """One image at one version of its bytes: a new version is another node, with another inode number and its own pages."""

    __slots__ = ("_as_of", "_catalog", "_failures", "_image", "_keep", "_library", "_opens", "_owner", "_sights", "_source", "_upkeep", "error")
    shows_disk: ClassVar[bool] = False

    def __init__(
        self,
        image: CatalogImage,
        catalog: Catalog,
        library: Library,
        upkeep: Upkeep,
        sights: Sights,
        owner: tuple[int, int],
        keep: Callable[["ImageFile"], None],
    ) -> None:
        """Take the image as the catalog has it now; its attributes follow the catalog, its bytes do not. `owner` is a uid and a gid.

        `keep` is called when an operation failed: the kernel may forget the node before the caller asks it for the reason.
        """
        super().__init__(image_key(image))
        self.key = image.id  # what messages need of it; the kernel may know a hundred thousand of these
        self._image = image
        self._as_of = -1
        self._catalog = catalog
        self._library = library
        self._upkeep = upkeep
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
        snapshot = self._catalog.snapshot
        if self._as_of == snapshot.generation:  # its number, and not itself: it would live for as long as this node does
            return self._image
        self._as_of = snapshot.generation
        newest = snapshot.images.get(self._image.id)
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
        """As Node says. Raises NotFound, Denied, StoreError, ImageRefused; the reason is then in user.imagefs.error.

        What is wrong with the bytes of an image that need not be looked at before, see `Library.begin`, its first read tells.
        """
        self._sight(caller)
        check_read_only(self, flags)
        with self._noting(caller):
            self.check(caller, os.R_OK)
        self._opening()
        with self._keeping_error():
            opened = await self._library.begin(self.image, of_disk=self.shows_disk)
            if opened is not None:
                self._source = self._face(opened)
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
        source = self._source or await self._open_source(offset, length)
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
        if name in _CONTROLS:
            if not sight.access.allows(_CONTROLS[name], sight.identity, image.record):
                raise NoAttribute(f"{self!r} has no attribute {name}")
            return self._upkeep.prefetch_state(image).encode() if name == PREFETCH else str(self._upkeep.pinned(image)).lower().encode()
        if name.startswith(MEMBER):
            member = sight.access.member(sight.identity, image.record, name.removeprefix(MEMBER))
            if member is not None:
                return member.status.encode()
        return await super().xattr(caller, name)

    async def set_xattr(self, caller: Caller, name: str, value: bytes, mode: Mode) -> None:
        """Write one attribute through to the store, by the rules for the caller. Raises as `properties.change` says, and StoreError."""
        key = self._writable(caller, name)
        if name in _CONTROLS:
            await self._control(caller, name, value.decode(errors="replace").strip(), mode)
            return
        await self._write(caller, lambda record, identity: set_attribute(record, key, value, mode, identity, self._sights.access))

    async def _control(self, caller: Caller, name: str, wanted: str, mode: Mode) -> None:
        """Do what is asked of the cache about this image. Raises NotFound, NotPermitted, InvalidInput, AlreadyExists, and as `Upkeep` says."""
        sight, image = self._sight(caller), self.image
        with self._noting(caller):
            if not sight.access.allows(_CONTROLS[name], sight.identity, image.record):
                raise NotPermitted(f"image {image.record.id}: the policy {_CONTROLS[name]} does not let this caller set {name}")
            if mode is Mode.CREATE:
                raise AlreadyExists(f"image {image.record.id}: {name} is there already, on every image")
            match name, wanted:
                case (_, "true" | "false") if name == PIN:
                    await self._upkeep.pin(image, wanted == "true")
                case (_, ("boot" | "all") as what) if name == PREFETCH:
                    self._upkeep.prefetch(image, what, lambda error: self._note_later(caller, error))
                case (_, "none") if name == PREFETCH:
                    self._upkeep.end_prefetch(image)
                case _:
                    values = "true or false" if name == PIN else "boot, all or none"
                    raise InvalidInput(f"image {image.record.id}: {name} cannot be {wanted[:40]!r}: it is {values}")
        self._failures.clear(caller)

    def _note_later(self, caller: Caller, error: Exception) -> None:
        """Keep the reason why something failed that went on after the request for it."""
        self._failures.note(caller, error)
        self._keep(self)

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

    async def _open_source(self, offset: int, length: int) -> Source:
        """Open the image for a read of this range, which is fetched while the image is inspected where that can be."""
        image = self.image
        wanted = (offset, length) if not self.shows_disk or image.record.disk_format in AS_STORED else None
        with self._keeping_error():
            self._source = source = self._face(await self._library.open(image, wanted))
        return source

    @contextlib.contextmanager
    def _keeping_error(self) -> Iterator[None]:
        """Keep the reason why the image cannot be opened, for who asks for user.imagefs.error."""
        try:
            yield
        except ImagefsError as error:
            self.error = str(error)
            self._keep(self)
            raise
        self.error = None

    def _opening(self) -> None:
        """Prepare for being opened by a caller who may. Must not wait or fail."""

    def _face(self, opened: OpenImage) -> Source:
        """Return which of an image's faces this file shows. Raises ImageRefused if there is none."""
        return opened.stored


class StoredImageFile(ImageFile):
    """images/<id>: the bytes as stored."""

    __slots__ = ()
    kind = "images"


def image_key(image: CatalogImage) -> str:
    """Return what names an image and the version of its bytes in inode numbers."""
    return f"{image.id}\0{image.data_version}"


@functools.lru_cache(maxsize=16384)
def _nanoseconds(timestamp: str) -> int:
    try:
        return calendar.timegm(time.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ")) * 10**9
    except ValueError:
        return 0

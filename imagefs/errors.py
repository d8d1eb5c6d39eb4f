"""This module holds every error that imagefs raises on purpose.

    ImagefsError
    ├── NotFound             an image, instance, flavor, object or name that is not there
    ├── AlreadyExists        a name that is taken
    ├── NotEmpty             a directory that must be empty is not
    ├── Denied               the caller may see the object but not do this
    ├── NotPermitted         nobody may do this to this object (truncate vda, unlink vda)
    ├── ReadOnly             a write to a part of the tree that is never written
    ├── InvalidInput         a value that cannot be right (a bad size, an unknown flavor)
    │   ├── NameTooLong      a name with more bytes than a directory entry has
    │   └── ConfigError      mistakes in the configuration, all of them at once
    ├── Busy                 in use: an open disk, a locked state directory, a mounted mount point
    ├── LayerFrozen          a write to a layer of a disk that a snapshot shows: write to the layer above
    ├── NoSpace              a write past the end of a disk, or a full state directory
    ├── QuotaExceeded        more properties, tags or members than an image may have
    ├── NoAttribute          an extended attribute that is not there (or not for this caller)
    ├── Unsupported          a request that has no meaning here
    ├── MountFailed          the filesystem could not be mounted, or the daemon ended early
    ├── ImageRefused         an image whose bytes or header must not be used
    ├── StateDamaged         a record in the state directory fails its checksum
    └── StoreError           the store did not deliver
        ├── StoreUnavailable for now: refused connection, time-out, 5xx, broken body
        │   └── StoreBusy    it asks for fewer requests
        ├── StoreRefused     for good: credentials, permissions, no such bucket
        ├── VersionChanged   the object is not the one that was opened any more
        ├── WrongBytes       length or digest differ from what the record says
        └── Conflict         a conditional write lost against another writer

Nothing here knows errno or exit statuses: `fuse.errno` and `cli.errors` hold those two tables.
A message says what was being done, to which object, why it failed and, where there is one, what to do next.
"""


class ImagefsError(Exception):
    """The root of all errors raised on purpose; `str()` of it is one line for a user."""


class NotFound(ImagefsError):
    """An image, instance, flavor, object or name that is not there."""


class AlreadyExists(ImagefsError):
    """A name that is taken."""


class NotEmpty(ImagefsError):
    """A directory that must be empty is not."""


class Denied(ImagefsError):
    """The caller may see the object but not do this to it."""


class NotPermitted(ImagefsError):
    """Nobody may do this to this object."""


class ReadOnly(ImagefsError):
    """A write to a part of the tree that is never written."""


class InvalidInput(ImagefsError):
    """A value that cannot be right."""


class NameTooLong(InvalidInput):
    """A name with more bytes than a directory entry has."""


class ConfigError(InvalidInput):
    """Mistakes in the configuration: `mistakes` has one line for each, with its key."""

    def __init__(self, source: str, mistakes: list[str]) -> None:
        """Take the file (or option) the mistakes are in, and the mistakes."""
        self.source = source
        self.mistakes = mistakes
        super().__init__(f"configuration {source}: " + "; ".join(mistakes))


class Busy(ImagefsError):
    """In use: an open disk, a locked state directory, a mounted mount point."""


class LayerFrozen(ImagefsError):
    """A write to a layer of a disk that does not change any more; there is a layer above it by now."""


class NoSpace(ImagefsError):
    """A write past the end of a disk, or no room left in the state directory."""


class QuotaExceeded(ImagefsError):
    """More properties, tags or members than an image may have."""


class NoAttribute(ImagefsError):
    """An extended attribute that is not there."""


class Unsupported(ImagefsError):
    """A request that has no meaning here."""


class MountFailed(ImagefsError):
    """The filesystem could not be mounted, or the daemon ended before it was usable."""


class ImageRefused(ImagefsError):
    """An image whose bytes or header must not be used."""


class StateDamaged(ImagefsError):
    """A record in the state directory fails its checksum."""


class StoreError(ImagefsError):
    """The store did not deliver."""


class StoreUnavailable(StoreError):
    """The store does not answer for now; the same request may succeed later."""


class StoreBusy(StoreUnavailable):
    """The store answers, and asks for fewer requests; `retry_after` is how many seconds it wants to be left alone, 0 if it does not say."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreRefused(StoreError):
    """The store answers, and refuses: credentials, permissions, no such bucket."""


class VersionChanged(StoreError):
    """The object is not the version that was opened any more."""


class WrongBytes(StoreError):
    """Length or digest differ from what the image's record says."""


class Conflict(StoreError):
    """A conditional write lost against another writer; read again and retry."""

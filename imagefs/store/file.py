"""This module is a directory as a bucket: an object is a file, its key the path below the directory.

- Names with a leading dot are never objects: they are `.lock`, unfinished files, and what the directory's owner hides.
- A symlink below the directory is not followed: a store that others may write must not lead to files outside it.
- An object's version is "inode-mtime in ns-size". `put` keeps the mtime of a key rising, so that an inode used again gives no old version.
- Every file is written under another name, flushed, and renamed: readers, also those on other nodes over NFS, see it whole or not at all.
- Conditional writes hold `.lock` of the object's directory by flock(2), which Linux carries over NFS.
- Files are 0644 and directories 0755, less the umask: a shared store is read by others.
"""

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import random
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import quote

from imagefs.counters import COUNTERS
from imagefs.errors import Conflict, InvalidInput, NoSpace, NotFound, StoreError, StoreRefused, StoreUnavailable, VersionChanged
from imagefs.store.crowd import each
from imagefs.store.protocol import SMALL_LIMIT, Entry, Progress
from imagefs.units import KIB, MIB

LOCK: Final = ".lock"
LOCK_DEADLINE: Final = 10.0
"""Seconds to wait for another writer, who holds the lock for one flush of a small file."""
_PIECE: Final = 256 * KIB
_HOLE: Final = 64 * KIB
_ZEROS: Final = bytes(_HOLE)
_VANISHED_TRIES: Final = 8
_BATCH: Final = 64
"""Small files that a thread reads before it hands them on."""
_READERS: Final = 4
"""Threads that read small files: the filesystem may be across a network."""

_log = logging.getLogger(__name__)


def version_of(status: os.stat_result) -> str:
    """Return the version of a file by its status."""
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


class FileObject:
    """A file of a directory store, pinned at one version: a DataObject that may be read in place."""

    def __init__(self, directory: "Directory", key: str, status: os.stat_result) -> None:
        self._directory = directory
        self._key = key
        self.size = status.st_size
        self.version = version_of(status)
        self.path: Path | None = directory.root / key

    def stream(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield the bytes of [offset, offset+length), cut at the end; each piece was read while the file was still the pinned version."""
        end = min(offset + length, self.size)
        with self._directory.explained("reading", self._key), self._directory.opened(self._key) as descriptor:
            self._check(descriptor)
            while offset < end:
                piece = os.pread(descriptor, min(_PIECE, end - offset), offset)
                self._check(descriptor)
                if not piece:
                    raise StoreUnavailable(f"reading {self._directory.name_of(self._key)}: the file ended at byte {offset}")
                yield piece
                offset += len(piece)

    def _check(self, descriptor: int) -> None:
        if version_of(os.fstat(descriptor)) != self.version:
            raise VersionChanged(f"{self._directory.name_of(self._key)} was changed or replaced since it was opened: open the image again")


class Directory:
    """A Bucket over the directory `root`. `create`: make the directory in `check` if it is not there (the built-in default)."""

    remote = False

    def __init__(
        self, root: Path, create: bool = False, sleep: Callable[[float], object] = time.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.root = root
        self._create = create
        self._sleep = sleep
        self._clock = clock

    @property
    def url(self) -> str:
        """The store's URL."""
        return f"file://{quote(str(self.root))}"

    def name_of(self, key: str) -> str:
        """Return what messages call the object."""
        return str(self.root / key)

    def check(self) -> None:
        """Return if the directory is there and may be listed, making it first if so told; else NotFound or StoreRefused."""
        try:
            if self._create:
                self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
            with os.scandir(self.root) as entries:
                next(entries, None)
            os.close(self._open_root())
        except FileNotFoundError:
            raise NotFound(f"the store directory {self.root} does not exist: create it (mkdir -p {self.root}) or mend [store] url") from None
        except (NotADirectoryError, FileExistsError):
            raise StoreRefused(f"the store {self.root} is not a directory: mend [store] url") from None
        except OSError as error:
            raise _explain("opening", f"the store directory {self.root}", error) from error

    def list(self) -> Iterator[Entry]:
        """Yield every regular file below the directory that is not hidden; a subdirectory that may not be read is skipped with a warning."""
        COUNTERS.store_requests += 1
        os.close(self._open_root())
        pending = [""]
        while pending:
            prefix = pending.pop()
            yield from _list_one(self.root, prefix, pending)

    def list_below(self, starts: Sequence[str], suffix: str, gently: bool = False) -> Iterator[tuple[str, str]]:
        """Yield (key, version) of the files `<directory>/<rest of suffix>` in directories that begin with one of `starts`: suffix begins with `/`.

        One system call for each directory, not one for each file in it.
        """
        COUNTERS.store_requests += 1
        below, root = tuple(starts), self._open_root()
        try:
            with self.explained("listing", ""), os.scandir(root) as entries:
                for entry in entries:
                    if entry.name.startswith(below) and entry.is_dir(follow_symlinks=False):
                        key = f"{entry.name}{suffix}"
                        version = self._version_below(root, key)
                        if version is not None:
                            yield key, version
        finally:
            os.close(root)

    def get_many(self, keys: Iterable[str], take: Callable[[str, bytes, str], None]) -> None:
        """Read many small files, a few at once, and call `take` for each; those that are gone by now are left out."""

        def read(batch: Sequence[str]) -> list[tuple[str, bytes, str]]:
            found = []
            for key in batch:
                with contextlib.suppress(NotFound):
                    found.append((key, *self.get(key)))
            return found

        left = iter(keys)
        for _, found in each(read, iter(lambda: list(itertools.islice(left, _BATCH)), []), _READERS):
            for one in found:
                take(*one)

    def get(self, key: str, limit: int = SMALL_LIMIT) -> tuple[bytes, str]:
        """Return the file's bytes (cut after `limit`) and version."""
        COUNTERS.store_requests += 1
        with self.explained("reading", key), self.opened(key) as descriptor, open(descriptor, "rb", closefd=False) as file:
            return file.read(limit), version_of(os.fstat(descriptor))

    def peek(self, key: str, offset: int, length: int) -> bytes:
        """Return the bytes of [offset, offset+length) as they are now, fewer at the end."""
        COUNTERS.store_requests += 1
        with self.explained("reading", key), self.opened(key) as descriptor:
            return os.pread(descriptor, length, offset)

    def put(self, key: str, body: bytes, expected: str | None) -> str:
        """Replace the file if its version is `expected` (None: create it). Durable when this returns. Raises Conflict, NoSpace."""
        COUNTERS.store_requests += 1
        with self.explained("writing", key):
            for _ in range(_VANISHED_TRIES):
                # The directory may go between its making and the lock, when another process deletes the last object in it.
                with contextlib.suppress(FileNotFoundError):
                    return self._put(key, body, expected)
                if expected is not None:
                    raise Conflict(f"writing {self.name_of(key)}: it was deleted meanwhile")
            raise StoreUnavailable(f"writing {self.name_of(key)}: its directory is being removed by another process: try again")

    def upload(self, key: str, source: BinaryIO, size: int, progress: Progress) -> str:
        """Write `size` bytes of `source`, with holes for runs of zeros; the file appears when it is whole and durable."""
        COUNTERS.store_requests += 1
        with (
            self.explained("storing", key),
            self._parent(key, make=True) as (directory, name),
            _temporary(directory, name) as (descriptor, temporary),
        ):
            _copy_sparsely(source, descriptor, size, progress, self.name_of(key))
            os.fsync(descriptor)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
            return version_of(os.fstat(descriptor))

    def open(self, key: str, size: int | None = None) -> FileObject:
        """Return the file pinned at its present version; looking at it at once costs nothing."""
        COUNTERS.store_requests += 1
        with self.explained("opening", key), self.opened(key) as descriptor:
            return FileObject(self, key, os.fstat(descriptor))

    def delete(self, key: str) -> None:
        """Remove the file, what a killed upload of it left, and its directory if nothing else is in there."""
        COUNTERS.store_requests += 1
        with self.explained("deleting", key), contextlib.suppress(FileNotFoundError):
            with self._parent(key) as (directory, name):
                if not _named_for(directory, name)[0]:
                    return
                with self._locked(directory):
                    emptied = _unlink_all(directory, name) and "/" in key
                    if emptied:
                        os.unlink(LOCK, dir_fd=directory)
            if emptied:
                # After the lock is closed: NFS keeps the name of an open file. Another writer may be in again: then it is not empty.
                with contextlib.suppress(OSError):
                    (self.root / key).parent.rmdir()

    @contextlib.contextmanager
    def opened(self, key: str) -> Iterator[int]:
        """Open the object for reading and yield the descriptor. Raises OSError, NotFound if it is not a regular file."""
        with self._parent(key) as (directory, name):
            # O_NONBLOCK: opening a named pipe must not wait for a writer.
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotFound(f"{self.name_of(key)} is not a regular file")
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def explained(self, doing: str, key: str) -> Iterator[None]:
        """Turn an OSError inside into the StoreError that says so."""
        try:
            yield
        except OSError as error:
            raise _explain(doing, self.name_of(key), error) from error

    def _open_root(self) -> int:
        try:
            return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            # Not "no such image": a filesystem that is not mounted must not look like an empty store.
            raise StoreUnavailable(f"the store directory {self.root} is not there: is its filesystem mounted?") from None

    def _version_below(self, root: int, key: str) -> str | None:
        """Return the version of a regular file below the descriptor of the root, None if it is not there."""
        try:
            status = _status_at(root, key)
        except NotADirectoryError:
            return None
        except PermissionError as error:
            _log.warning("store directory skipped path=%s reason=%s", self.root / key, error.strerror)
            return None
        return version_of(status) if status is not None and stat.S_ISREG(status.st_mode) else None

    @contextlib.contextmanager
    def _parent(self, key: str, make: bool = False) -> Iterator[tuple[int, str]]:
        """Yield (descriptor of the object's directory, name in it), walking without symlinks; `make` creates the directories."""
        *parents, name = _parts(key)
        descriptor = self._open_root()
        try:
            for part in parents:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=descriptor)
                        os.fsync(descriptor)
                child = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = child
            yield descriptor, name
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _locked(self, directory: int) -> Iterator[None]:
        """Hold the directory's lock. Raises FileNotFoundError if the directory is removed meanwhile, StoreUnavailable after LOCK_DEADLINE."""
        end = self._clock() + LOCK_DEADLINE
        while True:
            descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=directory)
            try:
                if _lock_now(descriptor, directory):
                    yield
                    return
            finally:
                os.close(descriptor)
            if self._clock() > end:
                raise StoreUnavailable(f"another writer has held {LOCK} beside the object for {LOCK_DEADLINE:.0f} s: try again")
            self._sleep(random.uniform(0.001, 0.02))  # noqa: S311 - spreads writers, guards nothing

    def _put(self, key: str, body: bytes, expected: str | None) -> str:
        with self._parent(key, make=expected is None) as (directory, name), self._locked(directory):
            present = _status_at(directory, name)
            if (None if present is None else version_of(present)) != expected:
                raise Conflict(f"writing {self.name_of(key)}: another writer was there first")
            with _temporary(directory, name) as (descriptor, temporary):
                with open(descriptor, "wb", closefd=False) as file:
                    file.write(body)
                os.fsync(descriptor)
                status = os.fstat(descriptor)
                if present is not None and status.st_mtime_ns <= present.st_mtime_ns:
                    os.utime(descriptor, ns=(status.st_atime_ns, present.st_mtime_ns + 1))
                    os.fsync(descriptor)
                os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
                os.fsync(directory)
                return version_of(os.fstat(descriptor))


def _parts(key: str) -> list[str]:
    parts = key.split("/")
    if "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise InvalidInput(f"'{key!r}' is not a key: it must be a relative path without '.', '..' and empty parts")
    return parts


def _list_one(root: Path, prefix: str, pending: list[str]) -> Iterator[Entry]:
    """Yield the objects directly in one directory and add its subdirectories to `pending`."""
    try:
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{prefix}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        yield Entry(f"{prefix}{entry.name}", status.st_size, version_of(status), status.st_mtime)
    except (FileNotFoundError, NotADirectoryError):
        return  # removed since its parent was listed
    except PermissionError as error:
        if not prefix:
            raise _explain("listing", str(root), error) from error
        _log.warning("store directory skipped path=%s reason=%s", root / prefix, error.strerror)
    except OSError as error:
        raise _explain("listing", str(root / prefix), error) from error


def _named_for(directory: int, name: str) -> tuple[set[str], set[str]]:
    """Return the names in the directory that belong to object `name` (itself, and unfinished files of it), and the others."""
    with os.scandir(directory) as entries:
        names = {entry.name for entry in entries}
    own = {present for present in names if present == name or present.startswith(f".{name}.")}
    return own, names - own


def _unlink_all(directory: int, name: str) -> bool:
    """Remove what belongs to object `name`, durably, and tell whether the directory has nothing left but its lock."""
    own, others = _named_for(directory, name)
    for present in own:
        with contextlib.suppress(FileNotFoundError):  # an upload may remove its unfinished file at the same time
            os.unlink(present, dir_fd=directory)
    os.fsync(directory)
    return others <= {LOCK}


def _status_at(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _lock_now(descriptor: int, directory: int) -> bool:
    """Try to lock, and tell whether this holds the file that is still named LOCK: its last user may have removed it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    named = _status_at(directory, LOCK)
    return named is not None and os.path.samestat(named, os.fstat(descriptor))


@contextlib.contextmanager
def _temporary(directory: int, name: str) -> Iterator[tuple[int, str]]:
    """Create an unfinished file and yield (descriptor, its name); on any exception remove it."""
    temporary = f".{name}.{secrets.token_hex(6)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=directory)
    try:
        yield descriptor, temporary
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    finally:
        os.close(descriptor)


def _copy_sparsely(source: BinaryIO, descriptor: int, size: int, progress: Progress, target: str) -> None:
    """Write `size` bytes of `source`, leaving holes where 64 KiB or more are zero. Raises InvalidInput if the source ends early."""
    os.ftruncate(descriptor, size)
    done = 0
    while done < size:
        piece = source.read(min(MIB, size - done))
        if not piece:
            raise InvalidInput(f"storing {target}: the source ended after {done} of {size} bytes")
        for start in range(0, len(piece), _HOLE):
            part = piece[start : start + _HOLE]
            if part != _ZEROS[: len(part)]:
                _write_at(descriptor, part, done + start)
        done += len(piece)
        progress(len(piece))


def _write_at(descriptor: int, body: bytes, offset: int) -> None:
    while body:
        written = os.pwrite(descriptor, body, offset)
        body, offset = body[written:], offset + written


def _explain(doing: str, what: str, error: OSError) -> StoreError | NotFound | NoSpace:
    """Return the error that says in words what an OSError means for the store."""
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return NotFound(f"{doing} {what}: it is not there")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return NoSpace(f"{doing} {what}: {error.strerror}: make room in the store's filesystem")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return StoreRefused(f"{doing} {what}: {error.strerror}: give the user of imagefs the permission")
        case errno.ELOOP:
            return StoreRefused(f"{doing} {what}: it is or goes through a symlink, which a store may not: put the file itself there")
        case _:
            return StoreUnavailable(f"{doing} {what}: {error.strerror}")

"""This module is the cache's directory on the disk: where a cache lies in it, what is found there at start, and what goes.

    ROOT/<image-id>/<space>-<hash of version>/units, map        one cache (imagefs-cache(5))

All methods block. Directories have mode 0700 and files 0600, and no symbolic link is followed.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import shutil
import stat
import threading
from pathlib import Path
from typing import Final

from imagefs.cache import mark, unit_map
from imagefs.cache.file import UnitFile, checksums, count_present, read_mark, read_use
from imagefs.cache.geometry import region_units
from imagefs.cache.mark import Mark
from imagefs.cache.unit_map import MapHeader
from imagefs.cache.use_record import UseRecord
from imagefs.errors import StateDamaged
from imagefs.store.record import is_image_id
from imagefs.units import unit_count

log = logging.getLogger(__name__)

_CACHE_NAME: Final = re.compile(r"[a-z]+-[0-9a-f]{32}")
_SHRINK_REGIONS: Final = 64
"""Regions looked for at once in a cache that is to shrink."""
_OPEN_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclasses.dataclass(frozen=True, slots=True)
class ClosedCache:
    """A cache on the disk that is not open: its name, the bytes it takes, and when it was last used (Unix seconds): its map's time."""

    name: str
    allocated: int
    modified: float
    shrunk: bool = False
    """Whether what is left is only what goes last."""

    @property
    def image_id(self) -> str:
        """The image it is of."""
        return self.name.partition("/")[0]


def cache_name(image_id: str, space: str, version: str) -> str:
    """Return where a cache lies below the root: "<image id>/<space>-<128 bits of the version's SHA-256>"."""
    return f"{image_id}/{space}-{hashlib.sha256(version.encode()).hexdigest()[:32]}"


class CacheDirectory:
    """The directory at `path`. Thread-safe.

    Invariant: a cache that is here and opens has a sound header that names its image, address space, version and size.
    """

    def __init__(self, path: Path) -> None:
        """Take the path; `scan` makes the directory."""
        self.path = path
        self._lock = threading.Lock()  # around making and removing directories

    def scan(self) -> tuple[list[ClosedCache], int]:
        """Return the caches that are here, and the bytes of everything else. Raises OSError.

        Looks at names and sizes only: a directory listing for each image. Removes caches without a map, which are what a
        removal left that was cut short, and whatever else is in an image's directory.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        caches: list[ClosedCache] = []
        other = _allocated(self.path)
        with os.scandir(self.path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if is_image_id(entry.name) and entry.is_dir(follow_symlinks=False):
                caches += self._scan_image(entry.name)
            else:
                log.warning("not a part of the cache, left alone path=%s", entry.path)
                other += disk_usage(Path(entry.path))
        return caches, other

    def open(self, name: str, header: MapHeader) -> UnitFile:
        """Return the cache's files, made anew if they are not there or not sound. Raises OSError.

        `header` says what they must hold; its seed counts only for a new map.
        """
        with self._lock:
            directory = self.path / name
            try:
                found = self._open_existing(directory, header)
            except StateDamaged as error:
                log.warning("a damaged cache is removed and begun anew path=%s error=%s", directory, error)
                self._discard(directory)
                found = None
            return found if found is not None else self._create(directory, header)

    def measure(self, name: str) -> ClosedCache:
        """Return what a cache is that is not open any more."""
        directory = self.path / name
        try:
            modified = (directory / "map").lstat().st_mtime
        except OSError:
            modified = 0.0
        return ClosedCache(name, disk_usage(directory) + _allocated(directory.parent), modified)

    def count_present(self, name: str, units: int) -> int:
        """Return how many of so many units a cache holds, by its map alone; 0 if there is none that can be read."""
        found = self.describe(name)
        return min(units, found[1]) if found is not None else 0

    def describe(self, name: str) -> tuple[MapHeader, int] | None:
        """Return what a cache is of, and how many units it holds, by its map alone; None if that cannot be read.

        Takes no longer for a large image than for a small one, unless the daemon that used the cache last was killed.
        """
        origin = self.path / name / "map"
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError, StateDamaged):
            entries = _open_regular(origin, opened)
            header = unit_map.decode_header(os.pread(entries, unit_map.HEADER_AREA, 0), str(origin))
            units = unit_count(header.size)
            present = read_use(entries, units).present
            return header, count_present(entries, units) if present is None else present
        return None

    def mark(self, name: str) -> Mark | None:
        """Return the mark of a complete cache that is not open; None if it is not complete, or nobody has checked whether it is."""
        origin = self.path / name / "map"
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError, StateDamaged):
            found = read_mark(self.path / name / mark.FILE_NAME)
            if found is not None:
                entries = _open_regular(origin, opened)
                header = unit_map.decode_header(os.pread(entries, unit_map.HEADER_AREA, 0), str(origin))
                units = unit_count(header.size)
                return found if found.seed == header.seed and found.units == units == count_present(entries, units) else None
        return None

    def header(self, name: str) -> MapHeader | None:
        """Return what a cache is of, by its map; None if that cannot be read."""
        origin = self.path / name / "map"
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError, StateDamaged):
            entries = _open_regular(origin, opened)
            return unit_map.decode_header(os.pread(entries, unit_map.HEADER_AREA, 0), str(origin))
        return None

    def checksums(self, name: str, limit: int) -> list[tuple[int, int]]:
        """Return up to `limit` whole units of data of a cache, each with its CRC-32C, by its map alone; none if that cannot be read."""
        origin = self.path / name / "map"
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError, StateDamaged):
            entries = _open_regular(origin, opened)
            return checksums(entries, unit_map.decode_header(os.pread(entries, unit_map.HEADER_AREA, 0), str(origin)), limit)
        return []

    def open_units(self, name: str, cleanup: contextlib.ExitStack) -> int | None:
        """Return the units of a cache that is not open, to read from until `cleanup` closes them; None if they are not there."""
        with contextlib.suppress(OSError, StateDamaged):
            return _open_regular(self.path / name / "units", cleanup)
        return None

    def shrink(self, cache: ClosedCache, wanted: int) -> ClosedCache | None:
        """Give back about `wanted` bytes of a cache that is not open, sparing the regions that it wants to keep; return what is left.

        None if nothing was left, or nothing can be made of it, so that it was removed. Never raises.
        """
        origin = self.path / cache.name / "map"
        rest = False
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError, StateDamaged):
            entries = _open_regular(origin, opened)
            header = unit_map.decode_header(os.pread(entries, unit_map.HEADER_AREA, 0), str(origin))
            file = UnitFile(_open_regular(self.path / cache.name / "units", opened), entries, header, self.path / cache.name / mark.FILE_NAME)
            done = _shrink(file, header.size, wanted)
            rest = bool(file.data_regions(0, 1))
            os.utime(origin, (cache.modified, cache.modified))  # this was no use of it
        if not rest:
            self.remove(cache.name)
            return None
        return dataclasses.replace(self.measure(cache.name), shrunk=done)

    def remove(self, name: str) -> None:
        """Remove a cache that is not open. Never raises; what cannot be removed is found by the next scan."""
        with self._lock:
            self._discard(self.path / name)

    def _scan_image(self, image_id: str) -> list[ClosedCache]:
        caches = []
        with os.scandir(self.path / image_id) as entries:
            for entry in entries:
                name = f"{image_id}/{entry.name}"
                if not _CACHE_NAME.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
                    log.warning("not a part of the cache, removed path=%s", entry.path)
                    _remove(Path(entry.path))
                elif not os.path.lexists(Path(entry.path) / "map"):
                    _remove(Path(entry.path))
                else:
                    caches.append(self.measure(name))
        if not caches:
            with contextlib.suppress(OSError):
                (self.path / image_id).rmdir()
        return caches

    def _open_existing(self, directory: Path, header: MapHeader) -> UnitFile | None:
        """Return the files, or None if the directory is not there. Raises StateDamaged, OSError."""
        for part in (directory.parent, directory):
            try:
                status = part.lstat()
            except FileNotFoundError:
                return None
            if not stat.S_ISDIR(status.st_mode):
                raise StateDamaged(f"{part}: not a directory")
        with contextlib.ExitStack() as cleanup:
            entries = _open_regular(directory / "map", cleanup)
            found = unit_map.decode_header(os.pread(entries, unit_map.HEADER_AREA, 0), str(directory / "map"))
            if _identity(found) != _identity(header):
                raise StateDamaged(f"{directory / 'map'}: made for {found.space} bytes of image {found.image_id}, {found.size} bytes in all")
            units = _open_regular(directory / "units", cleanup)
            _set_sizes(units, entries, header.size)
            cleanup.pop_all()
        return UnitFile(units, entries, found, directory / mark.FILE_NAME)

    def _create(self, directory: Path, header: MapHeader) -> UnitFile:
        for part in (directory.parent, directory):
            with contextlib.suppress(FileExistsError):
                part.mkdir(mode=0o700)
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self._discard, directory)
            units = _make(directory / "units", cleanup)
            entries = _make(directory / "map", cleanup)
            _set_sizes(units, entries, header.size)
            os.pwrite(entries, unit_map.encode_header(header), 0)
            cleanup.pop_all()
        return UnitFile(units, entries, header, directory / mark.FILE_NAME)

    def _discard(self, directory: Path) -> None:
        """Remove a cache and, if that was its last one, its image's directory. Never raises.

        The map goes first: what is left without one is known for what it is. Nothing is renamed, because a `du` that comes
        by would count it under both names.
        """
        if not _is_directory(directory.parent):
            _remove(directory.parent)
            return
        if _is_directory(directory):
            _remove(directory / "map")
        _remove(directory)
        with contextlib.suppress(OSError):
            directory.parent.rmdir()


def _shrink(file: UnitFile, size: int, wanted: int) -> bool:
    """Erase regions that are not to be kept until about `wanted` bytes are free; return whether none of them is left. Raises OSError."""
    used = file.read_use()
    before, region, left = file.allocated(), 0, used.present
    file.note_use(UseRecord(None, used.kept))  # in case this is cut short
    while before - file.allocated() < wanted:
        regions = file.data_regions(region, _SHRINK_REGIONS)
        if not regions:
            break
        region = regions[-1] + 1
        for victim in regions:
            if victim in used.kept:
                continue
            erased = file.erase(region_units(victim, unit_count(size)))
            left = None if left is None else max(0, left - erased)
            if before - file.allocated() >= wanted:
                break
    else:
        file.note_use(UseRecord(left, used.kept))
        return False
    file.note_use(UseRecord(left, used.kept))
    return True


def _identity(header: MapHeader) -> tuple[str, str, str, int, int]:
    """Return the parts of a header that must be as expected; the seed is the map's own."""
    return header.image_id, header.space, header.source_version, header.size, header.unit


def disk_usage(path: Path) -> int:
    """Return the bytes that a file, or a directory and all that is in it, takes; what vanishes meanwhile counts nothing."""
    total = _allocated(path)
    if not _is_directory(path):
        return total
    for parent, directories, files in os.walk(path):
        total += sum(_allocated(Path(parent) / name) for name in [*directories, *files])
    return total


def _allocated(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _open_regular(path: Path, cleanup: contextlib.ExitStack) -> int:
    """Open a file of a cache; `cleanup` closes it. Raises StateDamaged if it is not there or not a regular file."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise StateDamaged(f"{path}: not a regular file")
        descriptor = os.open(path, _OPEN_FLAGS)
    except FileNotFoundError:
        raise StateDamaged(f"{path}: missing") from None
    cleanup.callback(os.close, descriptor)
    return descriptor


def _make(path: Path, cleanup: contextlib.ExitStack) -> int:
    descriptor = os.open(path, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    cleanup.callback(os.close, descriptor)
    return descriptor


def _set_sizes(units: int, entries: int, size: int) -> None:
    """Give both files their full size, which costs nothing: they are sparse."""
    for descriptor, wanted in ((units, size), (entries, unit_map.entry_offset(unit_count(size)))):
        if os.fstat(descriptor).st_size != wanted:
            os.ftruncate(descriptor, wanted)


def _remove(path: Path) -> None:
    """Remove a file or a whole directory, following no link. Never raises; what stays is logged."""
    try:
        if _is_directory(path):
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove a part of the cache path=%s error=%s", path, error)

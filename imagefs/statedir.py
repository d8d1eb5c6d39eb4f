"""This module is the state directory: where things lie in it, and the lock that gives it to one daemon at a time.

    DIR/lock                 held by the daemon; one line: its pid and mount point
    DIR/imagefs.log          what a daemon in the background has to say
    DIR/catalog.db           the catalog's records by version (imagefs-state(5))
    DIR/cache/               the disk cache (imagefs-cache(5))
    DIR/pins                 images whose caches are evicted last (imagefs-state(5))
    DIR/profiles/<image-id>  what boots from an image read (imagefs-profile(5))
    DIR/instances/<uuid>/    one instance: its record and its disks (imagefs-state(5), imagefs-overlay(5))
    DIR/volumes/<uuid>/      one volume: its record and its disk (imagefs-state(5), imagefs-overlay(5))
    DIR/direct/<uuid>/       vda of an instance whose disk_format is qcow2, for its owner to open
    DIR/trash/               instances and volumes being deleted; emptied at mount

Directories have mode 0700 and files 0600: guests' disks lie here.
"""

import fcntl
import os
from pathlib import Path
from typing import Self

from imagefs.errors import Busy, InvalidInput, NoSpace


class StateDirectory:
    """The state directory at `path`; made if it is not there. Between `lock` and `close` no other daemon uses it."""

    def __init__(self, path: Path) -> None:
        """Make the directory and its parts. Raises InvalidInput with the reason if that cannot be done."""
        self.path = path
        self._lock: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for part in (path, self.cache, self.instances, self.volumes, self.trash):
                part.mkdir(mode=0o700, exist_ok=True)
            path.chmod(0o711 if self.direct.exists() else 0o700)
        except OSError as error:
            where = error.filename or path
            raise InvalidInput(f"state directory {path}: cannot make {where}: {error.strerror}; set [state] dir to a directory of yours") from error

    @property
    def cache(self) -> Path:
        """The directory of the disk cache."""
        return self.path / "cache"

    @property
    def profiles(self) -> Path:
        """The directory of the boot profiles; made with the first of them."""
        return self.path / "profiles"

    @property
    def pins(self) -> Path:
        """The record of pinned images."""
        return self.path / "pins"

    @property
    def instances(self) -> Path:
        """The directory of the instances."""
        return self.path / "instances"

    @property
    def volumes(self) -> Path:
        """The directory of the volumes."""
        return self.path / "volumes"

    @property
    def direct(self) -> Path:
        """The directory of disks that are files of their own, which their owners open past imagefs; made with the first of them."""
        return self.path / "direct"

    @property
    def trash(self) -> Path:
        """Where deleted instances and volumes lie until their bytes are gone."""
        return self.path / "trash"

    @property
    def catalog(self) -> Path:
        """The database of image records."""
        return self.path / "catalog.db"

    def lock(self, mountpoint: str) -> Self:
        """Take the directory for this process, which serves `mountpoint`. Raises Busy, saying who has it."""
        lock_path = self.path / "lock"
        try:
            descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidInput(f"state directory {self.path}: cannot open {lock_path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise Busy(f"state directory {self.path} is in use by {holder}: unmount that, or give this mount a [state] dir of its own") from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"the imagefs with pid {os.getpid()} at {mountpoint}\n".encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise NoSpace(f"state directory {self.path}: cannot write to it: {error.strerror}") from error
        self._lock = descriptor
        return self

    def close(self) -> None:
        """Give the directory up."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

"""This module makes, opens, checks and removes the files of a disk, or of one layer of it; all of it blocks.

NAME.data   what was written, sparse, at the guest's own offsets
NAME.live   the live map (live_map): states of the blocks now
NAME.map    the durable map (durable_map): states after a power loss
NAME.key    the key that NAME.data is enciphered with (key), if it is
"""

import contextlib
import dataclasses
import os
import uuid
from pathlib import Path
from typing import Final

from imagefs.aio.reader import Reader
from imagefs.errors import AlreadyExists, StateDamaged
from imagefs.overlay.block_map import MapHeader, data_file_size
from imagefs.overlay.calls import Calls
from imagefs.overlay.check import check_maps
from imagefs.overlay.cipher import EncipheredFile, EncipheredReader
from imagefs.overlay.durable_map import DurableMap, set_length
from imagefs.overlay.key import KEY_SUFFIX, NodeKey, create_key, read_key, shred_keys
from imagefs.overlay.live_map import LiveMap
from imagefs.sealed import sync_directory

SUFFIXES: Final = (KEY_SUFFIX, ".live", ".live.new", ".map", ".data")
"""What a disk's files are called after its name, in the order in which they are removed: without its key the rest is noise."""


class DiskFiles:
    """The open files of one disk. `calls` are the host's; `data_calls` are those for the data file, which encipher it if it is to be,
    and `reader` reads it without holding up the event loop.
    """

    def __init__(self, directory: Path, name: str, calls: Calls, node_key: NodeKey | None) -> None:
        """Open them. Raises what OverlayDisk.open does."""
        self.origin = str(directory / name)
        self.calls = calls
        self.data_calls = calls
        with contextlib.ExitStack() as on_failure:
            self.durable = DurableMap(directory / f"{name}.map", calls)
            on_failure.callback(self.durable.close)
            header = self.durable.header
            enciphered = None
            if header.encrypted:
                key = read_key(directory / f"{name}{KEY_SUFFIX}", header.disk_uuid, node_key, calls)
                enciphered = EncipheredFile(calls, key, self.origin)
                self.data_calls = dataclasses.replace(calls, preadv=enciphered.preadv, pwrite=enciphered.pwrite)
            self.data_fd = _open_data(directory / f"{name}.data", header.size)
            on_failure.callback(os.close, self.data_fd)
            self.reader = Reader(self.data_fd, calls.preadv)
            if enciphered is not None:
                self.reader = EncipheredReader(self.reader, enciphered)
            self.live = LiveMap(directory / f"{name}.live", header, self.durable.pages, calls)
            on_failure.pop_all()

    def close(self) -> None:
        """Close them, without syncing."""
        self.live.close()
        self.durable.close()
        os.close(self.data_fd)

    def check(self) -> None:
        """Raise StateDamaged, saying what is wrong, unless the maps fit each other and the data file. No flush may be running."""
        check_maps(self.origin, self.durable, self.live)
        _check_data_length(f"{self.origin}.data", self.data_fd, self.durable.header.size)


def create_files(directory: Path, name: str, size: int, base_identity: str, calls: Calls, node_key: NodeKey | None) -> None:
    """Make the files of a disk in which nothing is written, durably. Raises what OverlayDisk.create does, and leaves no file then.

    The live map is made by the first open: it is one more file that need not be durable.
    """
    for suffix in SUFFIXES:
        if (directory / f"{name}{suffix}").exists():
            raise AlreadyExists(f"{directory / name}{suffix}: there is a disk of that name already; delete it first")
    header = MapHeader(size, uuid.uuid4(), base_identity, encrypted=node_key is not None)
    try:
        DurableMap.create(directory / f"{name}.map", header, calls)
        if node_key is not None:
            create_key(directory / f"{name}{KEY_SUFFIX}", header.disk_uuid, node_key, calls)
        _create_data(directory / f"{name}.data", size, calls)
        sync_directory(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            delete_files(directory, name, calls)
        raise


def delete_files(directory: Path, name: str, calls: Calls) -> None:
    """Remove what there is of a disk's files; its key is destroyed durably before anything else goes. Raises NoSpace and OSError."""
    shred_keys([directory / f"{name}{KEY_SUFFIX}"], calls)
    for suffix in SUFFIXES:
        (directory / f"{name}{suffix}").unlink(missing_ok=True)
    sync_directory(directory)


def _create_data(path: Path, size: int, calls: Calls) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        set_length(calls, fd, data_file_size(size), str(path))
        calls.fdatasync(fd)
    finally:
        os.close(fd)


def _open_data(path: Path, size: int) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise StateDamaged(f"{path}: what was written to the disk is missing; restore it from a backup, or delete the disk") from error
    try:
        _check_data_length(str(path), fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_data_length(origin: str, fd: int, size: int) -> None:
    length = os.fstat(fd).st_size
    if length < data_file_size(size):
        raise StateDamaged(f"{origin}: cut short at {length} bytes; a disk of {size} bytes needs {data_file_size(size)}")

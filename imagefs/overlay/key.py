"""This module keeps the keys of encrypted disks: each wrapped under the node's key in a file of its own, NAME.key; all of it blocks.

A key file is written once, with the disk, and never again: destroying it destroys what the disk holds. imagefs-overlay(5) has its form.
"""

import contextlib
import os
import secrets
import stat
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from imagefs.errors import InvalidInput, NoSpace, StateDamaged
from imagefs.overlay.calls import CALLS, FULL, Calls, read_wholly, write_wholly
from imagefs.overlay.cipher import KEY_SIZE
from imagefs.sealed import HEADER_SIZE, seal, sync_directory, unseal

KEY_SUFFIX: Final = ".key"

_NODE_MAGIC: Final = b"IMFSNDKY"
_NODE_VERSION: Final = 1
_NODE_KEY_SIZE: Final = 32
"""Bytes of the node's key: one of AES-256."""
_KEY_MAGIC: Final = b"IMFSOVKY"
_KEY_VERSION: Final = 1
_UUID_SIZE: Final = 16
_NONCE_SIZE: Final = 12
_TAG_SIZE: Final = 16
_KEY_FILE_SIZE: Final = HEADER_SIZE + _UUID_SIZE + _NONCE_SIZE + KEY_SIZE + _TAG_SIZE
_OTHERS: Final = 0o077


class NodeKey:
    """The key under which a node wraps the keys of its disks; nothing shows it."""

    def __init__(self, secret: bytes) -> None:
        """`secret` has 32 random bytes. `load` is for the node's file."""
        self._wrapping = AESGCM(secret)

    def __repr__(self) -> str:
        return "NodeKey(...)"

    @staticmethod
    def load(path: Path) -> "NodeKey":
        """Return the key in the file at `path`; makes one, mode 0600 and durable, if there is no file. Two that make it at once get the same.

        Raises StateDamaged if the file is no node key, InvalidInput if others than its owner may use it or its directory is missing, NoSpace
        and OSError.
        """
        try:
            with contextlib.suppress(FileNotFoundError):
                return NodeKey._read(path)
            _make_node_key(path)
            return NodeKey._read(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InvalidInput(
                f"cannot make the node key {path}: there is no directory {path.parent}: make it, or set [instances] node_key"
            ) from error
        except OSError as error:
            if error.errno in FULL:
                raise NoSpace(f"cannot make the node key {path}: its filesystem is full; free space there") from error
            raise

    @staticmethod
    def _read(path: Path) -> "NodeKey":
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & _OTHERS:
                raise InvalidInput(f"the node key {path} has mode {mode:04o}, so others than its owner may use it: chmod 600 {path}")
            secret = unseal(_NODE_MAGIC, _NODE_VERSION, file.read(HEADER_SIZE + _NODE_KEY_SIZE + 1), str(path))
        if len(secret) != _NODE_KEY_SIZE:
            raise StateDamaged(f"{path}: a node key has {_NODE_KEY_SIZE} bytes, not {len(secret)}")
        return NodeKey(secret)

    def wrap(self, disk_key: bytes, disk_uuid: uuid.UUID) -> bytes:
        """Return a disk's key so that only this node key, and only for this disk, gets it back."""
        nonce = secrets.token_bytes(_NONCE_SIZE)
        return nonce + self._wrapping.encrypt(nonce, disk_key, disk_uuid.bytes)

    def unwrap(self, wrapped: bytes, disk_uuid: uuid.UUID, origin: str) -> bytes:
        """Undo `wrap`. Raises StateDamaged, naming `origin`, if this is not the node key or the disk that it was wrapped for."""
        try:
            return self._wrapping.decrypt(wrapped[:_NONCE_SIZE], wrapped[_NONCE_SIZE:], disk_uuid.bytes)
        except InvalidTag:
            raise StateDamaged(
                f"{origin}: the disk's key was wrapped under another node key: mount with the node key that the disk was made with"
            ) from None


def _make_node_key(path: Path) -> None:
    """Make the file at `path` with a new key, unless there is one by now: it must never be replaced, for disks depend on it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(seal(_NODE_MAGIC, _NODE_VERSION, secrets.token_bytes(_NODE_KEY_SIZE)))
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def create_key(path: Path, disk_uuid: uuid.UUID, node_key: NodeKey, calls: Calls) -> None:
    """Make the key file of a new disk, with a random key, durable but for its name. Raises FileExistsError, NoSpace and OSError."""
    payload = disk_uuid.bytes + node_key.wrap(secrets.token_bytes(KEY_SIZE), disk_uuid)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        write_wholly(calls, fd, seal(_KEY_MAGIC, _KEY_VERSION, payload), 0, str(path))
        calls.fdatasync(fd)
    finally:
        os.close(fd)


def read_key(path: Path, disk_uuid: uuid.UUID, node_key: NodeKey | None, calls: Calls) -> bytes:
    """Return the key of the disk with `disk_uuid`.

    Raises StateDamaged, saying which it is, if the file is missing, damaged or of another disk, if there is no node key, or if it is
    another than the one the disk was made with; OSError.
    """
    if node_key is None:
        raise StateDamaged(f"{path}: the disk is encrypted, and no node key is given: mount with the node key that the disk was made with")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise StateDamaged(f"{path}: the key of an encrypted disk is missing; restore it from a backup, or delete the disk") from error
    try:
        record = bytearray(_KEY_FILE_SIZE)
        got = read_wholly(calls, fd, record, 0)
    finally:
        os.close(fd)
    payload = unseal(_KEY_MAGIC, _KEY_VERSION, bytes(record[:got]), str(path))
    if payload[:_UUID_SIZE] != disk_uuid.bytes:
        raise StateDamaged(f"{path}: this is the key of another disk, not of {disk_uuid}: files of two disks are mixed; restore them together")
    key = node_key.unwrap(payload[_UUID_SIZE:], disk_uuid, str(path))
    if len(key) != KEY_SIZE:
        raise StateDamaged(f"{path}: a key has {KEY_SIZE} bytes, not {len(key)}")
    return key


def shred_keys(paths: Iterable[Path], calls: Calls = CALLS) -> None:
    """Destroy those of `paths` that are key files: overwrite each in place, make that durable, and only then remove it, durably.

    What is not called *.key, is no regular file or is not there is left alone. Raises NoSpace and OSError; the rest of the keys are as
    they were then, and calling it again goes on.
    """
    for path in paths:
        if path.suffix != KEY_SUFFIX:
            continue
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(found.st_mode):
            _shred(path, found.st_size, calls)


def _shred(path: Path, size: int, calls: Calls) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        write_wholly(calls, fd, bytes(max(size, _KEY_FILE_SIZE)), 0, str(path))
        calls.fdatasync(fd)
    finally:
        os.close(fd)
    path.unlink()
    sync_directory(path.parent)

"""This module is `imagefs image save`: it copies an image's bytes as stored into a file, verified, and whole or not at all."""

import contextlib
import errno
import functools
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from imagefs.cli.invocation import PATH, Invocation, pass_invocation
from imagefs.cli.progress import transfer
from imagefs.cli.rights import rights_of_process
from imagefs.cli.stored_image import find_stored
from imagefs.errors import ImageRefused, InvalidInput, NoSpace, NotFound
from imagefs.fetch.backoff import RetryPolicy
from imagefs.fetch.digests import UnitDigests
from imagefs.fetch.stored import StoredObject
from imagefs.store.configured import open_configured
from imagefs.store.protocol import ImageStore, Progress
from imagefs.store.record import ImageRecord
from imagefs.units import UNIT

_ZERO_UNIT: Final = bytes(UNIT)


@click.command("save", short_help="Copy an image's bytes to a file.")
@click.argument("image")
@click.option("--file", "target", required=True, metavar="FILE", type=PATH, help="The file to write; one that is there is replaced.")
@pass_invocation
def image_save(invocation: Invocation, image: str, target: Path) -> None:
    """Copy the bytes of IMAGE, an id or a name, from the configured store to FILE, if you may download it.

    The bytes are those that were stored: a qcow2 stays a qcow2. They are verified on the way where the store has digests, and
    FILE appears when it is complete.
    """
    with _explained(target):
        _check_target(target)
    rights = rights_of_process(invocation.config)
    store = open_configured(invocation.config.store)
    store.check()
    record = find_stored(store, image, rights)
    rights.access.check_download(rights.identity, record)
    if record.status not in ("active", "deactivated"):
        raise ImageRefused(f"image save {image}: its status is {record.status}: it has no bytes yet")
    source = open_object(store, record)
    with _explained(target), transfer(f"Saving {image}", source.size) as advance:
        save(source, target, advance)


def open_object(store: ImageStore, record: ImageRecord) -> StoredObject:
    """Return the image's bytes, verified by its digests if it has any. Raises StoreError, NotFound."""
    digests = None
    if record.tree is not None:
        digests = UnitDigests(record.tree, record.size or 0, functools.partial(store.digest_page, record), record.id)
    return StoredObject(store.data(record), digests, RetryPolicy(), name=record.id)


def save(source: StoredObject, target: Path, advance: Progress) -> None:
    """Write the object to `target` by way of a temporary file beside it, leaving holes for zeros. Raises StoreError, OSError."""
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.truncate(source.size)
            with contextlib.closing(source.stream_units(0, source.units)) as units:
                for number, body in enumerate(units):
                    if body != _ZERO_UNIT[: len(body)]:
                        _write(descriptor, number * UNIT, body)
                    advance(len(body))
            os.fsync(descriptor)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write(descriptor: int, offset: int, body: bytes) -> None:
    view = memoryview(body)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset, view = offset + written, view[written:]


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turn an OSError into the error that says what was being written: the temporary file's name tells a user nothing."""
    try:
        yield
    except OSError as error:
        kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else InvalidInput
        raise kind(f"image save: {target} cannot be written: {error.strerror}: name another file, or mend that") from error


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise InvalidInput(f"image save: {target} is a directory: name a file in it")
    if target.exists() and not target.is_file():
        raise InvalidInput(f"image save: {target} is not a regular file, and would be replaced by one")
    if not target.parent.is_dir():
        raise NotFound(f"image save: there is no directory {target.parent}")

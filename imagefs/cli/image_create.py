"""This module is `imagefs image create`: it inspects a file, and stores it as a new image if it is safe and sound."""

import contextlib
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import msgspec

from imagefs.cli.errors import print_line
from imagefs.cli.image import as_fields
from imagefs.cli.invocation import PATH, Invocation, pass_invocation
from imagefs.cli.mountpoint import refresh_mounts
from imagefs.cli.output import Shape, check_columns, output_options, print_object
from imagefs.cli.progress import transfer
from imagefs.errors import ImageRefused, InvalidInput, NotFound
from imagefs.image.inspect import HEAD, Inspection, inspect
from imagefs.image.qemu_img import check
from imagefs.properties.view import CORE, RESERVED_PREFIX, shown
from imagefs.store.configured import open_configured
from imagefs.store.record import CONTAINER_FORMATS, DISK_FORMATS, VISIBILITIES, ImageRecord, parse_image_id

TEXT_LIMIT: Final = 255
"""Characters of an image's name, of a property's name and of a tag, as in Glance's database."""
PROPERTY_LIMIT: Final = 128
TAG_LIMIT: Final = 128
"""Glance's default quotas."""
RESERVED: Final = frozenset({*CORE, "location", "locations", "deleted", "deleted_at", "direct_url", "self", "file", "schema"})
"""Names that Glance gives a meaning of their own; they cannot be properties."""
RESERVED_PREFIXES: Final = ("os_glance", RESERVED_PREFIX)


@click.command("create", short_help="Store a file as a new image.")
@click.argument("name")
@click.option("--file", "source", required=True, metavar="FILE", type=PATH, help="The file that holds the image.")
@click.option("--disk-format", type=click.Choice(DISK_FORMATS), help="The format; by default what the content is. Both must agree.")
@click.option("--container-format", type=click.Choice(CONTAINER_FORMATS), default="bare", show_default=True, help="The container format.")
@click.option("--id", "image_id", metavar="UUID", help="The id; by default a new one.")
@click.option("--property", "properties", multiple=True, metavar="KEY=VALUE", help="Set a property; may be repeated.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Set a tag; may be repeated.")
@click.option("--min-disk", type=click.IntRange(0, 2**31 - 1), default=0, metavar="GIB", help="The smallest disk that the image boots from, in GiB.")
@click.option("--min-ram", type=click.IntRange(0, 2**31 - 1), default=0, metavar="MIB", help="The least memory that the image boots with, in MiB.")
@click.option("--visibility", type=click.Choice(VISIBILITIES), help="Who sees the image; by default shared: its owner and its members.")
@click.option("--public", is_flag=True, help="The same as --visibility public.")
@click.option("--private", is_flag=True, help="The same as --visibility private.")
@click.option("--community", is_flag=True, help="The same as --visibility community.")
@click.option("--shared", is_flag=True, help="The same as --visibility shared.")
@click.option("--protected/--unprotected", default=False, help="Whether the image is protected from being deleted.")
@click.option("--owner", metavar="PROJECT", help="The project that owns the image.")
@click.option("--os-hidden", is_flag=True, help="Leave the image out of lists; it still opens by its id.")
@output_options
@pass_invocation
def image_create(invocation: Invocation, /, shape: Shape, name: str, source: Path, **wanted: Any) -> None:  # noqa: ANN401 -- what click read
    """Store FILE as a new image NAME of the configured store.

    The file is inspected first: an image that names other files, that is not what --disk-format says, or that qemu-img finds
    unsound is refused.
    """
    record = new_record(name, wanted)
    check_columns(shape, [*CORE, *record.properties])
    store = open_configured(invocation.config.store)
    store.check()
    with _opened(source) as (file, size):
        inspection = _inspected(file, source, size, wanted["disk_format"])
        record = msgspec.structs.replace(record, disk_format=inspection.format, virtual_size=inspection.virtual_size)
        before = _stamp(file)
        with transfer(f"Storing {name}", size) as advance:
            stored = store.create(record, file, size, advance)
        if _stamp(file) != before:
            store.delete(stored.record.id)
            raise InvalidInput(f"image create {name}: {source} was changed while it was read, so the image was removed again: stop its writer first")
    refresh_mounts()
    if inspection.unreadable:
        print_line(f"note: the new image cannot be read in raw/: {inspection.unreadable}")
    print_object(as_fields(shown(stored.record)), shape, f"image {name}", CORE)


def new_record(name: str, wanted: dict[str, Any]) -> ImageRecord:
    """Return the record that the options ask for, without what only the file can tell. Raises InvalidInput, click.UsageError."""
    chosen = {flag for flag in VISIBILITIES if wanted[flag]} | ({wanted["visibility"]} - {None})
    if len(chosen) > 1:
        raise click.UsageError(f"an image cannot be {' and '.join(sorted(chosen))} at once", click.get_current_context(silent=True))
    image_id = parse_image_id(wanted["image_id"]) if wanted["image_id"] is not None else str(uuid.uuid4())
    tags = tuple(dict.fromkeys(_text(tag, "a tag") for tag in wanted["tags"]))
    if len(tags) > TAG_LIMIT:
        raise InvalidInput(f"image create {name}: {len(tags)} tags are more than {TAG_LIMIT}")
    return ImageRecord(
        id=image_id,
        created_at="",  # the store knows the time
        updated_at="",
        name=_text(name, "an image's name"),
        visibility=next(iter(chosen), "shared"),
        owner=None if wanted["owner"] is None else _text(wanted["owner"], "a project"),
        container_format=wanted["container_format"],
        min_disk=wanted["min_disk"],
        min_ram=wanted["min_ram"],
        protected=wanted["protected"],
        os_hidden=wanted["os_hidden"],
        tags=tags,
        properties=parse_properties(wanted["properties"]),
    )


def parse_properties(assignments: Iterable[str]) -> dict[str, str]:
    """Return the properties of KEY=VALUE texts; the last one of a key counts. Raises InvalidInput."""
    properties: dict[str, str] = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise InvalidInput(f"--property '{assignment}': write KEY=VALUE")
        if key in RESERVED or key.startswith(RESERVED_PREFIXES):
            raise InvalidInput(f"--property '{assignment}': '{key}' cannot be a property: Glance or imagefs gives it a meaning of its own")
        if not _is_utf8(value):
            raise InvalidInput(f"--property '{key}': the value is not UTF-8")
        properties[_text(key, "a property's name")] = value
    if len(properties) > PROPERTY_LIMIT:
        raise InvalidInput(f"{len(properties)} properties are more than {PROPERTY_LIMIT}")
    return properties


def _text(text: str, what: str) -> str:
    if not text or len(text) > TEXT_LIMIT or not _is_utf8(text):
        raise InvalidInput(f"'{text[:40]}' cannot be {what}: it has 1 to {TEXT_LIMIT} characters of UTF-8")
    return text


def _is_utf8(text: str) -> bool:
    """Tell whether an argument of the command line was UTF-8: bytes that are not become surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open the image's file and tell its size. Raises NotFound, InvalidInput, OSError."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a fifo must not make us wait
    except FileNotFoundError:
        raise NotFound(f"image create: there is no file {source}") from None
    except OSError as error:
        raise InvalidInput(f"image create: {source} cannot be opened: {error.strerror}") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size == 0:
        os.close(descriptor)
        raise InvalidInput(f"image create: {source} is {'empty' if stat.S_ISREG(found.st_mode) else 'not a regular file'}")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        yield file, found.st_size


def _inspected(file: BinaryIO, source: Path, size: int, declared: str | None) -> Inspection:
    """Return what the file is. Raises ImageRefused."""
    head = os.pread(file.fileno(), min(HEAD, size), 0)
    inspection = inspect(head, size, declared, str(source))
    if inspection.format == "qcow2":
        check(source, "qcow2", str(source))
    if declared is not None and inspection.format != declared:
        raise ImageRefused(f"image {source}: declared as {declared}, but its content is {inspection.format}: leave --disk-format out")
    return inspection


def _stamp(file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns

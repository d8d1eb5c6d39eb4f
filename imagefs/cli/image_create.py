"""This module is `imagefs image create`: it inspects a file, and stores it as a new image if it is safe and sound."""

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import msgspec

from imagefs.cli.errors import print_line
from imagefs.cli.image_properties import parse_properties, parse_tags
from imagefs.cli.image_show import as_fields
from imagefs.cli.invocation import PATH, Invocation, pass_invocation
from imagefs.cli.mountpoint import refresh_mounts
from imagefs.cli.output import Shape, check_columns, output_options, print_object
from imagefs.cli.progress import transfer
from imagefs.cli.rights import rights_of_process
from imagefs.cli.visibility import chosen_visibility, visibility_options
from imagefs.errors import ImageRefused, InvalidInput, NotFound
from imagefs.image.inspect import HEAD, Inspection, inspect
from imagefs.image.qemu_img import check
from imagefs.properties.core import CORE, NUMBER_LIMIT, check_property_quota, check_tag_quota, check_text
from imagefs.properties.view import shown
from imagefs.store.configured import open_configured
from imagefs.store.record import CONTAINER_FORMATS, DISK_FORMATS, ImageRecord, parse_image_id

_NUMBER: Final = click.IntRange(0, NUMBER_LIMIT)


@click.command("create", short_help="Store a file as a new image.")
@click.argument("name")
@click.option("--file", "source", required=True, metavar="FILE", type=PATH, help="The file that holds the image.")
@click.option("--disk-format", type=click.Choice(DISK_FORMATS), help="The format; by default what the content is. Both must agree.")
@click.option("--container-format", type=click.Choice(CONTAINER_FORMATS), default="bare", show_default=True, help="The container format.")
@click.option("--id", "image_id", metavar="UUID", help="The id; by default a new one.")
@click.option("--property", "properties", multiple=True, metavar="KEY=VALUE", help="Set a property; may be repeated.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Set a tag; may be repeated.")
@click.option("--min-disk", type=_NUMBER, default=0, metavar="GIB", help="The smallest disk that the image boots from, in GiB.")
@click.option("--min-ram", type=_NUMBER, default=0, metavar="MIB", help="The least memory that the image boots with, in MiB.")
@visibility_options("Who sees the image; by default shared: its owner and its members.")
@click.option("--protected/--unprotected", default=False, help="Whether the image is protected from being deleted.")
@click.option("--owner", metavar="PROJECT", help="The project that owns the image; by default yours.")
@click.option("--os-hidden", is_flag=True, help="Leave the image out of lists; it still opens by its id.")
@output_options
@pass_invocation
def image_create(invocation: Invocation, /, shape: Shape, name: str, source: Path, **wanted: Any) -> None:  # noqa: ANN401 -- what click read
    """Store FILE as a new image NAME of the configured store.

    The file is inspected first: an image that names other files, that is not what --disk-format says, or that qemu-img finds
    unsound is refused. So is what the mount's rules would not let you create.
    """
    record = new_record(name, wanted)
    rights = rights_of_process(invocation.config)
    if record.owner is None:
        record = msgspec.structs.replace(record, owner=rights.identity.project_id)
    rights.check_create(record)
    check_columns(shape, [*CORE, *rights.access.readable(rights.identity, record)])
    store = open_configured(invocation.config.store)
    store.check()
    with _opened(source) as (file, size):
        inspection = _inspected(file, source, size, wanted["disk_format"])
        record = msgspec.structs.replace(record, disk_format=inspection.format, virtual_size=inspection.virtual_size)
        before = _stamp(file)
        with transfer(f"Storing {name}", size) as advance:
            stored = store.create(record, lambda: (file, size), advance)
        if _stamp(file) != before:
            store.delete(stored.record.id)
            raise InvalidInput(f"image create {name}: {source} was changed while it was read, so the image was removed again: stop its writer first")
    refresh_mounts()
    if inspection.unreadable:
        print_line(f"note: the new image cannot be read in raw/: {inspection.unreadable}")
    readable = rights.access.readable(rights.identity, stored.record)
    print_object(as_fields(shown(stored.record, readable)), shape, f"image {name}", CORE)


def new_record(name: str, wanted: dict[str, Any]) -> ImageRecord:
    """Return the record that the options ask for, without what only the file can tell. Raises InvalidInput, click.UsageError."""
    visibility = chosen_visibility(wanted)
    image_id = parse_image_id(wanted["image_id"]) if wanted["image_id"] is not None else str(uuid.uuid4())
    tags, properties = parse_tags(wanted["tags"]), parse_properties(wanted["properties"])
    check_tag_quota(tags, f"image create {name}")
    check_property_quota(properties, f"image create {name}")
    return ImageRecord(
        id=image_id,
        created_at="",  # the store knows the time
        updated_at="",
        name=check_text(name, "an image's name"),
        visibility=visibility or "shared",
        owner=None if wanted["owner"] is None else check_text(wanted["owner"], "a project"),
        container_format=wanted["container_format"],
        min_disk=wanted["min_disk"],
        min_ram=wanted["min_ram"],
        protected=wanted["protected"],
        os_hidden=wanted["os_hidden"],
        tags=tags,
        properties=properties,
    )


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

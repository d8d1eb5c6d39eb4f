"""This module is `imagefs image list` and `image show`: what a mount shows of its images."""

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click

from imagefs.cli.errors import print_line
from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.mountpoint import explained, find_mount, names_in, read_attribute, read_attributes
from imagefs.cli.output import Shape, output_options, print_list, print_object
from imagefs.errors import ImagefsError, InvalidInput, NotFound
from imagefs.properties.view import CORE, shown
from imagefs.store.configured import open_configured

COLUMNS: Final = ("ID", "Name", "Status", "Server")
_TYPED: Final[Mapping[str, Callable[[str], object]]] = {
    **dict.fromkeys(("size", "virtual_size", "min_disk", "min_ram"), int),
    **dict.fromkeys(("protected", "os_hidden"), lambda text: text == "true"),
    "tags": json.loads,
}


@click.command("list", short_help="List the images of the mount.")
@output_options
@pass_invocation
def image_list(invocation: Invocation, shape: Shape) -> None:
    """List the images of the mount. Server is the instance that a snapshot was made of."""
    mount = find_mount(invocation)
    with explained("image list", mount):
        rows = [row for image_id in names_in(mount / "images") if (row := _row(mount, image_id)) is not None]
    print_list(COLUMNS, sorted(rows, key=lambda row: (row[1] or "", row[0] or "")), shape)


@click.command("show", short_help="Show an image's attributes and properties.")
@click.argument("image")
@output_options
@pass_invocation
def image_show(invocation: Invocation, image: str, shape: Shape) -> None:
    """Show all attributes and properties of IMAGE, an id or a name."""
    mount = find_mount(invocation)
    with explained(f"image show {image}", mount):
        image_id = find_image(mount, image)
        path = mount / "images" / image_id
        values = read_attributes(path)
        omitted = read_attribute(path, "imagefs.omitted")
    if omitted is not None:
        values |= _from_store(invocation, image_id, omitted)
    print_object(as_fields(values), shape, f"image {image}", CORE)


def find_image(mount: Path, wanted: str) -> str:
    """Return the id of the image that a user means by an id, a name, or a file name of names/.

    Raises NotFound, InvalidInput if several have the name, OSError.
    """
    image_id = as_image_id(wanted)
    if image_id is not None and (mount / "images" / image_id).exists():
        return image_id
    image_id = _linked(mount, wanted)
    if image_id is not None:
        return image_id
    found = [image_id for image_id in sorted(names_in(mount / "images")) if _name(mount, image_id) == wanted]
    return only_one(found, wanted)


def as_image_id(text: str) -> str | None:
    """Return the id in its canonical form if `text` is a UUID."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


def only_one(found: list[str], wanted: str) -> str:
    """Return the one image that has the wanted name. Raises NotFound, InvalidInput naming all of several."""
    if not found:
        raise NotFound(f"there is no image with the id or name '{wanted}': see imagefs image list")
    if len(found) > 1:
        raise InvalidInput(f"{len(found)} images are named '{wanted}': give an id: {', '.join(found)}")
    return found[0]


def as_fields(values: Mapping[str, str]) -> dict[str, object]:
    """Return attributes in Glance's order and with its types: numbers, booleans and tags; then properties by name."""
    names = [name for name in CORE if name in values] + sorted(name for name in values if name not in CORE)
    return {name: _typed(name, values[name]) for name in names}


def _typed(name: str, text: str) -> object:
    try:
        return _TYPED.get(name, str)(text)
    except ValueError:
        return text


def _row(mount: Path, image_id: str) -> tuple[str | None, ...] | None:
    """Return a line of the list; None for an image that was deleted meanwhile."""
    path = mount / "images" / image_id
    try:
        return (image_id, *(read_attribute(path, name) for name in ("name", "status", "instance_uuid")))
    except FileNotFoundError:
        return None


def _name(mount: Path, image_id: str) -> str | None:
    try:
        return read_attribute(mount / "images" / image_id, "name")
    except FileNotFoundError:
        return None


def _linked(mount: Path, wanted: str) -> str | None:
    """Return the id that names/ has for `wanted`; None if it has none, or if the name is one of several images."""
    if "/" in wanted or wanted in {"", ".", ".."}:
        return None
    names = mount / "names"
    try:
        image_id = (names / wanted).readlink().name
    except OSError:
        return None
    if _name(mount, image_id) == wanted and os.path.lexists(names / f"{wanted}@{image_id[:8]}"):
        return None
    return image_id


def _from_store(invocation: Invocation, image_id: str, omitted: str) -> dict[str, str]:
    """Return all attributes from the store itself: some have names or values that cannot be extended attributes."""
    try:
        return shown(open_configured(invocation.config.store).find(image_id).record)
    except ImagefsError as error:
        print_line(f"image show {image_id}: {omitted} properties cannot be shown as extended attributes, and the store did not tell them: {error}")
        return {}

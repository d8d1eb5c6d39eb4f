"""This module is `imagefs image show`: all that a mount shows the caller of one image."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click

from imagefs.cli.errors import print_line
from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.listing import LISTED, MEMBER_STATUS, find_image, image_path, read_lines
from imagefs.cli.mountpoint import explained, find_mount, read_attribute, read_attributes
from imagefs.cli.output import Shape, output_options, print_object
from imagefs.properties.core import CORE

_TYPED: Final[Mapping[str, Callable[[str], object]]] = {
    **dict.fromkeys(("size", "virtual_size", "min_disk", "min_ram"), int),
    **dict.fromkeys(("protected", "os_hidden"), lambda text: text == "true"),
    "tags": json.loads,
}


@click.command("show", short_help="Show an image's attributes and properties.")
@click.argument("image")
@output_options
@pass_invocation
def image_show(invocation: Invocation, image: str, shape: Shape) -> None:
    """Show all attributes and properties of IMAGE, an id or a name, that you may read."""
    mount = find_mount(invocation)
    with explained(f"image show {image}", mount):
        image_id = find_image(mount, image)
        fields = read_fields(mount, image_id)
    print_object(fields, shape, f"image {image}", CORE)


def read_fields(mount: Path, image_id: str) -> dict[str, object]:
    """Return what the caller may read of an image. Raises OSError."""
    path = image_path(mount, image_id)
    fields = as_fields(read_attributes(path))
    omitted = read_attribute(path, "imagefs.omitted")
    if omitted is None:
        return fields
    try:
        line = next((line for line in read_lines(mount) if line.get("id") == image_id), {})
    except PermissionError:
        print_line(f"image show {image_id}: {omitted} properties are too long for extended attributes, and lists of images are not for you to see")
        return fields
    return in_order({name: value for name, value in line.items() if name not in {LISTED, MEMBER_STATUS}} | fields)


def as_fields(values: Mapping[str, str]) -> dict[str, object]:
    """Return attributes in Glance's order and with its types: numbers, booleans and tags; then properties by name."""
    return in_order({name: _typed(name, value) for name, value in values.items()})


def in_order(fields: Mapping[str, object]) -> dict[str, object]:
    """Return attributes in Glance's order, then properties by name."""
    return {name: fields[name] for name in (*(name for name in CORE if name in fields), *sorted(name for name in fields if name not in CORE))}


def _typed(name: str, text: str) -> object:
    try:
        return _TYPED.get(name, str)(text)
    except ValueError:
        return text

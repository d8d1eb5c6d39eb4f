"""This module is `imagefs image list`: the images that a mount shows the caller, chosen, sorted and cut."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from imagefs.cli.image_properties import split_assignment
from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.listing import LISTED, MEMBER_STATUS, Line, as_image_id, is_shown, only_one, read_lines
from imagefs.cli.mountpoint import explained, find_mount
from imagefs.cli.output import Shape, output_options, print_list
from imagefs.cli.visibility import chosen_visibility, visibility_options
from imagefs.errors import Denied
from imagefs.properties.core import CORE

COLUMNS: Final[Mapping[str, str]] = {"ID": "id", "Name": "name", "Status": "status", "Server": "instance_uuid"}
LONG_COLUMNS: Final[Mapping[str, str]] = {
    "Disk Format": "disk_format", "Container Format": "container_format", "Size": "size", "Checksum": "checksum", "Visibility": "visibility",
    "Protected": "protected", "Project": "owner", "Tags": "tags",
}  # fmt: skip
"""What --long adds."""
SORT_KEYS: Final = tuple(name for name in CORE if name != "tags")
MEMBER_STATUSES: Final = ("accepted", "pending", "rejected", "all")


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """Which images to list; None and nothing mean any."""

    visibility: str | None = None
    member_status: str = "accepted"
    hidden: bool = False
    attributes: tuple[tuple[str, str], ...] = ()
    """Names and values of attributes and properties, as text."""
    tags: frozenset[str] = frozenset()

    def takes(self, line: Line) -> bool:
        """Tell whether the image is to be listed."""
        return (
            bool(line.get("os_hidden")) == self.hidden
            and self._takes_visibility(line)
            and all(_as_text(line.get(name)) == value for name, value in self.attributes)
            and self.tags <= _tags(line)
        )

    def _takes_visibility(self, line: Line) -> bool:
        """Tell it by visibility and membership, as Glance does: unless asked for, no foreign community image and no share that was not accepted."""
        visibility, membership = line.get("visibility"), line.get(MEMBER_STATUS)
        is_listed = line.get(LISTED) is True
        if visibility == "shared" and membership is not None and self.member_status not in {membership, "all"}:
            return is_listed and self.member_status == "accepted"
        if self.visibility is not None:
            return self.visibility in {visibility, "all"}
        return is_listed or (visibility == "shared" and membership is not None)


@click.command("list", short_help="List the images of the mount.")
@visibility_options("List images of this visibility; by default all but those of others' community, as Glance does.", "all")
@click.option("--property", "properties", multiple=True, metavar="KEY=VALUE", help="List images with this property; may be repeated.")
@click.option("--name", metavar="NAME", help="List images of this name.")
@click.option("--status", metavar="STATUS", help="List images in this status.")
@click.option(
    "--member-status",
    type=click.Choice(MEMBER_STATUSES),
    default="accepted",
    show_default=True,
    help="List images shared with your project whose membership has this status.",
)
@click.option("--project", metavar="PROJECT", help="List images that this project owns.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="List images with this tag; may be repeated.")
@click.option("--hidden", is_flag=True, help="List the hidden images, and only them.")
@click.option("--long", "is_long", is_flag=True, help="Show more columns.")
@click.option("--sort", default="name:asc", show_default=True, metavar="KEY[:asc|desc][,...]", help="Sort by these attributes, the first one first.")
@click.option("--limit", type=click.IntRange(0), metavar="N", help="List this many images at most.")
@click.option("--marker", metavar="IMAGE", help="List only what comes after this image, an id or a name: the last one of the page before.")
@output_options
@pass_invocation
def image_list(invocation: Invocation, /, shape: Shape, is_long: bool, sort: str, limit: int | None, marker: str | None, **wanted: Any) -> None:  # noqa: ANN401 -- what click read
    """List the images of the mount that you may see. Server is the instance that a snapshot was made of."""
    chosen, order = make_filter(wanted), parse_sort(sort)
    mount = find_mount(invocation)
    with explained("image list", mount):
        try:
            lines = sort_lines(read_lines(mount), order)
        except PermissionError:
            why = "the policy get_images does not let you list images"
            raise Denied(f"image list: {why}: name an image by its id, or ask an administrator for a role that may") from None
    if marker is not None:
        lines = after(lines, marker)
    lines = [line for line in lines if chosen.takes(line)][:limit]
    columns = {**COLUMNS, **LONG_COLUMNS} if is_long or _asks_for_more(shape) else COLUMNS
    print_list(list(columns), [[line.get(name) for name in columns.values()] for line in lines], shape)


def make_filter(wanted: Mapping[str, Any]) -> Filter:
    """Return what the options ask for. Raises InvalidInput, click.UsageError."""
    attributes = [split_assignment(assignment) for assignment in wanted["properties"]]
    attributes += [
        (name, wanted[option]) for option, name in (("name", "name"), ("status", "status"), ("project", "owner")) if wanted[option] is not None
    ]
    return Filter(chosen_visibility(wanted), wanted["member_status"], wanted["hidden"], tuple(attributes), frozenset(wanted["tags"]))


def parse_sort(text: str) -> list[tuple[str, bool]]:
    """Return the attributes to sort by, each with whether it is the other way round. Raises click.BadParameter."""
    order = []
    for part in text.split(","):
        key, _, direction = part.strip().partition(":")
        if key not in SORT_KEYS:
            raise click.BadParameter(f"'{key}' is nothing to sort by: choose from {', '.join(SORT_KEYS)}", param_hint="--sort")
        if direction not in {"", "asc", "desc"}:
            raise click.BadParameter(f"'{direction}' is no direction: write {key}:asc or {key}:desc", param_hint="--sort")
        order.append((key, direction == "desc"))
    return order


def sort_lines(lines: Sequence[Line], order: Sequence[tuple[str, bool]]) -> list[Line]:
    """Return the lines in order; images that are alike in all of it are sorted by id, and what an image lacks comes first."""
    found = sorted(lines, key=lambda line: str(line["id"]))
    for key, is_reverse in reversed(order):
        found.sort(key=lambda line: _rank(line.get(key)), reverse=is_reverse)
    return found


def after(lines: list[Line], marker: str) -> list[Line]:
    """Return the lines behind the image `marker`, which need not be one of those that are listed. Raises NotFound, InvalidInput."""
    image_id = as_image_id(marker)
    found = [position for position, line in enumerate(lines) if line["id"] == image_id]
    found = found or [position for position, line in enumerate(lines) if line.get("name") == marker]
    listed = [position for position in found if is_shown(lines[position])] or found
    wanted = only_one([str(lines[position]["id"]) for position in listed], marker)
    return next(lines[position + 1 :] for position in listed if lines[position]["id"] == wanted)


def _asks_for_more(shape: Shape) -> bool:
    return bool({name.lower() for name in LONG_COLUMNS} & {wanted.lower() for wanted in shape.columns})


def _rank(value: object) -> tuple[bool, float, str]:
    """Return what sorts values of one attribute: numbers by size, texts by their characters."""
    return (value is not None, value, "") if isinstance(value, int | float) else (value is not None, 0, str(value))


def _tags(line: Line) -> frozenset[object]:
    tags = line.get("tags")
    return frozenset(tags) if isinstance(tags, list) else frozenset()


def _as_text(value: object) -> str | None:
    """Return a value as an extended attribute has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else None

"""This module is `imagefs image set` and `image unset`: attributes, properties, tags and memberships of an image, through a mount."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from imagefs.cli.image_change import Change, apply, tags_change
from imagefs.cli.image_members import membership
from imagefs.cli.image_properties import check_value, parse_properties, parse_tags
from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.listing import find_image, image_path, read_tags
from imagefs.cli.mountpoint import explained, find_mount
from imagefs.cli.visibility import chosen_visibility, visibility_options
from imagefs.errors import NoAttribute
from imagefs.properties.core import NUMBER_LIMIT, check_text

_PROPERTIES: Final[Mapping[str, str]] = {
    "architecture": "architecture", "os_distro": "os_distro", "os_version": "os_version", "kernel_id": "kernel_id", "ramdisk_id": "ramdisk_id",
    "instance_id": "instance_uuid",
}  # fmt: skip
"""The properties that have options of their own, by the option."""
_SWITCHES: Final[Mapping[str, tuple[str, str]]] = {
    "protected": ("protected", "true"), "unprotected": ("protected", "false"), "hidden": ("os_hidden", "true"), "unhidden": ("os_hidden", "false"),
}  # fmt: skip
"""Options without a value, each with the attribute and the value that it sets."""
_ACTIONS: Final[Mapping[str, str]] = {"activate": "imagefs.reactivate", "deactivate": "imagefs.deactivate"}
_MEMBERSHIPS: Final[Mapping[str, str]] = {"accept": "accepted", "reject": "rejected", "pending": "pending"}
_EXCLUSIVE: Final = (("protected", "unprotected"), ("hidden", "unhidden"), tuple(_ACTIONS), tuple(_MEMBERSHIPS))
_NUMBER: Final = click.IntRange(0, NUMBER_LIMIT)


@click.command("set", short_help="Change an image.")
@click.argument("image")
@click.option("--name", metavar="NAME", help="The image's new name.")
@click.option("--min-disk", type=_NUMBER, metavar="GIB", help="The smallest disk that the image boots from, in GiB.")
@click.option("--min-ram", type=_NUMBER, metavar="MIB", help="The least memory that the image boots with, in MiB.")
@click.option("--protected", is_flag=True, help="Protect the image from being deleted.")
@click.option("--unprotected", is_flag=True, help="Let the image be deleted.")
@click.option("--hidden", is_flag=True, help="Leave the image out of lists; it still opens by its id.")
@click.option("--unhidden", is_flag=True, help="Show the image in lists.")
@click.option("--property", "properties", multiple=True, metavar="KEY=VALUE", help="Set a property; may be repeated.")
@click.option("--architecture", metavar="ARCHITECTURE", help="Set the property architecture.")
@click.option("--os-distro", metavar="DISTRIBUTION", help="Set the property os_distro.")
@click.option("--os-version", metavar="VERSION", help="Set the property os_version.")
@click.option("--kernel-id", metavar="IMAGE-ID", help="Set the property kernel_id.")
@click.option("--ramdisk-id", metavar="IMAGE-ID", help="Set the property ramdisk_id.")
@click.option("--instance-id", metavar="UUID", help="Set the property instance_uuid.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Add a tag; may be repeated.")
@click.option("--activate", is_flag=True, help="Let the image's bytes be read again.")
@click.option("--deactivate", is_flag=True, help="Let nobody but administrators read the image's bytes.")
@visibility_options("Who sees the image.")
@click.option("--project", metavar="PROJECT", help="The project that --accept, --reject or --pending is about.")
@click.option("--accept", is_flag=True, help="Accept the share of the image with PROJECT.")
@click.option("--reject", is_flag=True, help="Reject the share of the image with PROJECT.")
@click.option("--pending", is_flag=True, help="Make the share of the image with PROJECT undecided again.")
@pass_invocation
def image_set(invocation: Invocation, /, image: str, **wanted: Any) -> None:  # noqa: ANN401 -- what click read
    """Change IMAGE, an id or a name, as far as you may. Each change is made by itself, in the order of these options."""
    check_options(wanted)
    changes, tags, last = list(attribute_changes(wanted)), parse_tags(wanted["tags"]), list(last_changes(wanted))
    if not (changes or tags or last):
        raise _usage("nothing to change: give an option that says what")
    mount, what = find_mount(invocation), f"image set {image}"
    with explained(what, mount):
        image_id = find_image(mount, image)
        present = read_tags(image_path(mount, image_id)) if tags else ()
    if set(tags) - set(present):
        changes.append(tags_change(dict.fromkeys((*present, *tags))))
    apply(mount, image_id, what, changes + last)


@click.command("unset", short_help="Remove properties and tags of an image.")
@click.argument("image")
@click.option("--property", "properties", multiple=True, metavar="KEY", help="Remove a property; may be repeated.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Remove a tag; may be repeated.")
@pass_invocation
def image_unset(invocation: Invocation, image: str, properties: tuple[str, ...], tags: tuple[str, ...]) -> None:
    """Remove properties and tags of IMAGE, an id or a name, as far as you may. Each property is removed by itself."""
    if not properties and not tags:
        raise _usage("nothing to remove: give --property or --tag")
    changes = [Change(f"--property {key}", check_text(key, "a property's name"), None) for key in dict.fromkeys(properties)]
    mount, what = find_mount(invocation), f"image unset {image}"
    with explained(what, mount):
        image_id = find_image(mount, image)
        present = read_tags(image_path(mount, image_id)) if tags else ()
    missing = [tag for tag in tags if tag not in present]
    if missing:
        raise NoAttribute(f"{what}: --tag: the image has no tag {', '.join(map(repr, missing))}: nothing was changed")
    if tags:
        changes.append(tags_change(tag for tag in present if tag not in tags))
    apply(mount, image_id, what, changes)


def check_options(wanted: Mapping[str, Any]) -> None:
    """Raise click.UsageError for options that exclude or need each other."""
    for group in _EXCLUSIVE:
        given = [_spelled(option) for option in group if wanted[option]]
        if len(given) > 1:
            raise _usage(f"choose one of {' and '.join(given)}")
    decided = [_spelled(option) for option in _MEMBERSHIPS if wanted[option]]
    if decided and wanted["project"] is None:
        raise _usage(f"{decided[0]} needs --project: say which project's share it is")
    if wanted["project"] is not None and not decided:
        raise _usage("--project needs --accept, --reject or --pending")


def attribute_changes(wanted: Mapping[str, Any]) -> Iterator[Change]:
    """Yield what the options of `image set` ask for of attributes and properties. Raises InvalidInput, click.UsageError."""
    if wanted["name"] is not None:
        yield Change("--name", "name", check_text(wanted["name"], "an image's name"))
    for option in ("min_disk", "min_ram"):
        if wanted[option] is not None:
            yield Change(_spelled(option), option, str(wanted[option]))
    for option, (attribute, value) in _SWITCHES.items():
        if wanted[option]:
            yield Change(_spelled(option), attribute, value)
    properties = parse_properties(wanted["properties"])
    for key, value in properties.items():
        yield Change(f"--property {key}", key, value)
    for option, key in _PROPERTIES.items():
        if wanted[option] is not None and key in properties:
            raise _usage(f"{_spelled(option)} and --property {key} set the same: give one")
        if wanted[option] is not None:
            yield Change(_spelled(option), key, check_value(wanted[option], _spelled(option)))


def last_changes(wanted: Mapping[str, Any]) -> Iterator[Change]:
    """Yield the changes that come last: they may take the image out of the caller's hands. Raises InvalidInput, click.UsageError."""
    for option, attribute in _ACTIONS.items():
        if wanted[option]:
            yield Change(_spelled(option), attribute, "1")
    visibility = chosen_visibility(wanted)
    if visibility is not None:
        yield Change(f"--visibility {visibility}", "visibility", visibility)
    for option, status in _MEMBERSHIPS.items():
        if wanted[option]:
            yield membership(_spelled(option), wanted["project"], status)


def _spelled(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _usage(text: str) -> click.UsageError:
    return click.UsageError(text, click.get_current_context(silent=True))

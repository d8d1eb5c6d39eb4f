"""This module is `imagefs image add project`, `image remove project` and `image member list`: the projects that an image is shared with."""

import json
from pathlib import Path
from typing import Final

import click

from imagefs.cli.image_change import Change, apply
from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.listing import find_image, image_path
from imagefs.cli.mountpoint import explained, find_mount, read_attribute
from imagefs.cli.output import Shape, check_columns, output_options, print_list, print_object
from imagefs.errors import AlreadyExists, Denied, InvalidInput
from imagefs.properties.core import check_text

COLUMNS: Final = ("Image ID", "Member ID", "Status")
FIELDS: Final = ("image_id", "member_id", "status")


@click.command("project", short_help="Share an image with a project.")
@click.argument("image")
@click.argument("project")
@output_options
@pass_invocation
def image_add_project(invocation: Invocation, image: str, project: str, shape: Shape) -> None:
    """Share IMAGE, an id or a name, with PROJECT, and print the membership.

    The image's visibility must be shared. Those in PROJECT can use it at once by its id, and see it in lists once they have accepted it.
    """
    check_columns(shape, FIELDS)
    change = membership("", project, "pending")
    mount, what = find_mount(invocation), f"image add project {image} {project}"
    with explained(what, mount):
        image_id = find_image(mount, image)
        members = read_members(mount, image_id)
    if members is not None and project in members:
        raise AlreadyExists(f"{what}: the image is shared with that project already: the share is {members[project]}")
    apply(mount, image_id, what, [change])
    print_object(dict(zip(FIELDS, (image_id, project, "pending"), strict=True)), shape, "the membership")


@click.command("project", short_help="Take an image away from a project.")
@click.argument("image")
@click.argument("project")
@pass_invocation
def image_remove_project(invocation: Invocation, image: str, project: str) -> None:
    """End the share of IMAGE, an id or a name, with PROJECT."""
    change = membership("", project, None)
    mount, what = find_mount(invocation), f"image remove project {image} {project}"
    with explained(what, mount):
        image_id = find_image(mount, image)
    apply(mount, image_id, what, [change])


@click.command("list", short_help="List the projects that an image is shared with.")
@click.argument("image")
@output_options
@pass_invocation
def image_member_list(invocation: Invocation, image: str, shape: Shape) -> None:
    """List the projects that IMAGE, an id or a name, is shared with, as far as you may see them: its owner sees all, a project itself."""
    check_columns(shape, COLUMNS)
    mount, what = find_mount(invocation), f"image member list {image}"
    with explained(what, mount):
        image_id = find_image(mount, image)
        members = read_members(mount, image_id)
        visibility = read_attribute(image_path(mount, image_id), "visibility")
    if members is None and visibility != "shared":
        raise InvalidInput(f"{what}: the image is {visibility}, and only shared images have members: make it so with imagefs image set --shared")
    if members is None:
        raise Denied(f"{what}: its members are not for you to see")
    print_list(COLUMNS, [(image_id, project, status) for project, status in sorted(members.items())], shape)


def membership(option: str, project: str, status: str | None) -> Change:
    """Return the change that gives a project's membership a status, or ends it; `option` is what asks for it. Raises InvalidInput."""
    return Change(option, f"imagefs.member.{check_text(project, 'a project')}", status)


def read_members(mount: Path, image_id: str) -> dict[str, str] | None:
    """Return the statuses of the memberships that the caller may see, by project; None if it may see none. Raises OSError."""
    text = read_attribute(image_path(mount, image_id), "imagefs.members")
    return None if text is None else {member["member_id"]: member["status"] for member in json.loads(text)}

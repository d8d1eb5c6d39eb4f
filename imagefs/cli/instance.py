"""This module is `imagefs instance`: instances made, shown and removed by plain file operations on a mount."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

import click

from imagefs.cli.errors import report
from imagefs.cli.instance_guest import instance_directory, missing, read_disks, read_progress, volume_name
from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.mountpoint import explained, find_mount, names_in, read_attribute, read_attributes, read_reason
from imagefs.cli.output import Shape, check_columns, output_options, print_list, print_object
from imagefs.errors import AlreadyExists, Busy, ImagefsError, InvalidInput, NotFound

COLUMNS: Final = ("ID", "Name", "Status", "Image", "Flavor", "Disks")
FIELDS: Final = (
    "id", "name", "status", "image_id", "flavor", "created_at", "disks", "volumes", "disk_format", "encrypted", "config_drive", "firmware_code",
    "secure_boot", "snapshot", "error",
)  # fmt: skip
"""What an instance is shown with; those that it has not are left out, error unless an operation on it failed."""
ATTRIBUTE_LIMIT: Final = 65536
"""Bytes of an extended attribute's value."""
_FORMATS: Final = ("none", "ext4", "xfs", "vfat")


@click.command("create", short_help="Make an instance with its disks.")
@click.argument("name")
@click.option("--image", required=True, metavar="IMAGE", help="The image that vda starts as: an id or a name.")
@click.option("--flavor", metavar="FLAVOR", help="The flavor; without one vda has the image's virtual size, and there is no vdb.")
@click.option("--ephemeral", type=click.IntRange(1), multiple=True, metavar="GIB", help="An ephemeral disk of that size; may be repeated.")
@click.option("--ephemeral-format", type=click.Choice(_FORMATS), help="The file system of ephemeral disks.")
@click.option("--encrypted/--no-encrypted", default=None, help="Encrypt what is written to the disks; by default as configured.")
@click.option("--disk-format", type=click.Choice(["raw", "qcow2"]), help="qcow2: vda is a local qcow2 file, which QEMU opens without the mount.")
@click.option("--user-data", type=click.File("rb"), metavar="FILE", help="Put FILE on a config drive as user data; - is standard input.")
@click.option("--meta-data", type=click.File("rb"), metavar="FILE", help="Put the JSON object in FILE on a config drive as meta data.")
@click.option("--config-drive", type=click.Choice(["cdrom", "disk"]), help="What the guest sees the config drive as.")
@output_options
@pass_invocation
def instance_create(
    invocation: Invocation,
    /,
    shape: Shape,
    name: str,
    image: str,
    flavor: str | None,
    ephemeral: tuple[int, ...],
    ephemeral_format: str | None,
    disk_format: str | None,
    user_data: BinaryIO | None,
    meta_data: BinaryIO | None,
    config_drive: str | None,
    *,
    encrypted: bool | None,
) -> None:
    """Make an instance NAME with its disks. Nothing is copied: it takes the same time whatever the image's size."""
    check_columns(shape, FIELDS)
    chosen: dict[str, str | bytes | None] = {
        "flavor": flavor,
        "ephemeral_format": ephemeral_format,
        "ephemeral": ",".join(map(str, ephemeral)) or None,
        "encrypted": str(encrypted).lower() if encrypted is not None else None,
        "disk_format": disk_format,
        "user_data": _content(user_data, "--user-data"),
        "meta_data": _content(meta_data, "--meta-data"),
        "config_drive": config_drive,
        "image": image,
    }
    mount = find_mount(invocation)
    make_instance(mount, name, {key: os.fsencode(value) for key, value in chosen.items() if value is not None})
    print_object(read_instance(mount, name), shape, f"instance {name}", FIELDS)


@click.command("list", short_help="List the instances of the mount.")
@output_options
@pass_invocation
def instance_list(invocation: Invocation, shape: Shape) -> None:
    """List the instances of the mount."""
    mount = find_mount(invocation)
    with explained("instance list", mount):
        rows = [row for name in sorted(names_in(mount / "instances")) if (row := _row(mount, name)) is not None]
    print_list(COLUMNS, rows, shape)


@click.command("show", short_help="Show an instance and its disks.")
@click.argument("name")
@output_options
@pass_invocation
def instance_show(invocation: Invocation, shape: Shape, name: str) -> None:
    """Show the instance NAME, and why the last operation on it failed, if one did."""
    print_object(read_instance(find_mount(invocation), name), shape, f"instance {name}", FIELDS)


@click.command("delete", short_help="Remove instances and purge their disks.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@pass_invocation
@click.pass_context
def instance_delete(context: click.Context, invocation: Invocation, names: tuple[str, ...]) -> None:
    """Remove each instance NAME and purge its disks. One with an open disk is in use and stays."""
    mount = find_mount(invocation)
    failed = False
    for name in names:
        try:
            remove_instance(mount, name)
        except ImagefsError as error:
            report(error)
            failed = True
    if failed:
        context.exit(1)


def make_instance(mount: Path, name: str, choices: Mapping[str, bytes]) -> None:
    """Make an instance with its disks, or nothing. `choices` are attributes in the order in which they are set: the image comes last.

    Raises ImagefsError with the mount's reason.
    """
    directory = instance_directory(mount, name)
    what = f"instance create {name}"
    with explained(what, mount, directory.parent):
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            raise AlreadyExists(f"{what}: there is an instance of that name: choose another, or delete it first") from None
    with _undone(directory), explained(what, mount, directory):
        for attribute, value in choices.items():
            os.setxattr(directory, f"user.{attribute}", value)


def _content(file: BinaryIO | None, option: str) -> bytes | None:
    """Return what is in a file that becomes an attribute. Raises InvalidInput if it is too long for one."""
    if file is None:
        return None
    content = file.read(ATTRIBUTE_LIMIT + 1)
    if len(content) > ATTRIBUTE_LIMIT:
        raise InvalidInput(f"{option}: {file.name} has more than {ATTRIBUTE_LIMIT} bytes: compress it, or let it fetch the rest")
    return content


@contextlib.contextmanager
def _undone(directory: Path) -> Iterator[None]:
    """Remove the directory again if something goes wrong, KeyboardInterrupt included."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            directory.rmdir()
        raise


def remove_instance(mount: Path, name: str) -> None:
    """Remove an instance. Raises NotFound, Busy, ImagefsError."""
    directory = instance_directory(mount, name)
    what = f"instance delete {name}"
    try:
        with explained(what, mount):
            directory.rmdir()
    except NotFound:
        raise missing(what) from None
    except Busy as error:
        raise Busy(f"{what}: {read_reason(directory) or 'it is in use: stop the guest first'}") from error


def read_instance(mount: Path, name: str) -> dict[str, object]:
    """Return an instance's attributes, and its disks with their sizes in bytes. Raises NotFound."""
    directory = instance_directory(mount, name)
    with explained(f"instance {name}", mount):
        try:
            attributes = read_attributes(directory)
            own = {key: read_attribute(directory, f"imagefs.{key}") for key in ("snapshot", "error")}
            disks = read_disks(directory)
        except FileNotFoundError:
            raise missing(f"instance {name}") from None
    fields: dict[str, object] = {
        "id": attributes.get("instance_uuid"),
        "name": name,
        "status": attributes.get("status"),
        "image_id": attributes.get("image_id"),
        "flavor": attributes.get("flavor"),
        "created_at": attributes.get("created_at"),
        "disks": {disk.name: disk.size for disk in disks},
    }
    volumes = {disk.name: volume_name(disk.path) for disk in disks if disk.kind == "volume" and disk.path is not None}
    if volumes:
        fields["volumes"] = volumes
    chosen = ("disk_format", "encrypted", "config_drive", "firmware_code", "secure_boot")
    fields |= {key: attributes[key] for key in chosen if key in attributes}
    if own["snapshot"] is not None:
        fields["snapshot"] = read_progress(own["snapshot"]).shown()
    return fields | ({} if own["error"] is None else {"error": own["error"]})


def _row(mount: Path, name: str) -> tuple[str | None, ...] | None:
    """Return a line of the list; None for an instance that was removed meanwhile. One of somebody else's has a name only."""
    directory = mount / "instances" / name
    try:
        instance_uuid, status, image_id, flavor = (read_attribute(directory, key) for key in ("instance_uuid", "status", "image_id", "flavor"))
        disks = read_disks(directory)
    except FileNotFoundError:
        return None
    except PermissionError:
        return (None, name, None, None, None, None)
    image = None
    if image_id is not None:
        with contextlib.suppress(OSError):
            image = read_attribute(mount / "images" / image_id, "name")
    shown = " ".join(disk.name if disk.kind != "volume" else f"{disk.name}={volume_name(disk.path or '')}" for disk in disks)
    return (instance_uuid, name, status, image or image_id, flavor, shown)

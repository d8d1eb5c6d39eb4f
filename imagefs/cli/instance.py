"""This module is `imagefs instance`: instances made, shown and removed by plain file operations on a mount."""

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from imagefs.cli.errors import print_line, report
from imagefs.cli.flavor import read_flavor
from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.mountpoint import check_part, explained, find_mount, names_in, read_attribute, read_attributes
from imagefs.cli.output import Shape, check_columns, output_options, print_list, print_object
from imagefs.cli.qemu import DEFAULT_RAM, Guest, choose_accelerator, command_line
from imagefs.errors import AlreadyExists, Busy, ImagefsError, InvalidInput, NotFound

COLUMNS: Final = ("ID", "Name", "Status", "Image", "Flavor")
FIELDS: Final = ("id", "name", "status", "image_id", "flavor", "created_at", "disks", "error")
"""What an instance is shown with; error only if an operation on it failed."""
_CPUINFO: Final = Path("/proc/cpuinfo")
_KVM: Final = Path("/dev/kvm")


@click.command("create", short_help="Make an instance with its disks.")
@click.argument("name")
@click.option("--image", required=True, metavar="IMAGE", help="The image that vda starts as: an id or a name.")
@click.option("--flavor", metavar="FLAVOR", help="The flavor; without one vda has the image's virtual size, and there is no vdb.")
@output_options
@pass_invocation
def instance_create(invocation: Invocation, /, shape: Shape, name: str, image: str, flavor: str | None) -> None:
    """Make an instance NAME with its disks. Nothing is copied: it takes the same time whatever the image's size."""
    check_columns(shape, FIELDS)
    mount = find_mount(invocation)
    make_instance(mount, name, image, flavor)
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


@click.command("qemu", short_help="Print a QEMU command that runs an instance.")
@click.argument("name")
@click.option("--accel", type=click.Choice(["kvm", "tcg"]), help="The accelerator; by default kvm if this host can use it and is not itself a guest.")
@pass_invocation
def instance_qemu(invocation: Invocation, name: str, accel: str | None) -> None:
    """Print a shell command that runs the instance NAME in QEMU.

    It is made from the flavor, the image's properties and the disks. The guest's serial console is on the terminal; Ctrl-A X ends it.
    """
    mount = find_mount(invocation)
    with explained(f"instance qemu {name}", mount):
        guest = read_guest(mount, name)
    click.echo(shlex.join(command_line(guest, accel or choose_accelerator(_CPUINFO.read_text(encoding="utf-8"), kvm_usable=_can_use_kvm()))))


def make_instance(mount: Path, name: str, image: str, flavor: str | None) -> None:
    """Make an instance with its disks, or nothing. Raises ImagefsError with the mount's reason."""
    directory = mount / "instances" / check_part(name, "an instance")
    what = f"instance create {name}"
    with explained(what, mount, directory.parent):
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            raise AlreadyExists(f"{what}: there is an instance of that name: choose another, or delete it first") from None
    with _undone(directory), explained(what, mount, directory):
        for attribute, value in (("user.flavor", flavor), ("user.image", image)):
            if value is not None:
                os.setxattr(directory, attribute, os.fsencode(value))


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
    directory = mount / "instances" / check_part(name, "an instance")
    what = f"instance delete {name}"
    try:
        with explained(what, mount):
            directory.rmdir()
    except NotFound:
        raise _missing(what) from None
    except Busy as error:
        raise Busy(f"{what}: it is in use: stop the guest first") from error


def read_instance(mount: Path, name: str) -> dict[str, object]:
    """Return an instance's attributes, and its disks with their sizes in bytes. Raises NotFound."""
    directory = mount / "instances" / check_part(name, "an instance")
    with explained(f"instance {name}", mount):
        try:
            attributes = read_attributes(directory)
            error = read_attribute(directory, "imagefs.error")
            disks = {disk: (directory / disk).stat().st_size for disk in sorted(names_in(directory))}
        except FileNotFoundError:
            raise _missing(f"instance {name}") from None
    fields: dict[str, object] = {
        "id": attributes.get("instance_uuid"),
        "name": name,
        "status": attributes.get("status"),
        "image_id": attributes.get("image_id"),
        "flavor": attributes.get("flavor"),
        "created_at": attributes.get("created_at"),
        "disks": disks,
    }
    return fields | ({} if error is None else {"error": error})


def read_guest(mount: Path, name: str) -> Guest:
    """Return what `command_line` needs of an instance. Raises NotFound, InvalidInput if it has no disks yet, OSError."""
    directory = mount / "instances" / check_part(name, "an instance")
    try:
        attributes = read_attributes(directory)
        disks = {disk: (directory / disk).absolute() for disk in sorted(names_in(directory)) if disk.startswith("vd")}
    except FileNotFoundError:
        raise _missing(f"instance qemu {name}") from None
    if "vda" not in disks:
        raise InvalidInput(f"instance qemu {name}: it has no disks yet: set its user.image first")
    image = {}
    if "image_id" in attributes:
        try:
            image = read_attributes(mount / "images" / check_part(attributes["image_id"], "an image"))
        except FileNotFoundError:
            print_line(
                f"note: instance qemu {name}: its image {attributes['image_id']} is gone, and with it the properties that say which devices to use"
            )
    vcpus, ram = 1, max(DEFAULT_RAM, int(image.get("min_ram", "0")))
    if "flavor" in attributes:
        flavor = read_flavor(mount, attributes["flavor"])
        vcpus, ram = int(flavor["vcpus"]), int(flavor["ram"])
    return Guest(name, attributes["instance_uuid"], vcpus, ram, disks, image, (mount / "images").absolute())


def _missing(what: str) -> NotFound:
    return NotFound(f"{what}: there is no such instance: see imagefs instance list")


def _row(mount: Path, name: str) -> tuple[str | None, ...] | None:
    """Return a line of the list; None for an instance that was removed meanwhile. One of somebody else's has a name only."""
    directory = mount / "instances" / name
    try:
        instance_uuid, status, image_id, flavor = (read_attribute(directory, key) for key in ("instance_uuid", "status", "image_id", "flavor"))
    except FileNotFoundError:
        return None
    except PermissionError:
        return (None, name, None, None, None)
    image = None
    if image_id is not None:
        with contextlib.suppress(OSError):
            image = read_attribute(mount / "images" / image_id, "name")
    return (instance_uuid, name, status, image or image_id, flavor)


def _can_use_kvm() -> bool:
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True

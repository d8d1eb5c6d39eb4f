"""This module is `imagefs volume`: persistent disks, made, grown, attached and removed by plain file operations on a mount."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from imagefs.cli.errors import report
from imagefs.cli.instance_guest import instance_directory, missing, volume_name
from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.mountpoint import check_part, explained, find_mount, names_in, read_attribute
from imagefs.cli.output import Shape, check_columns, output_options, print_list, print_object
from imagefs.cli.size import SizeType
from imagefs.errors import AlreadyExists, Busy, ImagefsError, InvalidInput, NotFound

COLUMNS: Final = ("ID", "Name", "Size", "Attached To")
FIELDS: Final = ("id", "name", "size", "attached_to", "created_at", "error")
"""What a volume is shown with; attached_to only if it is, error only if an operation on it failed."""
DEVICES: Final = tuple(f"vd{letter}" for letter in "cdefghijklmnopqrstuvwxyz")
"""The names that volumes may have in an instance."""
_DEV: Final = "/dev/"


@click.command("create", short_help="Make a volume.")
@click.argument("name")
@click.option("--size", type=SizeType(), required=True, metavar="SIZE", help="Its size: bytes, or with K, M, G or T (of 1024), such as 10G.")
@output_options
@pass_invocation
def volume_create(invocation: Invocation, shape: Shape, name: str, size: int) -> None:
    """Make a volume NAME that is all zeros. It takes up space as it is written to."""
    check_columns(shape, FIELDS)
    mount = find_mount(invocation)
    make_volume(mount, name, size)
    print_object(read_volume(mount, name), shape, f"volume {name}", FIELDS)


@click.command("list", short_help="List the volumes of the mount.")
@output_options
@pass_invocation
def volume_list(invocation: Invocation, shape: Shape) -> None:
    """List the volumes of the mount, with their sizes in bytes."""
    mount = find_mount(invocation)
    with explained("volume list", mount):
        rows = [row for name in sorted(names_in(mount / "volumes")) if (row := _row(mount, name)) is not None]
    print_list(COLUMNS, rows, shape)


@click.command("show", short_help="Show a volume.")
@click.argument("name")
@output_options
@pass_invocation
def volume_show(invocation: Invocation, shape: Shape, name: str) -> None:
    """Show the volume NAME, and why the last operation on it failed, if one did."""
    print_object(read_volume(find_mount(invocation), name), shape, f"volume {name}", FIELDS)


@click.command("set", short_help="Make a volume larger.")
@click.argument("name")
@click.option("--size", type=SizeType(), required=True, metavar="SIZE", help="Its new size; a volume never shrinks.")
@pass_invocation
def volume_set(invocation: Invocation, name: str, size: int) -> None:
    """Make the volume NAME larger. A guest that has it open sees the new size when it is started again."""
    grow_volume(find_mount(invocation), name, size)


@click.command("attach", short_help="Attach a volume to an instance.")
@click.argument("instance")
@click.argument("volume")
@click.option("--device", type=click.Choice(DEVICES), metavar="DEVICE", help="Its name in the instance, vdc to vdz; by default the first free one.")
@pass_invocation
def volume_attach(invocation: Invocation, instance: str, volume: str, device: str | None) -> None:
    """Attach VOLUME, or the block device of that path under /dev, to INSTANCE, and print its name there.

    The guest has it when it is started next.
    """
    click.echo(attach_volume(find_mount(invocation), instance, volume, device))


@click.command("detach", short_help="Detach a volume from an instance.")
@click.argument("instance")
@click.argument("volume")
@pass_invocation
def volume_detach(invocation: Invocation, instance: str, volume: str) -> None:
    """Detach VOLUME, named by its name, its path under /dev or its device such as vdc, from INSTANCE. The volume stays as it is."""
    detach_volume(find_mount(invocation), instance, volume)


@click.command("delete", short_help="Remove volumes and purge their data.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@pass_invocation
@click.pass_context
def volume_delete(context: click.Context, invocation: Invocation, names: tuple[str, ...]) -> None:
    """Remove each volume NAME and purge its data. One that is attached or open stays."""
    mount = find_mount(invocation)
    failed = False
    for name in names:
        try:
            remove_volume(mount, name)
        except ImagefsError as error:
            report(error)
            failed = True
    if failed:
        context.exit(1)


def make_volume(mount: Path, name: str, size: int) -> None:
    """Make a volume of `size` bytes, or nothing. Raises AlreadyExists, ImagefsError with the mount's reason."""
    path = _path(mount, name)
    what = f"volume create {name}"
    with explained(what, mount, path.parent):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise AlreadyExists(f"{what}: there is a volume of that name: choose another, or delete it first") from None
    with _undone(path), explained(what, mount, path):
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _undone(path: Path) -> Iterator[None]:
    """Remove the volume again if something goes wrong, KeyboardInterrupt included."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def grow_volume(mount: Path, name: str, size: int) -> None:
    """Make a volume larger. Raises NotFound, InvalidInput for a size that is less than it has."""
    path = _path(mount, name)
    what = f"volume set {name}"
    with explained(what, mount, path):
        try:
            before = path.stat().st_size
            if size < before:
                raise InvalidInput(f"{what}: it has {before} bytes, and a volume never shrinks: choose a larger size")
            os.truncate(path, size)
        except FileNotFoundError:
            raise _no_volume(what) from None


def attach_volume(mount: Path, instance: str, volume: str, device: str | None) -> str:
    """Attach a volume or a block device and return its name in the instance. Raises NotFound, Busy, ImagefsError with the mount's reason."""
    directory = instance_directory(mount, instance)
    what = f"volume attach {instance} {volume}"
    target = volume if volume.startswith(_DEV) else f"../../volumes/{_path(mount, volume).name}"
    with explained(what, mount, directory):
        if not directory.is_dir():
            raise missing(what)
        if not (directory / target).exists():
            raise NotFound(f"{what}: there is no such block device") if target == volume else _no_volume(what)
        for name in (device,) if device is not None else DEVICES:
            try:
                (directory / name).symlink_to(target)
            except FileExistsError:
                continue
            return name
    taken = f"{device} is taken" if device is not None else "vdc to vdz are all taken"
    raise Busy(f"{what}: {taken}: detach what is there first")


def detach_volume(mount: Path, instance: str, volume: str) -> None:
    """Detach what is attached as a device of that name, else the volume of that name. Raises NotFound, Busy, ImagefsError."""
    directory = instance_directory(mount, instance)
    what = f"volume detach {instance} {volume}"
    with explained(what, mount, directory):
        try:
            links = {name: str((directory / name).readlink()) for name in names_in(directory) if name in DEVICES and (directory / name).is_symlink()}
        except FileNotFoundError:
            raise missing(what) from None
        found = [volume] if volume in links else [name for name, link in links.items() if volume_name(link) == volume]
        if not found:
            attached = ", ".join(f"{name} ({volume_name(link)})" for name, link in sorted(links.items()))
            raise NotFound(f"{what}: no such volume is attached to it: {attached or 'none is'}")
        (directory / found[0]).unlink()


def remove_volume(mount: Path, name: str) -> None:
    """Remove a volume. Raises NotFound, Busy, ImagefsError with the mount's reason."""
    path = _path(mount, name)
    what = f"volume delete {name}"
    with explained(what, mount, path):
        try:
            path.unlink()
        except FileNotFoundError:
            raise _no_volume(what) from None


def read_volume(mount: Path, name: str) -> dict[str, object]:
    """Return a volume's attributes, and its size in bytes. Raises NotFound."""
    path = _path(mount, name)
    what = f"volume {name}"
    with explained(what, mount):
        try:
            size = path.stat().st_size
            values = {key: read_attribute(path, key) for key in ("volume_id", "attached_to", "created_at", "imagefs.error")}
        except FileNotFoundError:
            raise _no_volume(what) from None
    fields: dict[str, object] = {"id": values["volume_id"], "name": name, "size": size, "created_at": values["created_at"]}
    optional = {"attached_to": values["attached_to"], "error": values["imagefs.error"]}
    return fields | {key: value for key, value in optional.items() if value is not None}


def _row(mount: Path, name: str) -> tuple[object, ...] | None:
    """Return a line of the list; None for a volume that was removed meanwhile. One of somebody else's has a name only."""
    path = mount / "volumes" / name
    try:
        return (read_attribute(path, "volume_id"), name, path.stat().st_size, read_attribute(path, "attached_to"))
    except FileNotFoundError:
        return None
    except PermissionError:
        return (None, name, None, None)


def _path(mount: Path, name: str) -> Path:
    return mount / "volumes" / check_part(name, "a volume")


def _no_volume(what: str) -> NotFound:
    return NotFound(f"{what}: there is no such volume: see imagefs volume list")

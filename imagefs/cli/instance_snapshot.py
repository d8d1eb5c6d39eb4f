"""This module is `imagefs instance snapshot`: an image of what an instance's vda is now, made by the daemon while the guest goes on."""

import os
import time
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from imagefs.cli.errors import print_line
from imagefs.cli.image_properties import parse_properties
from imagefs.cli.instance_guest import SnapshotProgress, instance_directory, missing, read_progress
from imagefs.cli.invocation import PATH, Invocation, pass_invocation
from imagefs.cli.mountpoint import explained, find_mount, read_attribute
from imagefs.cli.progress import watch
from imagefs.cli.visibility import chosen_visibility, visibility_options
from imagefs.errors import ImagefsError, NotFound

ATTRIBUTE: Final = "imagefs.snapshot"
POLL_SECONDS: Final = 0.25
"""How often --wait asks how far the snapshot has come."""


@click.command("snapshot", short_help="Make an image of an instance's vda.")
@click.argument("name")
@click.option("--name", "image", required=True, metavar="NAME", help="The name of the new image.")
@click.option("--disk-format", type=click.Choice(["qcow2", "raw"]), help="The format of the new image; by default qcow2, compressed.")
@visibility_options("Who may see the new image; by default private.")
@click.option("--property", "properties", multiple=True, metavar="KEY=VALUE", help="A property of the new image; may be repeated.")
@click.option("--qmp", type=PATH, metavar="PATH", help="QEMU's control socket, if vda is a qcow2 file and the guest runs.")
@click.option("--agent", type=PATH, metavar="PATH", help="The guest agent's socket: the guest's file systems are frozen for a moment.")
@click.option("--allow-plain", is_flag=True, help="Store the image of an encrypted disk unencrypted.")
@click.option("--wait", is_flag=True, help="Return when the image is stored, and fail if it is not.")
@pass_invocation
def instance_snapshot(
    invocation: Invocation,
    /,
    name: str,
    image: str,
    disk_format: str | None,
    properties: tuple[str, ...],
    qmp: Path | None,
    agent: Path | None,
    *,
    allow_plain: bool,
    wait: bool,
    **visibilities: Any,  # noqa: ANN401 -- one for each word
) -> None:
    """Make an image of what the instance NAME's vda is at this moment, and print the image's id.

    The guest goes on and is not waited for. The image is stored in the background, with the properties that Nova gives to snapshots.
    """
    request: dict[str, object] = {"name": image}
    chosen: dict[str, object] = {
        "disk_format": disk_format,
        "visibility": chosen_visibility(visibilities),
        "properties": parse_properties(properties) or None,
        "qmp": str(qmp.absolute()) if qmp is not None else None,
        "agent": str(agent.absolute()) if agent is not None else None,
        "allow_plain": allow_plain or None,
    }
    request |= {key: value for key, value in chosen.items() if value is not None}
    mount = find_mount(invocation)
    image_id = request_snapshot(mount, name, request)
    click.echo(image_id)
    if wait:
        wait_for(instance_directory(mount, name), image_id, f"instance snapshot {name}", mount)


def request_snapshot(mount: Path, name: str, request: dict[str, object]) -> str:
    """Ask the daemon for a snapshot and return the new image's id. Raises NotFound, ImagefsError with the mount's reason."""
    directory = instance_directory(mount, name)
    what = f"instance snapshot {name}"
    with explained(what, mount, directory):
        try:
            os.setxattr(directory, f"user.{ATTRIBUTE}", msgspec.json.encode(request))
            return _read(directory, what).id
        except FileNotFoundError:
            raise missing(what) from None


def wait_for(directory: Path, image_id: str, what: str, mount: Path) -> None:
    """Return when the image is stored; show how far it has come on a terminal, and tell why something is tried again.

    An interruption ends the waiting only.

    Raises ImagefsError with the reason if it failed, NotFound if another snapshot was begun meanwhile or the instance is gone.
    """
    with explained(what, mount):
        progress = _mine(directory, image_id, what)
        told = None
        with watch(f"Storing {image_id}") as show:
            while not progress.is_over:
                show(progress.done, progress.total)
                if progress.error not in (None, told):
                    told = progress.error
                    print_line(f"note: {what}: {told}")
                time.sleep(POLL_SECONDS)
                progress = _mine(directory, image_id, what)
    if progress.has_failed:
        raise ImagefsError(f"{what}: image {image_id} was not stored: {progress.error or progress.status}")


def _mine(directory: Path, image_id: str, what: str) -> SnapshotProgress:
    progress = _read(directory, what)
    if progress.id != image_id:
        raise NotFound(f"{what}: another snapshot was begun: see imagefs image show {image_id} for this one")
    return progress


def _read(directory: Path, what: str) -> SnapshotProgress:
    text = read_attribute(directory, ATTRIBUTE)
    if text is None:
        raise ImagefsError(f"{what}: the mount tells of no snapshot: was the daemon restarted? see imagefs image list")
    return read_progress(text)

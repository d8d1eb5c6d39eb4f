"""This module is `imagefs image prefetch`: it asks the mount to bring images into the cache before somebody wants them."""

import os
import time
from pathlib import Path
from typing import Final, Literal

import click

from imagefs.cli.errors import report
from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.listing import find_image, image_path
from imagefs.cli.mountpoint import explained, find_mount, read_attribute, read_reason
from imagefs.cli.progress import watch
from imagefs.errors import ImagefsError

ATTRIBUTE: Final = "imagefs.prefetch"
POLL_SECONDS: Final = 0.2


@click.command("prefetch", short_help="Bring images into the cache.")
@click.option("--boot", "what", flag_value="boot", default=True, help="What a boot reads; the default.")
@click.option("--all", "what", flag_value="all", help="All of it.")
@click.option("--wait", is_flag=True, help="Return when it is there, or could not be had.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@pass_invocation
@click.pass_context
def image_prefetch(context: click.Context, invocation: Invocation, what: Literal["boot", "all"], wait: bool, images: tuple[str, ...]) -> None:
    """Bring each IMAGE, an id or a name, into the cache of the mount, in the background.

    What a boot reads is what boots of the image have read, or as long as there was none, what one is likely to read. To end it, set its
    attribute user.imagefs.prefetch to none.
    """
    mount = find_mount(invocation)
    begun: list[tuple[str, Path]] = []
    failed = False
    for wanted in images:
        doing = f"image prefetch {wanted}"
        try:
            with explained(doing, mount):
                path = image_path(mount, find_image(mount, wanted))
            with explained(doing, mount, path):
                os.setxattr(path, f"user.{ATTRIBUTE}", what.encode())
            begun.append((wanted, path))
        except ImagefsError as error:
            report(error)
            failed = True
    if wait:
        failed |= not _wait_for(begun, mount)
    if failed:
        context.exit(1)


def _wait_for(begun: list[tuple[str, Path]], mount: Path) -> bool:
    """Return when all of them are over, having shown how far they are and reported those that failed; whether none did."""
    sound, left = True, begun
    far: dict[Path, tuple[int, int]] = {}
    with watch(f"Prefetching {begun[0][0] if len(begun) == 1 else f'{len(begun)} images'}") as show:
        while left:
            still = []
            for wanted, path in left:
                try:
                    with explained(f"image prefetch {wanted}", mount):
                        progress = _progress(wanted, path)
                except ImagefsError as error:
                    report(error)
                    sound = False
                    continue
                if progress is not None:
                    far[path] = progress
                    still.append((wanted, path))
                elif path in far:
                    far[path] = far[path][1], far[path][1]
            left = still
            show(sum(done for done, _ in far.values()), sum(total for _, total in far.values()))
            if left:
                time.sleep(POLL_SECONDS)
    return sound


def _progress(wanted: str, path: Path) -> tuple[int, int] | None:
    """Return the bytes that are here and those that are wanted; None if it is done. Raises OSError, ImagefsError if it failed or was ended."""
    state = read_attribute(path, ATTRIBUTE) or "none"
    if state == "done":
        return None
    if state == "failed":
        raise ImagefsError(f"image prefetch {wanted}: {read_reason(path) or 'it failed: see the log of the mount'}")
    done, slash, total = state.rpartition(" ")[2].partition("/")
    if not slash or not done.isdecimal() or not total.isdecimal():
        raise ImagefsError(f"image prefetch {wanted}: it was ended before all was here: prefetch it again")
    return int(done), int(total)

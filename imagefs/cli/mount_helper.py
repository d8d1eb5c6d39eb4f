"""This module is `mount.imagefs`, what mount(8) runs for `mount -t imagefs` and for lines of fstab.

Its exit status is what mount(8) documents of helpers: 0, 1 for a wrong command line, 32 for a failed mount.
"""

import sys
import urllib.parse
from pathlib import Path
from typing import Final

import click

from imagefs.cli.errors import end_on_sigterm, fill_standard_descriptors, run
from imagefs.cli.invocation import PATH, Invocation
from imagefs.cli.mount import mount

_CONFIGURED: Final = frozenset({"imagefs", "none"})
"""Sources that mean the configured store."""
_STATUS: Final = {0: 0, 2: 1}


@click.command("mount.imagefs")
@click.argument("source")
@click.argument("mountpoint", type=PATH)
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="Mount options, as imagefs mount takes them.")
@click.option("-f", "fake", is_flag=True, help="Do everything but the mount itself: nothing.")
@click.option("-s", "sloppy", is_flag=True, help="Accepted, and without effect.")
@click.option("-n", "no_table", is_flag=True, help="Accepted, and without effect.")
@click.option("-v", "verbose", is_flag=True, help="Accepted, and without effect.")
@click.option("-N", "namespace", metavar="NAMESPACE", help="Accepted, and without effect: mount(8) changes it itself.")
@click.option("-t", "type_", metavar="TYPE", help="Accepted, and without effect.")
@click.pass_context
def mount_imagefs(context: click.Context, /, source: str, mountpoint: Path, options: tuple[str, ...], fake: bool, **_: object) -> None:
    """Mount imagefs at MOUNTPOINT for mount(8). SOURCE is the URL of a store, or the word imagefs for the configured one."""
    if fake:
        return
    if source not in _CONFIGURED:
        if "," in source:
            source = urllib.parse.quote(source, safe="/:%")  # a comma would end the option
        options = (*options, f"store.url={source}")
    context.obj = Invocation()
    context.invoke(mount, mountpoint=mountpoint, foreground=False, options=options, config_path=None, ready_descriptor=None)


def main() -> None:
    """Mount, and end the process with the status that mount(8) expects of a helper."""
    fill_standard_descriptors()
    end_on_sigterm()
    sys.exit(_STATUS.get(run(mount_imagefs, "mount.imagefs"), 32))


if __name__ == "__main__":
    main()

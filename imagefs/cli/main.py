"""This module is the command `imagefs`: its global options, and where each of its commands is."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from imagefs import __version__
from imagefs.cli.errors import end_on_sigterm, run
from imagefs.cli.invocation import PATH, Invocation

COMMANDS: Final[Mapping[str, Mapping[str, str]]] = {
    "imagefs": {"mount": "mount:mount", "umount": "umount:umount", "status": "status:status"},
    "image": {
        "create": "image_create:image_create",
        "list": "image:image_list",
        "show": "image:image_show",
        "save": "image_save:image_save",
        "delete": "image_delete:image_delete",
    },
    "instance": {
        "create": "instance:instance_create",
        "list": "instance:instance_list",
        "show": "instance:instance_show",
        "delete": "instance:instance_delete",
        "qemu": "instance:instance_qemu",
    },
    "flavor": {"list": "flavor:flavor_list", "show": "flavor:flavor_show"},
}
"""By group, the commands and the function of each, in a module of this package."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are named: listing instances need not wait for the store's client."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the table."""
        return [*COMMANDS[self.name or ""], *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, importing its module."""
        where = COMMANDS[self.name or ""].get(cmd_name)
        if where is None:
            return super().get_command(ctx, cmd_name)
        module, _, function = where.partition(":")
        command: click.Command = getattr(importlib.import_module(f"imagefs.cli.{module}"), function)
        return command


@click.group("imagefs", cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--config", "config_path", metavar="FILE", type=PATH, help="The configuration file.")
@click.option("-m", "--mountpoint", metavar="DIRECTORY", type=PATH, help="The mount to work on; by default the only one.")
@click.version_option(__version__, prog_name="imagefs", message="%(prog)s %(version)s")
@click.pass_context
def imagefs(context: click.Context, config_path: Path | None, mountpoint: Path | None) -> None:
    """Virtual machine images and instances' disks as a filesystem.

    Commands about instances, flavors and lists of images work on a mount; image create, save and delete work on the configured store.
    """
    context.obj = Invocation(config_path, mountpoint.absolute() if mountpoint is not None else None)


@imagefs.group("image", cls=LazyGroup, short_help="Images: create, list, show, save, delete.")
def image_group() -> None:
    """Work with images."""


@imagefs.group("instance", cls=LazyGroup, short_help="Instances: create, list, show, delete, qemu.")
def instance_group() -> None:
    """Work with instances."""


@imagefs.group("flavor", cls=LazyGroup, short_help="Flavors: list, show.")
def flavor_group() -> None:
    """Look at flavors."""


def main() -> None:
    """Run the command and end the process with its exit status."""
    end_on_sigterm()
    sys.exit(run(imagefs, "imagefs"))


if __name__ == "__main__":
    main()

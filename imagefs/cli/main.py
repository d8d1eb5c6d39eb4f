"""This module is the command `imagefs`: its global options, and where each of its commands is."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from imagefs import __version__
from imagefs.cli.errors import end_on_sigterm, fill_standard_descriptors, run
from imagefs.cli.invocation import PATH, Invocation

COMMANDS: Final[Mapping[str, Mapping[str, str]]] = {
    "imagefs": {"mount": "mount:mount", "umount": "umount:umount", "status": "status:status", "top": "top:top"},
    "image": {
        "create": "image_create:image_create",
        "list": "image_list:image_list",
        "show": "image_show:image_show",
        "set": "image_set:image_set",
        "unset": "image_set:image_unset",
        "save": "image_save:image_save",
        "delete": "image_delete:image_delete",
        "prefetch": "image_prefetch:image_prefetch",
        "verify": "image_verify:image_verify",
    },
    "image add": {"project": "image_members:image_add_project"},
    "image remove": {"project": "image_members:image_remove_project"},
    "image member": {"list": "image_members:image_member_list"},
    "instance": {
        "create": "instance:instance_create",
        "list": "instance:instance_list",
        "show": "instance:instance_show",
        "delete": "instance:instance_delete",
        "snapshot": "instance_snapshot:instance_snapshot",
        "qemu": "instance_run:instance_qemu",
        "libvirt": "instance_run:instance_libvirt",
    },
    "volume": {
        "create": "volume:volume_create",
        "list": "volume:volume_list",
        "show": "volume:volume_show",
        "set": "volume:volume_set",
        "attach": "volume:volume_attach",
        "detach": "volume:volume_detach",
        "delete": "volume:volume_delete",
    },
    "cache": {"show": "cache:cache_show", "prune": "cache:cache_prune", "verify": "cache:cache_verify"},
    "flavor": {"list": "flavor:flavor_list", "show": "flavor:flavor_show"},
}
"""By the words that lead to a group, its commands and the function of each, in a module of this package."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are named: listing instances need not wait for the store's client."""

    def __init__(self, name: str, words: str | None = None, **settings: Any) -> None:  # noqa: ANN401 -- click's own
        """`words` lead to the group in COMMANDS; by default they are its name."""
        super().__init__(name, **settings)
        self._table = COMMANDS[words or name]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the table."""
        return [*self._table, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, importing its module."""
        where = self._table.get(cmd_name)
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

    Commands work on a mount, but image create, save, delete and verify, which work on the configured store.
    """
    context.obj = Invocation(config_path, mountpoint.absolute() if mountpoint is not None else None)


@imagefs.group("image", cls=LazyGroup, short_help="Images: create, list, show, set, share, save, delete, prefetch.")
def image_group() -> None:
    """Work with images."""


@image_group.group("add", cls=LazyGroup, words="image add", short_help="Share an image.")
def image_add_group() -> None:
    """Share images with projects."""


@image_group.group("remove", cls=LazyGroup, words="image remove", short_help="End the share of an image.")
def image_remove_group() -> None:
    """End shares of images with projects."""


@image_group.group("member", cls=LazyGroup, words="image member", short_help="Look at an image's shares.")
def image_member_group() -> None:
    """Look at the projects that images are shared with."""


@imagefs.group("instance", cls=LazyGroup, short_help="Instances: create, list, show, snapshot, run, delete.")
def instance_group() -> None:
    """Work with instances."""


@imagefs.group("volume", cls=LazyGroup, short_help="Volumes: create, list, show, attach, detach, delete.")
def volume_group() -> None:
    """Work with volumes: disks that outlive instances."""


@imagefs.group("flavor", cls=LazyGroup, short_help="Flavors: list, show.")
def flavor_group() -> None:
    """Look at flavors."""


@imagefs.group("cache", cls=LazyGroup, short_help="The disk cache: show, prune, verify.")
def cache_group() -> None:
    """Look after the disk cache of a mount."""


def main() -> None:
    """Run the command and end the process with its exit status."""
    fill_standard_descriptors()
    end_on_sigterm()
    sys.exit(run(imagefs, "imagefs"))


if __name__ == "__main__":
    main()

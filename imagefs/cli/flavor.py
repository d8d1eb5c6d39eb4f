"""This module is `imagefs flavor`: the flavors of a mount."""

import json
from pathlib import Path
from typing import Any, Final

import click

from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.mountpoint import check_part, explained, find_mount, names_in
from imagefs.cli.output import Shape, output_options, print_list, print_object
from imagefs.errors import NotFound

COLUMNS: Final = {
    "ID": "id", "Name": "name", "RAM": "ram", "Disk": "disk", "Ephemeral": "ephemeral", "Swap": "swap", "VCPUs": "vcpus", "Is Public": "is_public",
}  # fmt: skip


@click.command("list", short_help="List the flavors of the mount.")
@output_options
@pass_invocation
def flavor_list(invocation: Invocation, shape: Shape) -> None:
    """List the flavors of the mount. RAM and Swap are in MiB, Disk and Ephemeral in GiB."""
    mount = find_mount(invocation)
    with explained("flavor list", mount):
        flavors = [read_flavor(mount, name) for name in names_in(mount / "flavors")]
    rows = [[flavor.get(key) for key in COLUMNS.values()] for flavor in sorted(flavors, key=lambda flavor: (flavor["ram"], flavor["name"]))]
    print_list(list(COLUMNS), rows, shape)


@click.command("show", short_help="Show a flavor.")
@click.argument("flavor")
@output_options
@pass_invocation
def flavor_show(invocation: Invocation, flavor: str, shape: Shape) -> None:
    """Show FLAVOR. ram and swap are in MiB, disk and ephemeral in GiB; a private one has the projects that may use it."""
    mount = find_mount(invocation)
    with explained(f"flavor show {flavor}", mount):
        fields = read_flavor(mount, flavor)
    print_object(fields, shape, f"flavor {flavor}")


def read_flavor(mount: Path, name: str) -> dict[str, Any]:
    """Return a flavor as flavors/ has it. Raises NotFound, OSError."""
    try:
        text = (mount / "flavors" / check_part(name, "a flavor")).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no flavor '{name}': see imagefs flavor list") from None
    flavor: dict[str, Any] = json.loads(text)
    return flavor

"""This module is `imagefs status`: what is mounted, and how much of it, as far as the caller may know."""

import contextlib
from pathlib import Path

import click

from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.mountpoint import explained, find_mount, names_in, read_attribute
from imagefs.cli.output import Shape, output_options, print_object
from imagefs.units import format_size

_SHOWN = ("imagefs_cache_bytes", "imagefs_cache_limit_bytes", "imagefs_store_bytes_total")


@click.command("status", short_help="Show what is mounted.")
@output_options
@pass_invocation
def status(invocation: Invocation, shape: Shape) -> None:
    """Show what is mounted: version and process of its daemon, the images and instances in it, and the disk cache's fill.

    The cache and what was fetched are shown to the user and the group that mounted only.
    """
    mount = find_mount(invocation)
    with explained("status", mount):
        fields: dict[str, object] = {
            "mountpoint": str(mount),
            "version": read_attribute(mount, "imagefs.version"),
            "pid": int(read_attribute(mount, "imagefs.pid") or 0) or None,
            "images": _count(mount / "images"),
            "instances": _count(mount / "instances"),
        }
        statistics: dict[str, float] = {}
        with contextlib.suppress(PermissionError):
            statistics = parse_statistics((mount / ".imagefs" / "stats").read_text(encoding="utf-8"))
    used, limit, fetched = (statistics.get(name) for name in _SHOWN)
    if used is not None and limit is not None:
        fields["cache"] = f"{format_size(int(used))} of {format_size(int(limit))}"
    if fetched is not None:
        fields["fetched"] = format_size(int(fetched))
    print_object(fields, shape, "the mount")


def _count(directory: Path) -> int | None:
    """Return how many names there are in a directory; None if the caller may not list it. Raises OSError."""
    try:
        return len(names_in(directory))
    except PermissionError:
        return None


def parse_statistics(text: str) -> dict[str, float]:
    """Return the metrics without labels of a Prometheus text, by name."""
    rows = [line.split(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {row[0]: float(row[1]) for row in rows if len(row) >= 2 and "{" not in row[0]}

"""This module is `imagefs cache`: what the disk cache of a mount holds, and how to make it smaller or compare it with its checksums."""

import contextlib
import datetime
import os
import time
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from imagefs.cli.errors import report
from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.listing import as_image_id, find_image
from imagefs.cli.mountpoint import explained, find_mount, read_attribute
from imagefs.cli.output import Shape, check_columns, output_options, print_list, print_object
from imagefs.cli.progress import watch
from imagefs.cli.status import parse_statistics
from imagefs.errors import ImagefsError, NotFound
from imagefs.units import format_size

ATTRIBUTE: Final = "imagefs.cache"
POLL_SECONDS: Final = 0.1
COLUMNS: Final = {
    "Image": "image", "Name": "name", "Space": "space", "Size": "size", "Cached": "cached", "Allocated": "allocated", "Pinned": "pinned",
    "Open": "open", "Complete": "complete", "Verified": "verified", "Last Used": "last_used",
}  # fmt: skip
_SIZES: Final = frozenset({"size", "cached", "allocated"})
_DECODER: Final = msgspec.json.Decoder(dict[str, Any])


@click.command("show", short_help="Show what is cached.")
@output_options
@pass_invocation
def cache_show(invocation: Invocation, shape: Shape) -> None:
    """Show what the cache of the mount holds of each image, in which address space, and what all of it takes of the budget.

    stored are the bytes as they are in the store, guest those of the disk that an image holds. Sizes are in bytes, but in the table.
    """
    check_columns(shape, list(COLUMNS))
    mount = find_mount(invocation)
    with explained("cache show", mount):
        caches = read_caches(mount)
    table = shape.format == "table"
    print_list(list(COLUMNS), [[_shown(cache, key, table) for key in COLUMNS.values()] for cache in caches], shape)
    statistics: dict[str, float] = {}
    with contextlib.suppress(OSError):
        statistics = parse_statistics((mount / ".imagefs" / "stats").read_text(encoding="utf-8"))
    used, limit = statistics.get("imagefs_cache_bytes"), statistics.get("imagefs_cache_limit_bytes")
    if table and not shape.columns and used is not None and limit is not None:
        click.echo(f"{format_size(int(used))} of {format_size(int(limit))} in {len(caches)} caches")


@click.command("prune", short_help="Remove what is cached and not in use.")
@click.option("--all", "cold", is_flag=True, help="Also what was not read lately of images that are in use.")
@click.argument("images", nargs=-1, metavar="[IMAGE...]")
@output_options
@pass_invocation
@click.pass_context
def cache_prune(context: click.Context, invocation: Invocation, images: tuple[str, ...], cold: bool, shape: Shape) -> None:
    """Remove the caches of all images, or of each IMAGE, an id or a name, that are neither in use nor pinned; show what that freed.

    Nothing is lost: what is wanted again is fetched again.
    """
    mount = find_mount(invocation)
    results, failed = _run_jobs(mount, "prune all" if cold else "prune", images)
    if results:
        print_object({"freed": sum(result.get("freed") or 0 for result in results)}, shape, "the result")
    if failed:
        context.exit(1)


@click.command("verify", short_help="Compare what is cached with its checksums.")
@click.argument("images", nargs=-1, metavar="[IMAGE...]")
@output_options
@pass_invocation
@click.pass_context
def cache_verify(context: click.Context, invocation: Invocation, images: tuple[str, ...], shape: Shape) -> None:
    """Compare what is cached of all images, or of each IMAGE, an id or a name, with its checksums; show how many units there are.

    A unit has 64 KiB. Damaged ones are removed, and fetched again when they are wanted; if there were any, the command fails.
    """
    mount = find_mount(invocation)
    results, failed = _run_jobs(mount, "verify", images)
    damaged = sum(result.get("damaged") or 0 for result in results)
    if results:
        print_object({"checked": sum(result.get("checked") or 0 for result in results), "damaged": damaged}, shape, "the result")
    if failed or damaged:
        context.exit(1)


def read_caches(mount: Path) -> list[dict[str, Any]]:
    """Return what the daemon tells of its caches. Raises OSError, ImagefsError if it cannot be understood."""
    path = mount / ".imagefs" / "cache"
    try:
        return _DECODER.decode_lines(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ImagefsError(f"{path}: not a list of caches: {error}: unmount it with the version that mounted it, then mount it again") from error


def _shown(cache: dict[str, Any], key: str, table: bool) -> object:
    value = cache.get(key)
    if key == "last_used" and isinstance(value, int):
        return datetime.datetime.fromtimestamp(value, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return format_size(value) if table and key in _SIZES and isinstance(value, int) else value


def _run_jobs(mount: Path, job: str, images: tuple[str, ...]) -> tuple[list[dict[str, Any]], bool]:
    """Do a job for each image, or once for all; return the results, and whether some failed, which were reported."""
    results, failed = [], False
    for wanted in images or (None,):
        what = f"cache {job.partition(' ')[0]}" + (f" {wanted}" if wanted is not None else "")
        try:
            with explained(what, mount):
                image_id = _find(mount, wanted) if wanted is not None else None
            results.append(_run_job(mount, f"{job} {image_id}" if image_id is not None else job, what))
        except ImagefsError as error:
            report(error)
            failed = True
    return results, failed


def _find(mount: Path, wanted: str) -> str:
    """Return an image's id; one that the mount does not know may be of an image that is gone, of which something is cached."""
    try:
        return find_image(mount, wanted)
    except NotFound:
        image_id = as_image_id(wanted)
        if image_id is None:
            raise
        return image_id


def _run_job(mount: Path, order: str, what: str) -> dict[str, Any]:
    """Have the daemon do a job and return what came of it. Raises ImagefsError with the reason if it failed."""
    with explained(what, mount, mount):
        os.setxattr(mount, f"user.{ATTRIBUTE}", order.encode())
    with explained(what, mount), watch(what.capitalize()) as show:
        while True:
            text = read_attribute(mount, ATTRIBUTE)
            if text is None:
                raise ImagefsError(f"{what}: the mount knows nothing of it: was the daemon restarted? do it again")
            result = _DECODER.decode(text.encode("utf-8", "surrogateescape"))
            if result.get("state") != "running":
                break
            show(int(result.get("done") or 0), int(result.get("total") or 0))
            time.sleep(POLL_SECONDS)
    if result.get("state") != "done":
        raise ImagefsError(f"{what}: {result.get('error')}")
    return result

"""This module is `imagefs top`: what a mount is doing now, from the differences of its statistics."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from imagefs.cli.cache import read_caches
from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.mountpoint import explained, find_mount
from imagefs.cli.output import Shape, output_options, print_object
from imagefs.cli.status import parse_statistics
from imagefs.log import escaped
from imagefs.units import format_size

SHOWN_IMAGES: Final = 20
"""Images of the live view: those that changed most, then those that were used last."""

_RATES: Final = {
    "reads": "reads", "read_bytes": "read_bytes", "writes": "writes", "written_bytes": "written_bytes", "flushes": "flushes",
    "store_requests": "store_requests", "store_bytes": "store_bytes",
}  # fmt: skip
"""Fields that are counted in a second, and the counters that they come from."""
_COUNTS: Final = {
    "store_retries": "store_retries", "store_errors": "store_errors", "slowdowns": "slowdowns", "hedged_requests": "hedged_requests",
    "hedges_won": "hedges_won", "units_filled": "cache_units_filled", "units_evicted": "cache_units_evicted", "units_damaged": "cache_units_damaged",
    "units_uncached": "cache_units_uncached",
}  # fmt: skip
"""Fields that are counted in the interval."""
_BYTES: Final = frozenset({"read_bytes", "written_bytes", "store_bytes", "demand_bytes", "ahead_bytes", "idle_bytes", "cache_bytes", "cache_limit"})


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """The statistics of one moment, by name without "imagefs_" and "_total", and what is cached of each image; `at` in seconds."""

    at: float
    statistics: Mapping[str, float]
    caches: Sequence[Mapping[str, Any]]


@click.command("top", short_help="Show what the mount is doing.")
@click.option("--once", is_flag=True, help="Show one interval and end; without a terminal, or with -f json or value, that is so anyway.")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, metavar="SECONDS", help="How long an interval is.")
@output_options
@pass_invocation
def top(invocation: Invocation, shape: Shape, once: bool, interval: float) -> None:
    """Show what the mount is doing now: reads and writes a second, how many reads the cache answers, what is fetched and why, and the cache.

    For the user and the group that mounted, who may read the statistics. It goes on until it is interrupted.
    """
    mount = find_mount(invocation)
    with explained("top", mount):
        before = sample(mount)
        if once or shape.format != "table" or shape.columns or not sys.stdout.isatty():
            time.sleep(interval)
            print_object(difference(before, sample(mount)), shape, "the mount")
            return
        with (
            Live(Text(f"looking at {mount} ..."), console=Console(), auto_refresh=False, screen=True) as live,
            contextlib.suppress(KeyboardInterrupt),
        ):
            while True:
                time.sleep(interval)
                now = sample(mount)
                live.update(_view(str(mount), difference(before, now)), refresh=True)
                before = now


def sample(mount: Path) -> Sample:
    """Look at the mount's statistics now. Raises OSError; who may not see the caches gets none."""
    text = (mount / ".imagefs" / "stats").read_text(encoding="utf-8")
    caches: Sequence[Mapping[str, Any]] = ()
    with contextlib.suppress(PermissionError):
        caches = read_caches(mount)
    statistics = {name.removeprefix("imagefs_").removesuffix("_total"): value for name, value in parse_statistics(text).items()}
    return Sample(time.monotonic(), statistics, caches)


def difference(before: Sample, now: Sample) -> dict[str, object]:
    """Return what happened between two samples, by name: rates are per second, counts those of the interval.

    Where the daemon was started anew in between, the counts are those since.
    """
    seconds = max(now.at - before.at, 1e-6)
    anew = now.statistics.get("store_requests", 0) < before.statistics.get("store_requests", 0)

    def more(name: str) -> float:
        value = now.statistics.get(name, 0)
        return value if anew else max(0.0, value - before.statistics.get(name, 0))

    def rate(name: str) -> int:
        return round(more(name) / seconds)

    fields: dict[str, object] = {"seconds": round(seconds, 2)}
    fields |= {field: rate(name) for field, name in _RATES.items()}
    reads, fills = more("reads"), more("demand_fills")
    fields["hit_percent"] = round(100 * max(0.0, 1 - fills / reads), 1) if reads else None
    fields["fill_milliseconds"] = round(1000 * more("demand_fill_seconds") / fills, 1) if fills else None
    ahead, idle = rate("prefetch_bytes") + rate("readahead_bytes"), rate("hydrated_bytes")
    fields |= {"demand_bytes": max(0, rate("store_bytes") - ahead - idle), "ahead_bytes": ahead, "idle_bytes": idle}
    fields |= {field: round(more(name)) for field, name in _COUNTS.items()}
    fields["cache_bytes"] = int(now.statistics.get("cache_bytes", 0))
    fields["cache_limit"] = int(now.statistics.get("cache_limit_bytes", 0))
    fields["threads"] = {name.removeprefix("threads_"): int(value) for name, value in now.statistics.items() if name.startswith("threads_") and value}
    fields["images"] = _images(before.caches, now.caches, seconds)
    return fields


def _images(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], seconds: float) -> list[dict[str, object]]:
    """Return the caches that are open, with what came to each in a second: those that changed most first."""
    earlier = {(cache.get("image"), cache.get("space"), cache.get("size")): int(cache.get("cached") or 0) for cache in before}
    rows: list[dict[str, object]] = []
    changes: list[float] = []
    for cache in now:
        if cache.get("open"):
            cached = int(cache.get("cached") or 0)
            change = (cached - earlier.get((cache.get("image"), cache.get("space"), cache.get("size")), cached)) / seconds
            changes.append(abs(change))
            shown = {name: cache.get(name) for name in ("image", "name", "space", "size", "cached", "pinned")}
            rows.append(shown | {"cached_per_second": round(change)})
    order = sorted(range(len(rows)), key=lambda index: (-changes[index], str(rows[index]["image"])))
    return [rows[index] for index in order]


def _view(mount: str, fields: dict[str, object]) -> Group:
    """Return the fields of one interval as the live view shows them."""

    def shown(name: str) -> str:
        value = fields[name]
        if value is None:
            return "-"
        return format_size(value) if name in _BYTES and isinstance(value, int) else str(value)

    def line(*parts: tuple[str, str, str]) -> Text:
        return Text("   ").join(Text.assemble((f"{label} ", "dim"), (shown(name), "bold"), unit) for label, name, unit in parts)

    lines: list[Text] = [
        Text.assemble(("imagefs ", "bold"), escaped(mount), time.strftime("  %H:%M:%S")),
        line(("reads", "reads", "/s"), ("", "read_bytes", "/s"), ("hits", "hit_percent", " %"), ("miss", "fill_milliseconds", " ms")),
        line(("writes", "writes", "/s"), ("", "written_bytes", "/s"), ("flushes", "flushes", "/s")),
        line(("store", "store_requests", " requests/s"), ("", "store_bytes", "/s"), ("retries", "store_retries", ""), ("errors", "store_errors", "")),
        line(("slowdowns", "slowdowns", ""), ("hedged", "hedged_requests", ""), ("won", "hedges_won", "")),
        line(("for readers", "demand_bytes", "/s"), ("ahead", "ahead_bytes", "/s"), ("idle", "idle_bytes", "/s")),
        line(("cache", "cache_bytes", ""), ("of", "cache_limit", ""), ("filled", "units_filled", ""), ("evicted", "units_evicted", " units")),
    ]
    threads = fields["threads"]
    if isinstance(threads, dict):
        lines.append(Text("threads  ", style="dim") + Text("  ".join(f"{name} {count}" for name, count in threads.items()) or "none"))
    return Group(*lines, Text(""), _image_table(fields["images"]))


def _image_table(images: object) -> Table:
    table = Table(box=None, pad_edge=False)
    cells: dict[str, Callable[[dict[str, Any]], str]] = {
        "Image": lambda row: escaped(str(row["name"] or row["image"])),
        "Space": lambda row: escaped(str(row["space"])),
        "Cached": lambda row: format_size(row["cached"]),
        "Of": lambda row: format_size(row["size"]),
        "A second": lambda row: format_size(max(0, row["cached_per_second"])),
        "Pinned": lambda row: "yes" if row["pinned"] else "",
    }
    for name in cells:
        table.add_column(name)
    for row in images[:SHOWN_IMAGES] if isinstance(images, list) else ():
        table.add_row(*(Text(cell(row)) for cell in cells.values()))
    return table

"""This module shows what tools/bench found: tables for a terminal, and the same as JSON."""

import dataclasses
import os
import platform
import time
from collections.abc import Iterable, Sequence
from typing import Final

import rich.box
import rich.console
import rich.table

from tools.rows import Finding, PeerFigures, Row
from tools.targets import TARGETS, Verdict, target_of, unmeasured, verdict_of

WIDTH: Final = 200
"""Columns where the output is no terminal."""
_WHOLE: Final = frozenset({"IOPS", "requests", "reads", "boots", "calls/s"})


def show(findings: Sequence[Finding], *, is_whole: bool) -> None:
    """Print all tables, and of a whole run which rows of the targets have no figure."""
    terminal = rich.console.Console()
    console = terminal if terminal.is_terminal else rich.console.Console(width=WIDTH)
    figures = [finding for finding in findings if isinstance(finding, PeerFigures)]
    for scenario in dict.fromkeys(row.scenario for row in figures):
        console.print(peers_table(scenario, [row for row in figures if row.scenario == scenario]))
    rows = [finding for finding in findings if isinstance(finding, Row)]
    if rows:
        console.print(rows_table(rows))
    for row in rows:
        if row.note:
            console.print(f"{row.what}: {row.note}", highlight=False, markup=False)
    missing = unmeasured(rows)
    if missing and is_whole:
        console.print(f"No figure for row {', '.join(map(str, missing))} of the targets.", highlight=False)


def rows_table(rows: Iterable[Row]) -> rich.table.Table:
    """Return the table of the figures that are measured against something: by number of the target, then those without."""
    table = rich.table.Table(title="imagefs and its peers, medians of this run", box=rich.box.SIMPLE_HEAD)
    for heading in ("#", "what", "imagefs", "peer", "peer's", "ratio", "must", "aim", ""):
        table.add_column(heading, justify="right" if heading in ("#", "imagefs", "peer's", "ratio") else "left")
    for row in sorted(rows, key=lambda row: number_of(row) or len(TARGETS) + 1):
        target = target_of(row)
        must, aim = target.bounds() if target is not None else (row.target, "")
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        verdict = verdict_of(row)
        style = {Verdict.MISSED: "red", Verdict.AIMED: "green", Verdict.MET: "green"}.get(Verdict(verdict), "") if verdict else ""
        cells = (str(number_of(row) or ""), row.what, words(row.imagefs, row.unit), row.peer, words(row.peer_value, row.unit), ratio, must, aim)
        table.add_row(*(rich.markup.escape(cell) for cell in cells), verdict, style=style)
    return table


def number_of(row: Row) -> int | None:
    """Return the number of the target that a row belongs to; that of a second figure begins with it."""
    first = row.also.partition(".")[0]
    return row.number if row.number is not None or not first.isdecimal() else int(first)


def peers_table(scenario: str, rows: Iterable[PeerFigures]) -> rich.table.Table:
    """Return the table of one scenario: imagefs first, then the others by their time; ratios are to imagefs's first row."""
    table = rich.table.Table(title=scenario, box=rich.box.SIMPLE_HEAD)
    for heading in ("peer", "boot", "ratio", "fetched", "ratio", "requests", "first byte", "sequential"):
        table.add_column(heading, justify="left" if heading == "peer" else "right")
    ordered = sorted(rows, key=lambda row: (not row.is_own, row.seconds is None, 0 if row.is_own else row.seconds or 0))
    first = next((row for row in ordered if row.is_own and row.seconds is not None), PeerFigures(scenario, ""))
    for row in ordered:
        if row.seconds is None:
            table.add_row(row.peer, rich.markup.escape(row.why_not), style="dim")
            continue
        cells = [
            f"{row.seconds:.2f} s",
            over(row.seconds, first.seconds),
            scaled(row.fetched, 1e6, "MB"),
            over(row.fetched, first.fetched),
        ]
        cells += ["" if row.requests is None else f"{row.requests:,.0f}", scaled(row.first_byte, 1e-3, "ms"), scaled(row.sequential, 1e6, "MB/s")]
        table.add_row(row.peer, *cells, style="bold" if row.is_own else "")
    return table


def words(value: float | None, unit: str) -> str:
    """Return a figure with its unit; counts have no fraction."""
    if value is None:
        return ""
    return f"{value:,.0f} {unit}" if unit in _WHOLE else f"{value:,.2f} {unit}".strip()


def over(value: float | None, base: float | None) -> str:
    """Return a ratio in words, nothing where there is none."""
    return f"{value / base:.2f}" if value is not None and base else ""


def scaled(value: float | None, scale: float, unit: str) -> str:
    """Return a figure in another unit."""
    return "" if value is None else f"{value / scale:,.0f} {unit}"


def as_json(findings: Iterable[Finding], *, quick: bool) -> dict[str, object]:
    """Return the results with what they depend on."""
    rows = [finding for finding in findings if isinstance(finding, Row)]
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": quick,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "rows": [row_as_json(row) for row in rows],
        "peers": [dataclasses.asdict(finding) for finding in findings if isinstance(finding, PeerFigures)],
    }


def row_as_json(row: Row) -> dict[str, object]:
    """Return a row with its target's bounds and how it stands to them."""
    target = target_of(row)
    bounds: dict[str, object] = {} if target is None else {"must": target.must, "aim": target.aim, "is_lower_bound": target.is_lower_bound}
    return dataclasses.asdict(row) | bounds | {"figure": row.figure(), "verdict": verdict_of(row)}

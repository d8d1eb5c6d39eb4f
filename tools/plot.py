"""This module draws what the peers of a scenario gave as an SVG picture: bars of time and of bytes, on logarithmic scales."""

import math
from collections.abc import Callable, Sequence
from typing import Final
from xml.sax.saxutils import escape

from tools.rows import PeerFigures

BAR: Final = 18
"""Height of a bar with its gap, in pixels, as everything here."""
LABELS: Final = 270
PANEL: Final = 330
GAP: Final = 40
HEAD: Final = 54
OWN_COLOUR: Final = "#0b6e4f"
PEER_COLOUR: Final = "#8a9ba8"
_STYLE: Final = "text{font:12px sans-serif;fill:#222}.title{font-weight:bold;font-size:14px}.head{fill:#555}.grid{stroke:#ddd}"


def plot(figures: Sequence[PeerFigures]) -> str:
    """Return the picture of all scenarios. Peers without figures are left out; with no figures at all it says so."""
    shown = [row for row in figures if row.seconds is not None]
    scenarios = list(dict.fromkeys(row.scenario for row in shown))
    parts, top = [], 10
    for scenario in scenarios:
        rows = sorted((row for row in shown if row.scenario == scenario), key=lambda row: row.seconds or 0.0)
        parts.append(panel(scenario, rows, top))
        top += HEAD + BAR * len(rows) + GAP
    if not scenarios:
        parts.append(text(10, 30, "There are no figures of peers: they come from the sections replay and boots."))
        top = 50
    width = LABELS + 2 * (PANEL + GAP)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}">\n'
        f'<style>{_STYLE}</style>\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


def panel(scenario: str, rows: Sequence[PeerFigures], top: int) -> str:
    """Return the drawing of one scenario."""
    parts = [text(10, top + 16, scenario, "title")]
    for number, row in enumerate(rows):
        parts.append(text(LABELS - 8, top + HEAD + number * BAR + 12, row.peer, anchor="end"))
    height = BAR * len(rows)
    parts += bars(rows, "time until the last read (s)", lambda row: row.seconds, 1.0, LABELS, top, height)
    parts += bars(rows, "fetched (MB)", lambda row: row.fetched, 1e6, LABELS + PANEL + GAP, top, height)
    return "\n".join(parts)


def bars(
    rows: Sequence[PeerFigures], head: str, figure: Callable[[PeerFigures], float | None], scale: float, left: int, top: int, height: int
) -> list[str]:
    """Return the bars of one figure with their grid; what is zero or not known has no bar, and says so."""
    values = [(figure(row) or 0.0) / scale for row in rows]
    low, high = decades([value for value in values if value > 0])
    parts = [text(left, top + 34, head, "head")]
    for decade in range(low, high + 1):
        x = left + place(10.0**decade, low, high)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top + HEAD - 4}" x2="{x:.1f}" y2="{top + HEAD + height}"/>')
        parts.append(text(x, top + HEAD - 6, f"{10.0**decade:g}", "head", "middle"))
    for number, (row, value) in enumerate(zip(rows, values, strict=True)):
        y = top + HEAD + number * BAR
        width = place(value, low, high) if value > 0 else 0.0
        colour = OWN_COLOUR if row.is_own else PEER_COLOUR
        parts.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{BAR - 4}" fill="{colour}"/>')
        parts.append(text(left + width + 4, y + 11, f"{value:.3g}"))
    return parts


def decades(values: Sequence[float]) -> tuple[int, int]:
    """Return the powers of ten between which all values lie, at least one decade apart."""
    if not values:
        return 0, 1
    low = math.floor(math.log10(min(values)) - 1e-9)
    return low, max(low + 1, math.ceil(math.log10(max(values))))


def place(value: float, low: int, high: int) -> float:
    """Return how far from the left a value lies; what is written beside the longest bar still has room."""
    return max(0.0, (math.log10(value) - low) / (high - low)) * (PANEL - 50)


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Return a piece of text."""
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(words)}</text>'

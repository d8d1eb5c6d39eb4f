"""The plot of the peers."""

import math
import xml.etree.ElementTree

import pytest

from tools.plot import LABELS, PANEL, decades, place, plot
from tools.rows import PeerFigures

ROWS = [
    PeerFigures("boot, raw", "imagefs", 0.7, 80e6, 300, 0.05, 1e8, is_own=True),
    PeerFigures("boot, raw", "<peer> & co", 35.0, 4.3e9, 500, 30.0, 3e7),
    PeerFigures("boot, raw", "local", 0.2, 0.0, 0, 0.01),
    PeerFigures("boot, raw", "missing", why_not="it is not installed"),
    PeerFigures("boot, qcow2", "imagefs", 0.6, 50e6, 300, 0.05, is_own=True),
]


def drawn(svg: str) -> list[str]:
    """Return all texts of a picture, which must be XML."""
    return [element.text or "" for element in xml.etree.ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_a_plot_has_each_scenario_and_each_peer_that_has_figures() -> None:
    """Peers without figures are left out, names are escaped."""
    texts = drawn(plot(ROWS))
    assert {"boot, raw", "boot, qcow2", "<peer> & co", "local"} <= set(texts)
    assert "missing" not in texts
    assert texts.count("imagefs") == 2


def test_bars_lie_within_their_panel() -> None:
    """The longest too, with room for its number; what is zero has no length."""
    root = xml.etree.ElementTree.fromstring(plot(ROWS))
    bars = [element.attrib for element in root.iter() if element.tag.endswith("rect") and "y" in element.attrib]
    assert len(bars) == 2 * 4
    assert all(0 <= float(bar["width"]) <= PANEL - 50 for bar in bars)
    assert any(float(bar["width"]) == 0 and float(bar["x"]) > LABELS for bar in bars)


def test_a_plot_of_nothing_says_so() -> None:
    """A section without peers leaves a picture that explains itself."""
    assert "no figures" in " ".join(drawn(plot([])))


@pytest.mark.parametrize("values", [[0.17, 35.0], [1.0], [10.0, 10.0], [1000.0], [0.001, 0.9]])
def test_scales_hold_all_values(values: list[float]) -> None:
    """Longer for more, within whole decades."""
    low, high = decades(values)
    assert high > low
    assert all(10.0**low <= value * (1 + 1e-9) and value <= 10.0**high * (1 + 1e-9) for value in values)
    places = [place(value, low, high) for value in sorted(values)]
    assert places == sorted(places)
    assert math.isclose(place(10.0**high, low, high), PANEL - 50)

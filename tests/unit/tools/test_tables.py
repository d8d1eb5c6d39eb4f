"""The tables and the JSON of the bench."""

import json

import pytest

from tools.rows import Finding, PeerFigures, Row
from tools.tables import as_json, show

FINDINGS: list[Finding] = [
    Row("cold [stream]", "MB/s", 100.0, "GETs", 110.0, 0.91, number=9),
    Row("stalled", "s", None, number=22, note="none was stalled"),
    Row("making", "ms", 8.0, target="< 20 ms", met=True),
    PeerFigures("boot, raw", "imagefs, first boot", 1.0, 50e6, 100, 0.03, 1e8, is_own=True),
    PeerFigures("boot, raw", "s3fs", 6.0, 500e6, 70, 0.5),
    PeerFigures("boot, raw", "rclone", why_not="not measured: rclone is not installed"),
]


def test_tables_have_figures_beside_their_targets(capsys: pytest.CaptureFixture[str]) -> None:
    """Ratios of peers are to imagefs's first row; who has no figures says why; open numbers are named."""
    show(FINDINGS, is_whole=True)
    printed = capsys.readouterr().out
    stream = next(line for line in printed.splitlines() if "cold [stream]" in line)
    assert all(word in stream for word in ("9", "0.91", ">= 0.8", ">= 0.92", "met"))
    s3fs = next(line for line in printed.splitlines() if "s3fs" in line)
    assert all(word in s3fs for word in ("6.00 s", "500 MB", "10.00"))
    assert "rclone is not installed" in printed
    assert "none was stalled" in printed
    assert "No figure for row 1, 2" in printed
    assert "22" in printed.split("No figure for row")[1]
    show(FINDINGS, is_whole=False)
    assert "No figure" not in capsys.readouterr().out


def test_json_has_what_a_row_was_judged_by() -> None:
    """Bounds, verdict and figures; it is valid JSON."""
    found = json.loads(json.dumps(as_json(FINDINGS, quick=True)))
    assert found["quick"] is True
    assert found["rows"][0] | {"must": 0.8, "aim": 0.92, "figure": 0.91, "verdict": "met"} == found["rows"][0]
    assert found["rows"][1]["verdict"] == "not measured"
    assert [row["peer"] for row in found["peers"]] == ["imagefs, first boot", "s3fs", "rclone"]

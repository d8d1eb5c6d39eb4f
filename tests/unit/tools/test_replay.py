"""Replays: what a reader tells, what is made of peers that fail or lie, and how imagefs is judged by the others."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tools import replay
from tools.crash_bench import overlap, union, whole
from tools.disks import invent
from tools.faults import Counts
from tools.node import Failed
from tools.peers import PEERS
from tools.peers.peer import Peer, Task, Unavailable, Want, check_programs, program
from tools.reading import reader
from tools.rows import Bench, PeerFigures
from tools.traces import BLOCK, MIB, Trace

TRACE = Trace("guest", 4 * MIB, "a guest", [(0, 4096), (MIB, 65536), (4 * MIB - 4096, 4096), (0, 4096)])


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk for the trace."""
    path = tmp_path / "disk.raw"
    invent(TRACE, path, 2 * MIB)
    return path


def test_an_invented_disk_has_data_wherever_the_trace_reads(tmp_path: Path, disk: Path) -> None:
    """The same each time, as large as the trace says, and holes where there is nothing."""
    again = tmp_path / "again.raw"
    invent(TRACE, again, 2 * MIB)
    body = disk.read_bytes()
    assert body == again.read_bytes()
    assert len(body) == TRACE.size
    assert all(any(body[start : start + BLOCK]) for start, _ in TRACE.extents())
    assert disk.stat().st_blocks * 512 < TRACE.size


def test_a_reader_replays_a_trace_and_tells_when(tmp_path: Path, disk: Path) -> None:
    """Times in order, no errors, and a checksum that depends on the bytes."""
    (tmp_path / "trace").write_text(TRACE.text())
    with reader() as process:
        process.begin_replay(disk, tmp_path / "trace")
        told = process.told()
    assert told.opened <= told.first <= told.done
    assert told.errors == []
    with disk.open("r+b") as file:
        os.pwrite(file.fileno(), b"other", MIB)
    with reader() as process:
        process.begin_replay(disk, tmp_path / "trace")
        assert process.told().checksum != told.checksum


def test_a_reader_tells_of_reads_that_fail(tmp_path: Path, disk: Path) -> None:
    """Of a disk that is too short; the caller decides whether that is the end."""
    (tmp_path / "trace").write_text(TRACE.text())
    os.truncate(disk, 3 * MIB)
    with reader() as process:
        process.begin_replay(disk, tmp_path / "trace", skip_errors=True)
        told = process.told(may_fail=True)
    assert len(told.errors) == 1
    assert "4190208 gave 0" in told.errors[0]
    with reader() as process:
        process.begin_replay(tmp_path / "nothing", tmp_path / "trace")
        with pytest.raises(Failed, match="No such file"):
            process.told()


def test_a_reader_reads_sequentially_to_where_it_is_told(disk: Path) -> None:
    """And an end that comes too early is an error."""
    with reader() as process:
        process.begin_sequential(disk, 2 * MIB + 5)
        assert process.told().errors == []
    with reader() as process:
        process.begin_sequential(disk, TRACE.size + 1)
        with pytest.raises(Failed, match="ends 1 bytes early"):
            process.told()


class StandIn(Peer):
    """A peer that serves a local file."""

    def __init__(self, name: str, disk: Path | None) -> None:
        self.name = name
        self.disk = disk

    def ready(self, task: Task, cleanup: ExitStack) -> Want:
        if self.disk is None:
            raise Failed("it broke")
        disk = self.disk
        return lambda: disk


class QuietLink:
    """A link over which nothing passes."""

    endpoint_url = "http://127.0.0.1:9"

    def counts(self) -> Counts:
        return Counts()


class QuietServer:
    """A server that is not asked."""

    def environment(self) -> dict[str, str]:
        return {}


@pytest.fixture
def stage(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[replay.Stage]:
    """A stage without a store."""
    monkeypatch.setattr(replay, "drop_caches", lambda: None)
    monkeypatch.setattr(replay.Stage, "begin_round", lambda self, form: None)
    (tmp_path / "trace").write_text(TRACE.text())
    made: replay.Stage = replay.Stage(tmp_path, QuietServer(), QuietLink(), TRACE, tmp_path / "trace", disk, {"raw": "an-id"})  # type: ignore[arg-type]
    yield made
    assert not (tmp_path / "peer").exists(), "a peer left its directory"


def test_a_peer_that_cannot_run_is_in_the_table_with_the_reason(stage: replay.Stage, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that breaks, one whose program is missing; the others are measured all the same."""
    lacking = StandIn("lacking", disk)
    lacking.needs = ("no-such-program-anywhere",)
    monkeypatch.setattr(replay, "PEERS", (StandIn("broken", None), lacking, StandIn("good", disk)))
    broken, missing, good = replay.in_turn(stage, "raw", 2)
    assert broken.seconds is None
    assert "it broke" in broken.why_not
    assert missing.seconds is None
    assert "no-such-program-anywhere is not installed" in missing.why_not
    assert good.why_not == ""
    assert good.seconds is not None
    assert good.fetched == 0


def test_peers_that_read_different_bytes_end_the_comparison(stage: replay.Stage, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong answer is not a fast one."""
    other = tmp_path / "other.raw"
    invent(Trace("another", TRACE.size, "", TRACE.reads), other, 0)
    monkeypatch.setattr(replay, "PEERS", (StandIn("one", disk), StandIn("liar", other)))
    with pytest.raises(Failed, match="did not read the same"):
        replay.in_turn(stage, "raw", 1)


def test_imagefs_is_judged_by_the_best_of_those_that_fetch() -> None:
    """The local file is no peer; the best in time and the best in bytes may be two; a warm boot is not judged."""
    figures = [
        PeerFigures("s", "imagefs, first boot", 2.0, 60e6, is_own=True),
        PeerFigures("s", "imagefs, cached, daemon restarted", 0.2, 0.0, is_own=True),
        PeerFigures("s", "local raw file", 0.1, 0.0),
        PeerFigures("s", "fast", 4.0, 600e6),
        PeerFigures("s", "frugal", 16.0, 120e6),
        PeerFigures("s", "missing", why_not="not there"),
    ]
    rows = {row.number: row for row in replay.judged(figures, TRACE, "raw") if row.number}
    assert (rows[18].ratio, rows[18].peer) == (0.5, "best: fast")
    assert (rows[19].ratio, rows[19].peer) == (0.5, "best: frugal")


def test_every_peer_has_a_name_of_its_own_and_says_what_it_needs() -> None:
    """The three states of imagefs come first, in their order."""
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert [peer.is_own for peer in PEERS[:4]] == [True, True, True, False]
    assert all(peer.forms for peer in PEERS)
    check_programs(PEERS[0])
    with pytest.raises(Unavailable, match="tools/setup bench"):
        program("no-such-program-anywhere")


def test_in_haste_what_is_replayed_is_small(tmp_path: Path) -> None:
    """Otherwise the largest recorded disk comes first."""
    assert replay.traces(Bench(tmp_path, quick=True))[0].size <= 256 * MIB
    sizes = [trace.size for trace in replay.traces(Bench(tmp_path, quick=False))]
    assert sizes == sorted(sizes, reverse=True)


def test_what_is_fetched_again_is_counted_once() -> None:
    """Of what came whole, whatever the ranges' borders are."""
    assert union([(5, 9), (0, 3), (2, 5), (20, 21)]) == [(0, 9), (20, 21)]
    assert overlap([(0, 10), (20, 30)], [(5, 25), (6, 7), (28, 40)]) == 5 + 5 + 2
    assert overlap([(0, 10)], [(10, 20)]) == 0
    assert whole([("/b/one/data", 0, 5, True), ("/b/one/data", 5, 9, False), ("/b/two/data", 0, 5, True)], "one") == [(0, 5)]

"""This module replays recorded boots: every peer serves the same reads of the same disk over the same link, in turn, and starts with nothing.

What is timed is what an instance waits for: from the moment it is wanted, with whatever a node mounts at its own start mounted, until the
last read has been answered; copies, conversions, overlays and opening are part of it. Bytes and requests are counted at the link.
"""

import contextlib
import dataclasses
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import botocore.exceptions

from tests.support.seaweed import Seaweed
from tools.disks import make_disk, recorded
from tools.instruments import BUCKET, DELAY, RATE, drop_caches, fronted
from tools.link import Link
from tools.node import Failed, Node
from tools.peers import PEERS
from tools.peers.own import RestartedNode
from tools.peers.peer import Peer, Task, Unavailable, check_programs
from tools.reading import Reader, reader
from tools.rows import Bench, Finding, PeerFigures, Row
from tools.traces import Trace, invented, names

MIB: Final = 1024 * 1024
PREFIX: Final = "bench"
FORMS: Final = ("raw", "qcow2")


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """A server with a disk in it, once in each form, and the link to it."""

    directory: Path
    server: Seaweed
    link: Link
    trace: Trace
    trace_file: Path
    disk: Path
    """The disk as a local raw file."""
    image_ids: Mapping[str, str]
    """By form."""

    def task(self, form: str, name: str) -> Task:
        """Return what a peer is to do, with a new directory."""
        directory = self.directory / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        (self.directory / "round").mkdir(exist_ok=True)
        return Task(
            directory,
            self.link.endpoint_url,
            self.server.environment(),
            BUCKET,
            PREFIX,
            self.image_ids[form],
            form,
            self.trace.size,
            self.disk,
            self.directory / "round",
            lambda: self.has_profile(form),
        )

    def has_profile(self, form: str) -> bool:
        """Tell whether the store has a boot profile."""
        try:
            self.server.client().head_object(Bucket=BUCKET, Key=self._profile(form))
        except botocore.exceptions.ClientError:
            return False
        return True

    def begin_round(self, form: str) -> None:
        """Forget what an earlier round left: the profile in the store, and what peers kept for one another."""
        self.server.client().delete_object(Bucket=BUCKET, Key=self._profile(form))
        shutil.rmtree(self.directory / "round", ignore_errors=True)

    def _profile(self, form: str) -> str:
        return f"{PREFIX}/{self.image_ids[form]}/profile"


@contextlib.contextmanager
def staged(directory: Path, trace: Trace, content: int, forms: tuple[str, ...] = FORMS) -> Iterator[Stage]:
    """Hold a stage: the trace's disk is made and stored in each form. Raises Failed."""
    raw, qcow2 = make_disk(trace, directory, content)
    trace_file = directory / "trace"
    trace_file.write_text(trace.text(), encoding="ascii")
    with contextlib.ExitStack() as cleanup:
        server = Seaweed.start(directory / "seaweed", anonymous_bucket=BUCKET)
        cleanup.callback(server.stop)
        server.create_bucket(BUCKET)
        settings = f'[store]\nurl = "s3://{BUCKET}/{PREFIX}"\n[store.s3]\nendpoint_url = "{server.endpoint_url}"'
        importing = Node(directory / "importing", settings, server.environment())
        files = {"raw": raw, "qcow2": qcow2}
        image_ids = {form: importing.create_image(form, files[form], "--disk-format", form, "--public") for form in forms}
        kept = {f"/{BUCKET}/{PREFIX}/{image_ids[form]}/data": files[form] for form in forms}
        front = cleanup.enter_context(fronted(server.endpoint_url, kept))
        link = cleanup.enter_context(Link(front, delay=DELAY, rate=RATE))
        yield Stage(directory, server, link, trace, trace_file, raw, image_ids)


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """What one run of a peer gave: seconds until all reads were done and until the first was, bytes and requests at the link."""

    seconds: float
    first_byte: float
    fetched: int
    requests: int
    checksum: int


def run_peer(stage: Stage, peer: Peer, form: str, read: Callable[[Reader, Path], None], *, settle: bool = True) -> Figures:
    """Let a peer serve one instance, whose disk `read` tells a reader to read, and with `settle` wait for what later peers need.

    Raises Failed, Unavailable.
    """
    check_programs(peer)
    task = stage.task(form, "peer")
    try:
        with contextlib.ExitStack() as cleanup, reader() as process:
            drop_caches()
            before = stage.link.counts()
            want = peer.ready(task, cleanup)
            wanted = time.monotonic()
            read(process, want())
            told = process.told()
            passed = stage.link.counts() - before
            if settle:
                peer.settle(task)
        peer.leave(task)
    finally:
        shutil.rmtree(task.directory, ignore_errors=True)
    return Figures(told.done - wanted, told.first - wanted, passed.received, passed.requests, told.checksum)


def replay(bench: Bench) -> Iterator[Finding]:
    """Replay each trace with each peer: the first in rounds and on both forms of the object, the others, of small disks, once as a qcow2."""
    for number, trace in enumerate(traces(bench)):
        place = bench.place("replay") if number == 0 else bench.place(f"replay-{number}")
        content = 128 * MIB if bench.quick else 1500 * MIB
        forms = FORMS if number == 0 else ("qcow2",)
        with staged(place, trace, content, forms) as stage:
            for form in forms:
                rounds = 1 if bench.quick or number > 0 else bench.rounds
                figures = in_turn(stage, form, rounds)
                if number == 0:
                    figures = with_sequential(stage, form, figures, (32 if bench.quick else 128) * MIB)
                yield from figures
                yield from judged(figures, trace, form)
        shutil.rmtree(place)


def traces(bench: Bench) -> list[Trace]:
    """Return what to replay: the largest recorded boot first; in haste an invented one, on a small disk."""
    if bench.quick:
        return [invented(256 * MIB, 16 * MIB)]
    return sorted((recorded(name) for name in names()), key=lambda trace: -trace.size)


def in_turn(stage: Stage, form: str, rounds: int) -> list[PeerFigures]:
    """Return the medians of rounds in which each peer has its turn; a peer that cannot run, or fails, is in it with the reason."""
    found: dict[Peer, list[Figures]] = {peer: [] for peer in PEERS if form in peer.forms}
    why: dict[Peer, str] = {}
    for turn in range(rounds):
        stage.begin_round(form)
        for peer, runs in found.items():
            if peer in why:
                continue
            print(f"tools/bench: {stage.trace.guest}, {form}, round {turn + 1} of {rounds}: {peer.name}", file=sys.stderr, flush=True)
            try:
                runs.append(run_peer(stage, peer, form, lambda process, path: process.begin_replay(path, stage.trace_file)))
            except (Failed, Unavailable) as error:
                why[peer] = f"not measured: {error}"
    check_same(found)
    scenario = f"boot of {stage.trace.guest} replayed, {form} object"
    return [as_row(scenario, peer, runs, why.get(peer, "")) for peer, runs in found.items()]


def check_same(found: Mapping[Peer, list[Figures]]) -> None:
    """Raise Failed if a peer read something else than the others: its time would mean nothing."""
    sums = {run.checksum: peer.name for peer, runs in found.items() for run in runs}
    if len(sums) > 1:
        raise Failed(f"the peers did not read the same: {', '.join(sums.values())} differ")


def as_row(scenario: str, peer: Peer, runs: list[Figures], why_not: str) -> PeerFigures:
    """Return a peer's medians."""
    if not runs:
        return PeerFigures(scenario, peer.name, why_not=why_not, is_own=peer.is_own)
    return PeerFigures(
        scenario,
        peer.name,
        statistics.median(run.seconds for run in runs),
        statistics.median(run.fetched for run in runs),
        statistics.median(run.requests for run in runs),
        statistics.median(run.first_byte for run in runs),
        why_not=why_not,
        is_own=peer.is_own,
    )


def with_sequential(stage: Stage, form: str, figures: list[PeerFigures], size: int) -> list[PeerFigures]:
    """Return the figures with the rate at which each peer gives the first bytes of a disk, from when an instance wants it, once."""
    peers = {peer.name: peer for peer in PEERS}
    stage.begin_round(form)
    done = []
    for row in figures:
        rate = None
        if not row.why_not:
            print(f"tools/bench: {stage.trace.guest}, {form}, sequentially: {row.peer}", file=sys.stderr, flush=True)
            try:
                found = run_peer(stage, peers[row.peer], form, lambda process, path: process.begin_sequential(path, size), settle=False)
                rate = size / found.seconds
            except (Failed, Unavailable) as error:
                print(f"tools/bench: {row.peer} could not be read sequentially: {error}", file=sys.stderr, flush=True)
        done.append(dataclasses.replace(row, sequential=rate))
    return done


def judged(figures: list[PeerFigures], trace: Trace, form: str) -> Iterator[Row]:
    """Yield how imagefs's cold boots stand to the best of the others, in time and in bytes."""
    others = [row for row in figures if not row.is_own and row.seconds is not None and row.fetched]
    own = [row for row in figures if row.is_own and row.seconds is not None and row.peer != RestartedNode.name]
    for row in own:
        what = f"{row.peer}, {trace.guest} replayed, {form}"
        for number, unit, scale, of in ((18, "s", 1.0, "seconds"), (19, "MB", 1e6, "fetched")):
            best = min(others, key=lambda other: getattr(other, of), default=None)
            if best is None:
                yield Row(what, unit, getattr(row, of) / scale, note="no peer could be run", number=number, judged=None)
                continue
            mine, theirs = getattr(row, of) / scale, getattr(best, of) / scale
            yield Row(what, unit, mine, f"best: {best.peer}", theirs, mine / theirs, number=number)
        fetched = row.fetched or 0.0
        yield Row(f"{what}: fetched, to the blocks read", "MB", fetched / 1e6, "unique blocks of 4 KiB", trace.unique / 1e6, fetched / trace.unique)

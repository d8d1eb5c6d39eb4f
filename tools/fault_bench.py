"""This module measures boots whose store or disk fails: requests that stall, a store that is away, a full disk, too small a cache, many readers."""

import concurrent.futures
import mmap
import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tools.disks import small_boot
from tools.faults import Faults
from tools.node import Failed
from tools.nodes import MIB, QUIET, Store, limited, make_instance, store
from tools.reading import reader
from tools.rows import Bench, Row
from tools.traces import Trace

STALLED: Final = 0.01
STALL_SECONDS: Final = 10.0
AWAY_SECONDS: Final = 20.0
KILL_SECONDS: Final = 5.0
"""How soon a process must be gone whose daemon was killed, whatever the store does."""
_KILLED: Final = "the kernel lets a killed process wait for a request that the daemon has read, and pyfuse3 does not tell of interrupted requests"
READERS: Final = 64
BLOCK: Final = 4096


def faults(bench: Bench) -> Iterator[Row]:
    """Replay a boot under each fault; there is no boot profile, so that the guest waits for everything itself."""
    place = bench.place("faults")
    trace, disk = small_boot(bench, place)
    trace_file = place / "trace"
    with store(place) as images:
        image_id = images.put(disk)
        boot = Boot(images, image_id, trace_file)
        calm, checksum = boot.once()
        yield from stalls(bench, boot)
        yield from away(boot, trace)
        yield from full_disk(boot, place / "small", checksum)
        yield from small_budget(boot, trace, calm, checksum)
        yield from one_unit(boot)


class Boot:
    """A boot to replay: of which image, in what order."""

    def __init__(self, images: Store, image_id: str, trace_file: Path) -> None:
        self.images = images
        self.image_id = image_id
        self.trace_file = trace_file

    def once(self, cache: str = QUIET, *, state: Path | None = None) -> tuple[float, int]:
        """Return the seconds of a boot on a new node, and the checksum of what it read. Raises Failed if a read fails."""
        self.images.forget_profile(self.image_id)
        with self.images.node(cache, state=state) as node, reader() as process:
            started = time.monotonic()
            process.begin_replay(make_instance(node, "bench", self.image_id), self.trace_file)
            told = process.told()
            return told.done - started, told.checksum


def stalls(bench: Bench, boot: Boot) -> Iterator[Row]:
    """Let one GET of a hundred wait for 10 s, in turn with none (row 22)."""
    calm, stalled, hit = [], [], 0
    for _ in range(bench.rounds):
        calm.append(boot.once()[0])
        before = boot.images.link.counts()
        boot.images.link.faults(Faults(stall=STALLED, stall_seconds=STALL_SECONDS))
        try:
            stalled.append(boot.once()[0])
        finally:
            boot.images.link.faults(Faults())
        hit += (boot.images.link.counts() - before).faults
    ratio = statistics.median(a / b for a, b in zip(stalled, calm, strict=True))
    what = f"boot with 1 % of the GETs stalled for {STALL_SECONDS:.0f} s ({hit} in {bench.rounds} boots)"
    if hit == 0:
        yield Row(what, "s", None, number=22, note="too few requests: none was stalled")
        return
    yield Row(what, "s", statistics.median(stalled), "without", statistics.median(calm), ratio, number=22)


def away(boot: Boot, trace: Trace) -> Iterator[Row]:
    """Let the store go away in the midst of a boot; read what is cached meanwhile; then kill a reader that waits, and the daemon (row 23)."""
    link = boot.images.link
    boot.images.forget_profile(boot.image_id)
    never_read = boot.images.put_noise(MIB, "never read")
    with boot.images.node() as node, reader() as process:
        disk = make_instance(node, "bench", boot.image_id)
        started, before = time.monotonic(), link.counts()
        process.begin_replay(disk, boot.trace_file, skip_errors=True)
        wait_for(lambda: (link.counts() - before).data_requests >= 20, "the boot has begun")
        link.down(AWAY_SECONDS)
        longest = longest_hit(disk, trace.reads[0][0], time.monotonic() + AWAY_SECONDS - 1)
        told = process.told(may_fail=True)
        seconds = told.done - started
        link.down(4 * AWAY_SECONDS)
        cold = node.mountpoint / "raw" / never_read
        alone = seconds_until_gone(cold, lambda reading: reading.kill(), AWAY_SECONDS)
        orphaned = seconds_until_gone(cold, lambda reading: os.kill(node.daemon(), signal.SIGKILL), AWAY_SECONDS)
        subprocess.run(["umount", "--lazy", node.mountpoint], check=False, capture_output=True)
    link.down(0)
    what = f"boot whose store is away for {AWAY_SECONDS:.0f} s"
    yield Row(f"{what}: reads that failed", "reads", len(told.errors), number=23, note=told.errors[0] if told.errors else "")
    yield Row(f"{what}: longest read of what is cached", "s", longest, number=23, also="23.hits")
    yield Row(f"{what}: all of it", "s", seconds, "the time away", AWAY_SECONDS, seconds / AWAY_SECONDS)
    waits = "process that waits for a store that is away"
    yield Row(f"{waits}: gone after its own end by SIGKILL", "s", alone, note=_KILLED if alone >= AWAY_SECONDS else "")
    yield Row(f"{waits}: gone after the daemon's", "s", orphaned, target=f"< {KILL_SECONDS:.0f} s", met=orphaned < KILL_SECONDS)


def longest_hit(disk: Path, offset: int, end: float) -> float:
    """Return the seconds of the longest of many reads of one cached block. Raises Failed if one fails."""
    page = mmap.mmap(-1, BLOCK)
    descriptor = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    longest = 0.0
    try:
        while (started := time.monotonic()) < end:
            os.preadv(descriptor, [page], offset // BLOCK * BLOCK)
            longest = max(longest, time.monotonic() - started)
            time.sleep(0.01)
    except OSError as error:
        raise Failed(f"what is cached could not be read while the store was away: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return longest


def seconds_until_gone(cold: Path, kill: "Callable[[subprocess.Popen[bytes]], None]", most: float) -> float:
    """Return the seconds that a process which waits for the store takes to be gone once it or the daemon is killed, `most` at most."""
    words = ["dd", f"if={cold}", "of=/dev/null", f"bs={BLOCK}", "count=1", "iflag=direct", "status=none"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    time.sleep(2)
    if process.poll() is not None:
        raise Failed(f"a read of {cold} did not wait for the store that is away")
    started = time.monotonic()
    kill(process)
    try:
        process.wait(most)
    except subprocess.TimeoutExpired:
        process.kill()  # it goes when its request is answered, or with the mount
        return most
    return time.monotonic() - started


def full_disk(boot: Boot, directory: Path, checksum: int) -> Iterator[Row]:
    """Boot with the cache on a filesystem that is nearly full, and no room left free for others."""
    directory.mkdir()
    what = "boot with the cache's disk full: wrong or failed boots"
    mounting = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", directory], capture_output=True, text=True, check=False)
    if mounting.returncode != 0:
        yield Row(what, "boots", None, target="0", note=f"no small filesystem could be mounted: {mounting.stderr.strip()}")
        return
    try:
        filler = directory / "filler"
        filler.write_bytes(bytes(18 * MIB))
        yield outcome(what, lambda: boot.once(f'{QUIET}free_space_floor = "0%"\n', state=directory), checksum)
    finally:
        subprocess.run(["umount", "--lazy", directory], check=False)


def small_budget(boot: Boot, trace: Trace, calm: float, checksum: int) -> Iterator[Row]:
    """Boot with a cache that holds an eighth of what the boot reads."""
    budget = max(4 * MIB, trace.unique // 8)
    started = time.monotonic()
    yield outcome("boot with a cache of an eighth of its blocks: wrong or failed boots", lambda: boot.once(limited(budget)), checksum)
    seconds = time.monotonic() - started
    yield Row("boot with a cache of an eighth of its blocks, mounting included", "s", seconds, "boot with room", calm, seconds / calm)


def outcome(what: str, boot: Callable[[], tuple[float, int]], checksum: int) -> Row:
    """Return the row of a boot that must only be right."""
    try:
        _, found = boot()
    except Failed as error:
        return Row(what, "boots", 1, target="0", met=False, note=str(error))
    is_wrong = found != checksum
    return Row(what, "boots", int(is_wrong), target="0", met=not is_wrong, note="other bytes were read" if is_wrong else "")


def one_unit(boot: Boot) -> Iterator[Row]:
    """Let many readers want one block that nobody has, at once."""
    link = boot.images.link
    asked: list[int] = []
    alone: list[int] = []
    with boot.images.node() as node:
        path = node.mountpoint / "raw" / boot.image_id
        with path.open("rb") as image:
            image.read(BLOCK)
            time.sleep(1)  # what opening fetches ahead has come
            size = image.seek(0, os.SEEK_END)
            for number, counts in ((1, alone), (READERS, asked)):
                before = link.counts()
                read_at_once(path, size // 64 * (20 + 20 * (number > 1)) // BLOCK * BLOCK, number)
                time.sleep(0.5)
                counts.append((link.counts() - before).data_requests)
    yield Row(
        f"GETs of data by {READERS} readers of one cold block", "requests", asked[0], "by one", alone[0], asked[0] / alone[0], "1", asked[0] == 1
    )


def read_at_once(path: Path, offset: int, count: int) -> None:
    """Read one block in so many threads at the same moment, past the page cache, which would let one alone come through. Raises Failed."""
    together = threading.Barrier(count)

    def read() -> None:
        page = mmap.mmap(-1, BLOCK)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            together.wait()
            if os.preadv(descriptor, [page], offset) != BLOCK:
                raise Failed(f"{path} gave less than {BLOCK} bytes at {offset}")
        finally:
            os.close(descriptor)

    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(read) for _ in range(count)]:
            done.result()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Return when a condition holds. Raises Failed."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"after {seconds:.0f} s it is still not so that {what}")
        time.sleep(0.02)

"""This module makes the disks that traces are replayed on: the guest's own where it can be made here, else one that is invented.

What is in a disk decides what a format or a warm-up can do with it, so the guest's own is worth more; what is invented has data that does not
compress where the trace reads, holes elsewhere, and as much other data as is asked for.
"""

import os
import random
import sys
from pathlib import Path
from typing import Final

from tools.node import Failed, guest_image, image_info, run
from tools.rows import Bench
from tools.trace import GUESTS, record
from tools.traces import Trace, invented, load_trace, parse

MIB: Final = 1024 * 1024
"""Those that tools/guest-image can make."""
TEXT: Final = 0.25
"""Share of an invented disk's other content that compresses well."""


def make_disk(trace: Trace, directory: Path, content: int) -> tuple[Path, Path]:
    """Return the paths of a trace's disk as a raw file, and as a compressed qcow2, in `directory` or where guests' images are kept.

    `content` is the bytes of an invented disk that are not zero. Raises Failed.
    """
    raw, qcow2 = directory / f"{trace.guest}.raw", directory / f"{trace.guest}.qcow2"
    image = guest(trace)
    if image is not None:
        run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(raw)])
        return raw, image
    invent(trace, raw, content)
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-m", "4", "-W", str(raw), str(qcow2)])
    return raw, qcow2


def small_boot(bench: Bench, place: Path) -> tuple[Trace, Path]:
    """Return a boot to replay where peers are not compared, with its raw disk in `place`: that of the small guest, an invented one in haste."""
    trace = invented(256 * MIB, 16_000_000) if bench.quick else recorded("bios")
    raw, image = place / f"{trace.guest}.raw", guest(trace)
    if image is not None:
        run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(raw)])
    else:
        invent(trace, raw, trace.size)
    (place / "trace").write_text(trace.text(), encoding="ascii")
    return trace, raw


def recorded(name: str) -> Trace:
    """Return the trace of a guest as it was made here, recording it now if need be; else the one of these sources.

    Where a file lies differs from one making of a guest to the next, so that the trace of one does not fit the disk of another.
    """
    image = guest(load_trace(name))
    if image is None:
        return load_trace(name)
    own = image.with_suffix(".trace")
    if not own.exists():
        print(f"tools/bench: recording a boot of {name}", file=sys.stderr, flush=True)
        record(name, own)
    return parse(own.read_text(encoding="ascii"), own.name)


def guest(trace: Trace) -> Path | None:
    """Return the image of the trace's guest, made now if need be; None, with a word about it, if it cannot be made here."""
    if trace.guest not in GUESTS:
        return None
    try:
        image = guest_image(trace.guest)
        size = image_info(image)["virtual-size"]
    except (Failed, OSError) as error:
        print(f"tools/bench: the disk of {trace.guest} is an invented one: {error}", file=sys.stderr)
        return None
    if size != trace.size:
        print(f"tools/bench: the disk of {trace.guest} is an invented one: the image has {size} bytes, the trace {trace.size}", file=sys.stderr)
        return None
    return image


def invent(trace: Trace, path: Path, content: int) -> None:
    """Write a disk that is the same each time for the same trace and content."""
    chance = random.Random(f"{trace.guest} {trace.size}")
    with path.open("wb") as file:
        file.truncate(trace.size)
        left = content
        for number in range(trace.size // MIB):  # from the start on, as an installer fills a disk, in runs with gaps between
            if left <= 0:
                break
            if number % 64 < 48:
                body = chance.randbytes(MIB) if chance.random() >= TEXT else chance.randbytes(1024) * 1024
                os.pwrite(file.fileno(), body, number * MIB)
                left -= MIB
        for start, end in trace.extents():
            os.pwrite(file.fileno(), chance.randbytes(end - start), start)

"""This module is the process that reads a disk as a guest does, and tells when: in the order of a trace at depth 1, or from the start on.

It imports nothing but what it needs, is started before the clock is, and then waits for one line of JSON: `path`, and either `reads`, the file of
a trace, or `sequential`, how many bytes; with `skip_errors` it goes on after a read that failed. It answers with one line of JSON, see `Told`.
Reads of traces are O_DIRECT: what the kernel has in its page cache is of no use to them.
"""

import json
import mmap
import os
import sys
import time
import zlib
from typing import Any

CHECKED = 64
"""Bytes at the start of each read that go into the checksum: enough to tell a wrong answer, too few to take time."""
CHUNK = 1024 * 1024


def replay(path: str, trace: str, *, skip_errors: bool) -> dict[str, Any]:
    """Read as a trace says, and return when the disk was open, the first read and the last done, the longest one, and what failed."""
    with open(trace, encoding="ascii") as file:
        reads = [tuple(int(word) for word in line.split()) for line in file if not line.startswith("#")]
    buffer = memoryview(mmap.mmap(-1, max(length for _, length in reads)))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    told: dict[str, Any] = {"opened": time.monotonic(), "first": 0.0, "longest": 0.0, "errors": [], "checksum": 0}
    try:
        for offset, length in reads:
            started = time.monotonic()
            try:
                got = os.preadv(descriptor, [buffer[:length]], offset)
            except OSError as error:
                told["errors"].append(f"reading {length} bytes at {offset}: {error.strerror}")
                if not skip_errors:
                    break
            else:
                if got != length:
                    told["errors"].append(f"reading {length} bytes at {offset} gave {got}")
                told["checksum"] = zlib.crc32(buffer[:CHECKED], told["checksum"])
            ended = time.monotonic()
            told["first"] = told["first"] or ended
            told["longest"] = max(told["longest"], ended - started)
    finally:
        os.close(descriptor)
    told["done"] = time.monotonic()
    return told


def sequential(path: str, size: int) -> dict[str, Any]:
    """Read the first bytes of a file through the page cache, as dd does."""
    buffer = bytearray(CHUNK)
    descriptor = os.open(path, os.O_RDONLY)
    told: dict[str, Any] = {"opened": time.monotonic(), "first": 0.0, "longest": 0.0, "errors": [], "checksum": 0}
    try:
        left = size
        while left > 0 and (got := os.readv(descriptor, [memoryview(buffer)[: min(left, CHUNK)]])) > 0:
            told["checksum"] = zlib.crc32(memoryview(buffer)[:CHECKED], told["checksum"])
            told["first"] = told["first"] or time.monotonic()
            left -= got
        if left > 0:
            told["errors"].append(f"{path} ends {left} bytes early")
    except OSError as error:
        told["errors"].append(f"reading {path}: {error.strerror}")
    finally:
        os.close(descriptor)
    told["done"] = time.monotonic()
    return told


def main() -> None:
    """Wait to be told what to read, read it, and tell."""
    print("ready", flush=True)
    line = sys.stdin.readline()
    if not line:
        return
    wanted = json.loads(line)
    try:
        if "reads" in wanted:
            told = replay(wanted["path"], wanted["reads"], skip_errors=wanted.get("skip_errors", False))
        else:
            told = sequential(wanted["path"], wanted["sequential"])
    except OSError as error:
        now = time.monotonic()
        told = {"opened": now, "first": now, "longest": 0.0, "errors": [f"opening {wanted['path']}: {error.strerror}"], "checksum": 0, "done": now}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()

"""This module holds the processes that read disks for a measurement, see `tools.reader`, and what they tell."""

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, cast

from tools.node import Failed, ended

TIMEOUT: Final = 900.0


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What a reader tells, times by the monotonic clock: the open, the end of the first read and of the last, the longest read's seconds."""

    opened: float
    first: float
    done: float
    longest: float
    errors: list[str]
    checksum: int
    """Of the first bytes of each read: the same for the same reads of the same disk, whoever serves it."""


class Reader:
    """A reader that waits to be told what to read."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._input, self._output = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)

    def begin_replay(self, path: Path, trace: Path, *, skip_errors: bool = False) -> None:
        """Let it read in the order of a trace."""
        self._say({"path": str(path), "reads": str(trace), "skip_errors": skip_errors})

    def begin_sequential(self, path: Path, size: int) -> None:
        """Let it read the first bytes."""
        self._say({"path": str(path), "sequential": size})

    def told(self, *, may_fail: bool = False) -> Told:
        """Wait until it has read all, and return what it tells. Raises Failed if a read failed, unless it may."""
        line = self._output.readline()
        if not line:
            raise Failed("a reader ended without a word; what it said is above")
        told = Told(**json.loads(line))
        if told.errors and not may_fail:
            raise Failed(f"{len(told.errors)} reads failed, the first: {told.errors[0]}")
        return told

    def is_reading(self) -> bool:
        """Tell whether it has not ended yet."""
        return self._process.poll() is None

    def _say(self, wanted: dict[str, Any]) -> None:
        self._input.write(json.dumps(wanted) + "\n")
        self._input.flush()


@contextlib.contextmanager
def reader() -> Iterator[Reader]:
    """Hold a reader that is ready: what starting it takes is over."""
    words = [sys.executable, "-I", str(Path(__file__).with_name("reader.py"))]
    with (
        ended(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)) as process,
        cast("IO[str]", process.stdin),
        cast("IO[str]", process.stdout) as output,
    ):
        if output.readline().strip() != "ready":
            raise Failed("a reader did not start; what it said is above")
        yield Reader(process)
        if process.poll() is None:
            process.kill()


def replay(path: Path, trace: Path) -> Told:
    """Read in the order of a trace in a process of its own. Raises Failed."""
    with reader() as process:
        process.begin_replay(path, trace)
        return process.told()

"""This module boots the demo's guest with a QEMU command line: until it has ended by itself, or for as long as somebody talks to it."""

import contextlib
import dataclasses
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final, cast

from tools.console import Console
from tools.node import Failed, ended

REPORT: Final = re.compile(r"IMAGEFS-GUEST: boot (?P<boot>\d+), marker lines: (?P<lines>\d+), kernel (?P<kernel>\S+), root (?P<root>[^\s,]+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Boot:
    """One boot of the guest: what it reported, the seconds until then, and the seconds until it had ended."""

    report: str
    number: int
    marker_lines: int
    seconds: float
    seconds_to_end: float


def boot(command: list[str], console: Path, show: Callable[[str], None] = lambda line: None) -> Boot:
    """Run QEMU until the guest ends; its serial console goes to the file `console`, and to `show` line by line.

    Raises Failed, with the end of the console, if the guest ends without a report or does not end within the console's timeout.
    """
    started = time.monotonic()
    with running(command, console, show) as (process, talk):
        found = talk.wait(REPORT)
        seconds = time.monotonic() - started
        end(process, talk)
    return Boot(found[0], int(found["boot"]), int(found["lines"]), seconds, time.monotonic() - started)


@contextlib.contextmanager
def running(
    command: list[str], console: Path, show: Callable[[str], None] = lambda line: None
) -> Iterator[tuple["subprocess.Popen[bytes]", Console]]:
    """Hold a QEMU and its guest's console, both ended when the block ends. What QEMU itself says goes to the console too."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with (
        ended(process),
        cast("IO[bytes]", process.stdin) as heard,
        cast("IO[bytes]", process.stdout) as said,
        Console(os.dup(said.fileno()), os.dup(heard.fileno()), console, show) as talk,
    ):
        yield process, talk


def end(process: "subprocess.Popen[bytes]", talk: Console) -> None:
    """Wait for a guest that is about to end. Raises Failed if it does not, or if QEMU fails."""
    talk.wait_for_end()
    if process.wait() != 0:
        raise Failed(f"QEMU ended with status {process.returncode}: {' '.join(process.args if isinstance(process.args, list) else [])}")

"""This module boots the demo's guest with a QEMU command line until it has reported on its serial console and ended."""

import dataclasses
import os
import re
import selectors
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, cast

from tools.node import Failed, ended

BOOT_TIMEOUT: Final = 300.0
"""Seconds; without hardware virtualisation a boot takes 15 to 30 s on an idle machine."""
REPORT: Final = re.compile(r"IMAGEFS-GUEST: boot (?P<boot>\d+), marker lines: (?P<lines>\d+), kernel (?P<kernel>\S+), root (?P<root>[^\s,]+)")
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|c)")


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

    Raises Failed, with the end of the console, if the guest ends without a report or does not end within BOOT_TIMEOUT.
    """
    started = time.monotonic()
    with console.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        with ended(process), cast("IO[bytes]", process.stdout) as output, selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            found: re.Match[str] | None = None
            seconds = 0.0
            rest = b""
            while selector.select(started + BOOT_TIMEOUT - time.monotonic()):
                body = os.read(output.fileno(), 65536)
                if not body:
                    break
                log.write(body)
                *lines, rest = (rest + body).split(b"\n")
                for line in (_ESCAPES.sub("", raw.decode(errors="replace")).strip() for raw in lines):
                    if line:
                        show(line)
                    if found is None and (found := REPORT.search(line)) is not None:
                        seconds = time.monotonic() - started
            else:
                raise Failed(f"the guest did not end within {BOOT_TIMEOUT:.0f} s; the end of its console:\n{_tail(console)}")
            status = process.wait()
    if found is None or status != 0:
        raise Failed(f"the guest ended without a report, QEMU with status {status}; the end of its console:\n{_tail(console)}")
    return Boot(found[0], int(found["boot"]), int(found["lines"]), seconds, time.monotonic() - started)


def _tail(console: Path) -> str:
    return console.read_text(errors="replace")[-2000:]

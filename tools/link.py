"""This module is a network link to measure over: a relay on loopback with a time to the first byte, a bandwidth, and faults on demand.

It counts what passes, so that a measurement need not believe the program that it measures. The relay is a process of its own
(`tools.relay`), so that relaying takes nothing from the measurement's interpreter.
"""

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast
from urllib.parse import urlsplit

from tools.faults import Counts, Faults


class Link:
    """A running relay to the HTTP server at `upstream`; `delay` in seconds is added to each request, `rate` is in bytes/s towards the clients."""

    def __init__(self, upstream: str, *, delay: float, rate: float) -> None:
        """Start it. Raises RuntimeError if it does not start; what it said is on standard error."""
        target = urlsplit(upstream)
        words = [sys.executable, "-m", "tools.relay", target.hostname or "", str(target.port or 80), str(delay), str(rate)]
        self._process = subprocess.Popen(words, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._commands = cast("IO[bytes]", self._process.stdin)
        self._answers = cast("IO[bytes]", self._process.stdout)
        self._lock = threading.Lock()
        port = self._answers.readline().strip()
        if not port:
            self.stop()
            raise RuntimeError("the link's relay did not start; what it said is above")
        self.endpoint_url = f"http://127.0.0.1:{int(port)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def counts(self) -> Counts:
        """Return what has passed so far."""
        return self._command({})

    @property
    def received(self) -> int:
        """Bytes that went to clients, headers included."""
        return self.counts().received

    @property
    def requests(self) -> int:
        """All requests."""
        return self.counts().requests

    @property
    def data_requests(self) -> int:
        """Requests for an image's data."""
        return self.counts().data_requests

    def faults(self, faults: Faults) -> None:
        """From now on let requests go wrong; `Faults()` is for none."""
        self._command({"faults": dataclasses.asdict(faults)})

    def down(self, seconds: float) -> None:
        """Break all connections, and refuse new ones for so many seconds. Returns at once."""
        self._command({"down": seconds})

    def shape(self, *, delay: float, rate: float) -> None:
        """Change the link's delay and rate."""
        self._command({"delay": delay, "rate": rate})

    def ranges(self) -> list[tuple[str, int, int, bool]]:
        """Return the ranges of data that were asked for since this was last called: path, start, end, and whether all of it has passed."""
        found = self._ask({"ranges": True})["ranges"]
        return [(path, start, end, answered >= end - start) for path, start, end, answered in found]

    def stop(self) -> None:
        """End the relay and all its connections."""
        self._commands.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def _command(self, command: dict[str, Any]) -> Counts:
        return Counts(**self._ask(command))

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._commands.write(json.dumps(command).encode() + b"\n")
            self._commands.flush()
            answer = self._answers.readline()
        if not answer:
            raise RuntimeError("the link's relay has ended; what it said is above")
        said: dict[str, Any] = json.loads(answer)
        return said

"""This module is a guest's serial console: what the guest says on it line by line, and what is said to it."""

import errno
import os
import re
import selectors
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tools.node import Failed

TIMEOUT: Final = 300.0
"""Seconds that a guest may take for what is waited for; without hardware virtualisation a boot takes 15 to 30 s on an idle machine."""
_ESCAPES: Final = re.compile(r"\x1b(?:\[[=?0-9;]*[A-Za-z]|c)")
_TAIL: Final = 2000


class Console:
    """A console that is read from one descriptor and written to another; closing it closes both. Everything read is kept in the file `log`."""

    def __init__(self, reader: int, writer: int, log: Path, show: Callable[[str], None] = lambda line: None) -> None:
        """`show` gets each line that is not empty, without terminal codes."""
        self._reader, self._writer = reader, writer
        self._log = log
        self._file = log.open("wb")
        self._show = show
        self._rest = b""
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()
        for descriptor in {self._reader, self._writer}:
            os.close(descriptor)

    def wait(self, pattern: re.Pattern[str], timeout: float = TIMEOUT) -> re.Match[str]:
        """Return the first match in the lines that no earlier call has passed. Raises Failed if the console ends before, or takes too long."""
        found = self._find(pattern, timeout)
        if found is None:
            raise Failed(f"the guest ended without saying '{pattern.pattern}'{self._tail()}")
        return found

    def wait_for_end(self, timeout: float = TIMEOUT) -> None:
        """Return when nobody has the console's other end any more. Raises Failed if that takes too long."""
        self._find(None, timeout)

    def say(self, line: str) -> None:
        """Type a line."""
        os.write(self._writer, f"{line}\n".encode())

    def _find(self, pattern: re.Pattern[str] | None, timeout: float) -> re.Match[str] | None:
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._reader, selectors.EVENT_READ)
            while True:
                while self._lines:
                    line = self._lines.pop(0)
                    if pattern is not None and (found := pattern.search(line)) is not None:
                        return found
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    waited = f"say '{pattern.pattern}'" if pattern is not None else "end"
                    raise Failed(f"the guest did not {waited} within {timeout:.0f} s{self._tail()}")
                if not self._read():
                    return None

    def _read(self) -> bool:
        """Take what there is to read; return False at the end."""
        try:
            body = os.read(self._reader, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # what a terminal says once its other end is closed
                raise
            body = b""
        self._file.write(body)
        self._file.flush()
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in (_ESCAPES.sub("", raw.decode(errors="replace")).strip() for raw in lines):
            if line:
                self._show(line)
                self._lines.append(line)
        return bool(body)

    def _tail(self) -> str:
        return f"; the end of its console:\n{self._log.read_text(errors='replace')[-_TAIL:]}"

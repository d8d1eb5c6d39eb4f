"""This module sets up the daemon's log: one line for an event, a constant message with key=value, on standard error.

What callers control (names, values) may stand in a line: control and bidirectional characters are escaped, so that no name
can forge a line or move a terminal's cursor. Lines of one kind are limited: a guest that reads a broken block in a loop must not
fill the disk that all guests write to.
"""

import logging
import os
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import Final

_LIBRARIES = ("botocore", "boto3", "urllib3", "s3transfer", "oslo_utils")
"""Their debug lines print headers, and headers hold signatures."""


LIMIT: Final = 30
"""Lines of one kind, that is with one constant message, in a period."""
PERIOD: Final = 60.0
"""Seconds."""
KINDS: Final = 1000
"""Kinds that are told apart; libraries may make up a message for each line."""


class LineFormatter(logging.Formatter):
    """Formats a record as one line, tracebacks apart, with nothing in it that a terminal would obey."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """As logging.Formatter says."""
        return "\n".join(escaped(line) for line in super().format(record).split("\n"))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """As logging.Formatter says; the message itself is one line."""
        record.message = record.message.replace("\n", "\\n")
        return super().formatMessage(record)


class RateLimit(logging.Filter):
    """Lets LIMIT lines of each kind through in a period; the first of the next period says how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that only ever grow."""
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}  # begin of the period, and lines in it

    def filter(self, record: logging.LogRecord) -> bool:
        """As logging.Filter says."""
        now = self._clock()
        if len(self._kinds) >= KINDS:
            self._kinds.clear()
        kind = (record.name, str(record.msg))
        begin, count = self._kinds.get(kind, (now, 0))
        if now - begin >= PERIOD:
            if count > LIMIT:
                record.msg = f"{record.msg} ({count - LIMIT} more like this were left out before)"
            begin, count = now, 0
        self._kinds[kind] = (begin, count + 1)
        return count < LIMIT


def _worth_a_line(record: logging.LogRecord) -> bool:
    """Drop pyfuse3's complaint that an answer found nobody waiting: whoever asked was killed, or the mount is gone."""
    return "fuse_reply_" not in record.msg


def escaped(text: str) -> str:
    """Return `text` with control, format and unassigned characters as backslash escapes."""
    if text.isprintable():  # nearly always, and then in a hundredth of the time
        return text
    return "".join(
        character if unicodedata.category(character)[0] != "C" else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )


def set_up() -> None:
    """Send INFO and above to standard error; with IMAGEFS_DEBUG set in the environment, imagefs's own DEBUG lines too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    handler.addFilter(RateLimit())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    if os.environ.get("IMAGEFS_DEBUG"):
        logging.getLogger("imagefs").setLevel(logging.DEBUG)
    logging.getLogger("pyfuse3").addFilter(_worth_a_line)
    for library in _LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)

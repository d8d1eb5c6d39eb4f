"""Tests of the log's form."""

import logging

from imagefs.log import LIMIT, PERIOD, LineFormatter, RateLimit, escaped


def test_escaped_leaves_text_and_shows_what_a_terminal_would_obey() -> None:
    """Control and bidirectional characters become escapes; letters of any script stay."""
    assert escaped("Grüße 漢字") == "Grüße 漢字"
    assert escaped("a\x1b[31mb\u202ec\udcff") == "a\\x1b[31mb\\u202ec\\udcff"


def test_message_is_one_line() -> None:
    """A newline in a value cannot begin a line of the log."""
    record = logging.LogRecord("imagefs", logging.WARNING, "", 0, "failed name=%s", ("x\n2026-01-01 ERROR forged",), None)
    assert "\n" not in LineFormatter().format(record)


def test_lines_of_one_kind_are_limited() -> None:
    """A request that fails in a loop writes a bounded number of lines a minute, and the next one says how many are missing."""
    now = 0.0
    limit = RateLimit(lambda: now)

    def line(message: str = "a request failed request=%s") -> logging.LogRecord:
        return logging.LogRecord("imagefs.fuse", logging.WARNING, "", 0, message, ("read",), None)

    assert sum(limit.filter(line()) for _ in range(1000)) == LIMIT
    assert limit.filter(line("another kind %s"))
    now = PERIOD
    later = line()
    assert limit.filter(later)
    assert f"({1000 - LIMIT} more" in later.getMessage()
    assert limit.filter(last := line())
    assert "more" not in last.getMessage()

"""Tests of the log's form."""

import logging

from imagefs.log import LineFormatter, escaped


def test_escaped_leaves_text_and_shows_what_a_terminal_would_obey() -> None:
    """Control and bidirectional characters become escapes; letters of any script stay."""
    assert escaped("Grüße 漢字") == "Grüße 漢字"
    assert escaped("a\x1b[31mb\u202ec\udcff") == "a\\x1b[31mb\\u202ec\\udcff"


def test_message_is_one_line() -> None:
    """A newline in a value cannot begin a line of the log."""
    record = logging.LogRecord("imagefs", logging.WARNING, "", 0, "failed name=%s", ("x\n2026-01-01 ERROR forged",), None)
    assert "\n" not in LineFormatter().format(record)

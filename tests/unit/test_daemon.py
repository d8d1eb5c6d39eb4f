"""Tests of what the daemon does on SIGHUP."""

import threading
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs import daemon
from imagefs.config import Config
from imagefs.properties.access import Access


class Stage:
    """The parts that SIGHUP reaches: it notes which rules were put in force."""

    def __init__(self) -> None:
        self.rules: list[Access] = []

    def replace(self, access: Access) -> None:
        self.rules.append(access)

    def rules_changed(self) -> None:
        """The kernel is told."""

    async def look(self) -> None:
        """The store is looked at."""


async def test_the_rules_that_were_read_last_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow reading of rules does not undo one that began after it."""
    readings = [cast("Access", "older"), cast("Access", "newer")]
    begun, release = threading.Event(), threading.Event()

    def load_access(config: Config) -> Access:
        reading = readings.pop(0)
        if readings:
            begun.set()
            release.wait()
        return reading

    monkeypatch.setattr(daemon, "load_access", load_access)
    stage: Any = Stage()
    nothing: Any = None
    reread = daemon._Daemon(*[nothing] * 7)._rereader(stage, stage, stage)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reread)
        await trio.to_thread.run_sync(begun.wait)
        nursery.start_soon(reread)
        for _ in range(20):  # for the second one to come as far as it can
            await wait_all_tasks_blocked(0.001)
        release.set()
    assert stage.rules == ["older", "newer"]

"""Waiting for worker threads, by the real clock: trio's may be a mock."""

import time

import trio

from imagefs import threads
from imagefs.threads import Lane

PATIENCE = 60.0
"""Seconds; threads that should end soon have hung by then."""


async def lane_is_empty(lane: Lane) -> None:
    """Return when no thread of `lane` is at work, abandoned ones included: they hold their place past the end of a test's event loop."""
    deadline = time.monotonic() + PATIENCE
    while threads.busy()[lane.name.lower()]:
        assert time.monotonic() < deadline, f"threads of {lane} do not end"
        await trio.lowlevel.checkpoint()

"""The lanes of worker threads."""

import threading

import pytest
import trio

from imagefs import threads
from imagefs.threads import Lane


def test_lanes_are_not_each_other() -> None:
    """Two lanes with the same number would be one, and one kind of work could starve the other."""
    assert len({lane.value for lane in Lane}) == len(Lane.__members__)


@pytest.mark.parametrize("lane", [Lane.UPLOAD, Lane.PACK])
async def test_the_end_of_work_that_writes_is_waited_for(lane: Lane) -> None:
    """Cancelling whoever waits for an upload returns when its thread has: what it cleans up is cleaned up by then."""
    begun, go = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    ended: list[bool] = []

    def work() -> None:
        token.run_sync_soon(begun.set)
        assert go.wait(30)
        ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run, lane, work)
        await begun.wait()
        assert threads.busy()[lane.name.lower()] == 1
        nursery.cancel_scope.cancel()
        go.set()
    assert ended == [True]
    assert threads.busy()[lane.name.lower()] == 0

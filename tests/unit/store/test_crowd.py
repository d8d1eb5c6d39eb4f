"""Tests of small work for many things at once."""

import threading

import pytest

from imagefs.errors import ImageRefused, NotFound, StoreUnavailable
from imagefs.store.crowd import FIRST, SLOW, SOON, Pace, each, grown, read_each
from imagefs.store.protocol import Listed, StoredRecord
from imagefs.store.record import ImageRecord


def test_everything_is_done_once() -> None:
    """Each thing has its result, in any order."""
    assert dict(each(lambda number: number * 2, range(500))) == {number: number * 2 for number in range(500)}


def test_results_lead_to_more() -> None:
    """What a result asks for is done too."""
    found = dict(grown(lambda number: number - 1, [5, 3], lambda _, left: [left] if left > 2 else []))
    assert found == {5: 4, 4: 3, 3: 2}


def test_what_work_raises_ends_it() -> None:
    """The first error comes out, and what has not begun is not begun."""
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise StoreUnavailable("down")
        return number

    with pytest.raises(StoreUnavailable):
        for _ in each(work, range(10_000)):
            pass
    assert len(begun) < 1000


def test_things_are_done_at_the_same_time() -> None:
    """Two pieces of work that wait for each other both end."""
    meeting = threading.Barrier(2)
    assert sorted(result for _, result in each(lambda _: meeting.wait(10), range(2))) == [0, 1]


def test_a_slow_server_is_asked_less() -> None:
    """Slow answers take the requests at once down to one, quick ones up to the most."""
    pace = Pace(16)
    assert pace.limit == FIRST
    for _ in range(30):
        pace.learn(SLOW * 2)
    assert pace.limit == 1
    for _ in range(30):
        pace.learn(SOON / 2)
    assert pace.limit == 16


def test_records_are_read_one_by_one() -> None:
    """Those that came with the listing are not asked for, those that are gone are left out, those that are damaged come with the reason."""
    record = ImageRecord(id="x", created_at="", updated_at="")

    def read(listed: Listed) -> StoredRecord:
        if listed.image_id == "gone":
            raise NotFound("gone")
        if listed.image_id == "damaged":
            raise ImageRefused("damaged")
        return StoredRecord(record, "read")

    wanted = [Listed("gone", "1"), Listed("damaged", "1"), Listed("there", "1"), Listed("had", "1", stored=StoredRecord(record, "listed"))]
    taken: dict[str, object] = {}
    count = read_each(read, wanted, lambda listed, found: taken.update({listed.image_id: getattr(found, "version", str(found))}))
    assert (count, taken) == (3, {"damaged": "damaged", "there": "read", "had": "listed"})

"""What every Bucket promises, for a directory and for a real S3 server."""

import contextlib
import io
import threading
from collections.abc import Callable

import pytest

from imagefs.errors import Conflict, InvalidInput, NotFound, VersionChanged
from imagefs.store.protocol import Bucket
from imagefs.units import KIB, MIB

NOISE = bytes(range(256)) * (4 * KIB)  # 1 MiB
LARGE = b"".join(bytes([number]) * MIB for number in range(20)) + b"end"


def upload(bucket: Bucket, key: str, body: bytes) -> str:
    return bucket.upload(key, io.BytesIO(body), len(body), lambda _: None)


def test_an_empty_bucket_is_usable_and_lists_nothing(bucket: Bucket) -> None:
    """A new bucket passes its check and has no objects."""
    bucket.check()
    assert list(bucket.list()) == []


def test_what_was_put_is_got_with_the_same_version(bucket: Bucket) -> None:
    """Get returns the bytes and the version that put returned."""
    version = bucket.put("a/record", b"first", None)
    assert bucket.get("a/record") == (b"first", version)


def test_creating_over_an_object_conflicts(bucket: Bucket) -> None:
    """Put with no expected version never replaces an object."""
    bucket.put("a/record", b"first", None)
    with pytest.raises(Conflict, match="another writer"):
        bucket.put("a/record", b"second", None)
    assert bucket.get("a/record")[0] == b"first"


def test_a_put_with_the_present_version_replaces(bucket: Bucket) -> None:
    """Put with the present version writes and gives a new version."""
    first = bucket.put("a/record", b"one", None)
    second = bucket.put("a/record", b"two", first)
    assert second != first
    assert bucket.get("a/record") == (b"two", second)


def test_a_put_with_an_old_version_conflicts(bucket: Bucket) -> None:
    """Put with a version that was replaced changes nothing."""
    first = bucket.put("a/record", b"one", None)
    bucket.put("a/record", b"two", first)
    with pytest.raises(Conflict):
        bucket.put("a/record", b"three", first)
    assert bucket.get("a/record")[0] == b"two"


def test_a_put_over_a_deleted_object_conflicts(bucket: Bucket) -> None:
    """Put with a version does not bring back an object that was deleted meanwhile."""
    first = bucket.put("a/record", b"one", None)
    bucket.delete("a/record")
    with pytest.raises(Conflict):
        bucket.put("a/record", b"two", first)
    with pytest.raises(NotFound):
        bucket.get("a/record")


def test_of_many_writers_with_one_version_one_wins(bucket: Bucket) -> None:
    """Eight writers that all expect the same version: exactly one writes."""
    version = bucket.put("a/record", b"start", None)
    won: list[int] = []

    def write(number: int) -> None:
        try:
            bucket.put("a/record", b"writer %d" % number, version)
        except Conflict:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert bucket.get("a/record")[0] == b"writer %d" % won[0]


def test_the_listing_has_every_object_with_its_size_and_version(bucket: Bucket) -> None:
    """List gives keys below the prefix, sizes, the versions that get and open give, and modification times."""
    versions = {"a/record": bucket.put("a/record", b"12345", None), "a/data": upload(bucket, "a/data", NOISE), "top": bucket.put("top", b"", None)}
    listed = {entry.key: entry for entry in bucket.list()}
    assert {key: entry.version for key, entry in listed.items()} == versions
    assert {key: entry.size for key, entry in listed.items()} == {"a/record": 5, "a/data": MIB, "top": 0}
    assert min(entry.modified for entry in listed.values()) > 1_700_000_000


def test_what_is_not_there_is_not_found(bucket: Bucket) -> None:
    """get, peek and open of a missing object raise NotFound."""
    requests: tuple[Callable[[], object], ...] = (
        lambda: bucket.get("a/none"),
        lambda: bucket.peek("a/none", 0, 1),
        lambda: bucket.open("a/none"),
    )
    for ask in requests:
        with pytest.raises(NotFound):
            ask()


def test_delete_removes_and_may_be_repeated(bucket: Bucket) -> None:
    """Delete removes the object; deleting nothing is no error."""
    bucket.put("a/record", b"one", None)
    bucket.put("a/other", b"two", None)
    bucket.delete("a/record")
    bucket.delete("a/record")
    bucket.delete("never/was")
    assert [entry.key for entry in bucket.list()] == ["a/other"]


def test_peek_returns_a_range_cut_at_the_end(bucket: Bucket) -> None:
    """Peek returns the bytes asked for, fewer at the end and none past it."""
    bucket.put("a/record", b"0123456789", None)
    assert bucket.peek("a/record", 2, 3) == b"234"
    assert bucket.peek("a/record", 8, 10) == b"89"
    assert bucket.peek("a/record", 10, 10) == b""
    assert bucket.peek("a/record", 3, 0) == b""


@pytest.mark.parametrize("body", [b"", b"x", NOISE, LARGE], ids=["empty", "one", "1 MiB", "20 MiB"])
def test_an_uploaded_object_streams_back(bucket: Bucket, body: bytes) -> None:
    """Upload stores exactly the bytes, tells the progress, and returns the version that open pins; parts make no difference."""
    moved: list[int] = []
    version = bucket.upload("a/data", io.BytesIO(body), len(body), moved.append)
    found = bucket.open("a/data")
    assert (found.size, found.version) == (len(body), version)
    assert b"".join(found.stream(0, len(body))) == body
    assert sum(moved) == len(body)


def test_any_range_streams(bucket: Bucket) -> None:
    """Stream gives exactly [offset, offset + length), cut at the end, and nothing past it."""
    upload(bucket, "a/data", NOISE)
    found = bucket.open("a/data")
    for offset, length in ((0, 1), (1, 255), (65535, 2), (MIB - 5, 100), (300_000, 600_000)):
        assert b"".join(found.stream(offset, length)) == NOISE[offset : offset + length]
    assert list(found.stream(MIB, 10)) == []
    assert list(found.stream(5, 0)) == []


def test_a_stream_may_be_left_early_and_read_again(bucket: Bucket) -> None:
    """A generator closed in the middle does not disturb the next read."""
    upload(bucket, "a/data", NOISE)
    found = bucket.open("a/data")
    stream = found.stream(0, MIB)
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # every stream is a generator
    assert b"".join(found.stream(100, 100)) == NOISE[100:200]


def test_an_upload_replaces_and_the_old_version_is_refused(bucket: Bucket) -> None:
    """After the object was replaced, a DataObject of the old version gives VersionChanged, never new bytes."""
    upload(bucket, "a/data", NOISE)
    old = bucket.open("a/data")
    upload(bucket, "a/data", NOISE[::-1])
    with pytest.raises(VersionChanged):
        list(old.stream(0, 100))
    assert b"".join(bucket.open("a/data").stream(0, MIB)) == NOISE[::-1]


def test_a_replacement_during_a_stream_is_noticed_or_harmless(bucket: Bucket) -> None:
    """Replacing the object under a running stream never mixes bytes of two versions."""
    upload(bucket, "a/data", LARGE)
    stream = bucket.open("a/data").stream(0, len(LARGE))
    read = [next(stream)]
    upload(bucket, "a/data", LARGE[::-1])
    with contextlib.suppress(VersionChanged):
        read.extend(stream)
    whole = b"".join(read)
    assert whole == LARGE[: len(whole)]


def test_a_source_that_ends_early_leaves_nothing(bucket: Bucket) -> None:
    """An upload of fewer bytes than announced fails and stores no object."""
    with pytest.raises(InvalidInput, match="ended after 100 of 200 bytes"):
        bucket.upload("a/data", io.BytesIO(bytes(100)), 200, lambda _: None)
    assert list(bucket.list()) == []


class Bomb(io.RawIOBase):
    """A source whose second megabyte raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.left = 10 * MIB

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.left == 0:
            raise self.error
        size = min(size if size >= 0 else MIB, self.left)
        self.left -= size
        return b"x" * size


@pytest.mark.parametrize("error", [RuntimeError("bang"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_upload_that_is_broken_off_leaves_nothing(bucket: Bucket, error: BaseException) -> None:
    """Whatever the source raises ends the upload with no object, also in the second part."""
    with pytest.raises(type(error)):
        bucket.upload("a/data", Bomb(error), 30 * MIB, lambda _: None)  # type: ignore[arg-type]  # a RawIOBase is a BinaryIO in all that is used
    assert list(bucket.list()) == []


def test_versions_of_equal_bodies_written_in_turn_differ_or_are_equal_bodies(bucket: Bucket) -> None:
    """A version names one body: two versions that are equal have equal bodies."""
    versions: dict[str, bytes] = {}
    version = bucket.put("a/record", b"body 0", None)
    versions[version] = b"body 0"
    for number in range(1, 30):
        body = b"body %d" % (number % 10)
        version = bucket.put("a/record", body, version)
        assert versions.setdefault(version, body) == body

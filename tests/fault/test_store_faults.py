"""What a store does when the network, the server, the disk or the configuration fails."""

import contextlib
import io
import itertools
import logging
import shutil
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagefs.errors import (
    ConfigError,
    Conflict,
    InvalidInput,
    NoSpace,
    NotFound,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    VersionChanged,
)
from imagefs.store.factory import open_store
from imagefs.store.file import Directory
from imagefs.store.layout import ImagefsLayout
from imagefs.store.options import S3Options
from imagefs.store.record import ImageRecord
from imagefs.store.retry import SmallRetry
from imagefs.store.s3 import S3Bucket
from imagefs.store.s3_connector import Timeouts
from imagefs.units import MIB
from tests.support.s3proxy import Fault, FaultProxy, random_faults
from tests.support.seaweed import Seaweed
from tests.support.sources import given

BODY = bytes(range(256)) * 4096  # 1 MiB
KEY = "image/data"
ID = "11111111-2222-4333-8444-555555555555"
QUICK = Timeouts(connect=2.0, read=0.5)


def s3_bucket(endpoint: str, prefix: str | None = None, bucket: str = "images", **options: str) -> S3Bucket:
    """Return a bucket that waits for nothing long."""
    retry = SmallRetry(sleep=lambda _: None, chance=lambda: 0.0)
    return S3Bucket(bucket, prefix or f"fault-{uuid.uuid4()}", S3Options(endpoint_url=endpoint, **options), timeouts=QUICK, retry=retry)


@pytest.fixture
def behind(s3_proxy: FaultProxy) -> S3Bucket:
    """A bucket that is reached through the fault proxy, with one object of 1 MiB."""
    bucket = s3_bucket(s3_proxy.endpoint_url)
    bucket.upload(KEY, io.BytesIO(BODY), len(BODY), lambda _: None)
    s3_proxy.clear()
    return bucket


pytestmark = pytest.mark.s3


# Reading image data over S3


@pytest.mark.parametrize("after", [0, 100_000])
@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE, Fault.STALL, Fault.UNAVAILABLE])
def test_a_broken_answer_is_unavailable_and_gives_no_wrong_byte(behind: S3Bucket, s3_proxy: FaultProxy, fault: Fault, after: int) -> None:
    """Whatever breaks the answer, stream raises StoreUnavailable, what came before is right, and the next read works."""
    data = behind.open(KEY)
    s3_proxy.add(fault, method="GET", after=after)
    read: list[bytes] = []
    with pytest.raises(StoreUnavailable, match=r"s3://images/fault-.*/image/data"):
        read.extend(data.stream(1000, 500_000))
    got = b"".join(read)
    assert got == BODY[1000 : 1000 + len(got)]
    assert len(got) <= after
    assert b"".join(data.stream(1000, 500_000)) == BODY[1000:501_000]


def test_a_read_is_tried_once(behind: S3Bucket, s3_proxy: FaultProxy) -> None:
    """Stream sends one GET for one call, whatever happens: retrying ranges belongs to the layer above."""
    data = behind.open(KEY)
    s3_proxy.clear()
    s3_proxy.add(Fault.UNAVAILABLE, times=None)
    with pytest.raises(StoreUnavailable):
        list(data.stream(0, 10))
    assert len(s3_proxy.requests) == 1


def test_another_etag_in_the_answer_is_another_version(behind: S3Bucket, s3_proxy: FaultProxy) -> None:
    """A server that ignores If-Match is caught by the ETag of its answer."""
    data = behind.open(KEY)
    s3_proxy.add(Fault.WRONG_ETAG, method="GET")
    with pytest.raises(VersionChanged):
        list(data.stream(0, 10))


def test_an_object_overwritten_or_deleted_is_noticed(behind: S3Bucket) -> None:
    """An overwritten object is VersionChanged, a deleted one NotFound."""
    data = behind.open(KEY)
    behind.upload(KEY, io.BytesIO(b"short"), 5, lambda _: None)
    with pytest.raises(VersionChanged):
        list(data.stream(0, 10))
    behind.delete(KEY)
    with pytest.raises(NotFound):
        list(data.stream(0, 10))


def test_a_403_signs_again_once(behind: S3Bucket, s3_proxy: FaultProxy) -> None:
    """One 403 is an expired signature, and goes unnoticed; two are a refusal."""
    data = behind.open(KEY)
    s3_proxy.add(Fault.FORBIDDEN, method="GET")
    assert b"".join(data.stream(0, 10)) == BODY[:10]
    s3_proxy.add(Fault.FORBIDDEN, method="GET", times=2)
    with pytest.raises(StoreRefused, match="access denied"):
        list(data.stream(0, 10))


def test_a_server_that_is_gone_is_unavailable_by_name(aws_keys: Seaweed) -> None:
    """A refused connection is StoreUnavailable, for data and for small requests, which name the endpoint."""
    with FaultProxy(aws_keys.endpoint_url) as proxy:
        bucket = s3_bucket(proxy.endpoint_url)
        bucket.upload(KEY, io.BytesIO(BODY), len(BODY), lambda _: None)
        data = bucket.open(KEY)
    with pytest.raises(StoreUnavailable, match="no connection"):
        list(data.stream(0, 10))
    with pytest.raises(StoreUnavailable, match=proxy.endpoint_url):
        bucket.check()


def test_a_fifth_of_all_reads_failing_gives_errors_and_no_wrong_byte(behind: S3Bucket, s3_proxy: FaultProxy) -> None:
    """Under random faults each stream either gives all of the right bytes or raises StoreUnavailable."""
    data = behind.open(KEY)
    s3_proxy.set_plan(random_faults(rate=0.2, seed=7))
    failed = 0
    for number in range(100):
        offset = number * 9973 % (MIB - 65536)
        try:
            assert b"".join(data.stream(offset, 65536)) == BODY[offset : offset + 65536]
        except StoreUnavailable:
            failed += 1
    assert failed == s3_proxy.injected > 5


# Small requests over S3


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE, Fault.UNAVAILABLE, Fault.STALL, Fault.LOST_ANSWER])
def test_small_requests_survive_a_fault(behind: S3Bucket, s3_proxy: FaultProxy, fault: Fault) -> None:
    """Get, peek, open, list, delete and check are tried again after one fault."""
    behind.put("image/record", b"record", None)
    requests: tuple[tuple[Callable[[], object], object], ...] = (
        (lambda: behind.get("image/record")[0], b"record"),
        (lambda: behind.peek("image/record", 2, 2), b"co"),
        (lambda: {entry.key for entry in behind.list()}, {KEY, "image/record"}),
        (behind.check, None),
    )
    for ask, right in requests:
        s3_proxy.add(fault)
        assert ask() == right
    if fault not in (Fault.STALL, Fault.TRUNCATE):  # they have no body to break
        s3_proxy.add(fault)
        assert behind.open(KEY).size == MIB
        s3_proxy.add(fault)
        behind.delete("image/record")
    assert s3_proxy.injected >= 4


@pytest.mark.parametrize("after", [0, 40, 200])
def test_a_listing_that_breaks_is_never_a_shorter_listing(behind: S3Bucket, s3_proxy: FaultProxy, after: int) -> None:
    """Wherever every answer to a listing is cut, list raises: images must not seem to be gone."""
    s3_proxy.add(Fault.TRUNCATE, after=after, times=None)
    with pytest.raises(StoreUnavailable):
        list(behind.list())
    assert s3_proxy.injected == 5


def test_small_requests_give_up_after_five_tries(behind: S3Bucket, s3_proxy: FaultProxy) -> None:
    """A server that stays busy is StoreUnavailable after five requests: botocore adds none of its own."""
    s3_proxy.add(Fault.UNAVAILABLE, times=None)
    with pytest.raises(StoreUnavailable, match="busy or failing"):
        behind.get(KEY)
    assert len(s3_proxy.requests) == 5


@pytest.mark.parametrize("fault", [Fault.LOST_ANSWER, Fault.RESET, Fault.TRUNCATE, Fault.UNAVAILABLE, Fault.STALL])
def test_a_conditional_write_survives_a_fault(behind: S3Bucket, s3_proxy: FaultProxy, fault: Fault) -> None:
    """Whether the server wrote before the fault or not, put returns the version of its own write."""
    s3_proxy.add(fault, method="PUT")
    first = behind.put("image/record", b"one", None)
    assert behind.get("image/record") == (b"one", first)
    s3_proxy.add(fault, method="PUT")
    second = behind.put("image/record", b"two", first)
    assert behind.get("image/record") == (b"two", second)


def test_a_lost_answer_does_not_hide_another_writer(behind: S3Bucket, s3_proxy: FaultProxy) -> None:
    """If another writer wrote the very same bytes, a writer whose request never arrived still loses."""
    first = behind.put("image/record", b"one", None)
    behind.put("image/record", b"two", first)
    s3_proxy.add(Fault.UNAVAILABLE, method="PUT")
    with pytest.raises(Conflict):
        behind.put("image/record", b"two", first)


def test_a_write_that_is_never_confirmed_is_unavailable(behind: S3Bucket, s3_proxy: FaultProxy) -> None:
    """If not even the look whether it was written succeeds, put says that it does not know."""
    s3_proxy.add(Fault.LOST_ANSWER, times=None)
    with pytest.raises(StoreUnavailable):
        behind.put("image/record", b"one", None)


def test_an_upload_survives_faults_in_its_parts(behind: S3Bucket, s3_proxy: FaultProxy) -> None:
    """Parts that fail are sent again, and the object is whole."""
    body = BODY * 20
    for fault in (Fault.UNAVAILABLE, Fault.RESET):
        s3_proxy.add(fault, method="PUT", contains="partNumber=2")
    behind.upload("image/large", io.BytesIO(body), len(body), lambda _: None)
    assert s3_proxy.injected == 2
    assert b"".join(behind.open("image/large").stream(0, len(body))) == body


def test_an_upload_that_gets_an_empty_answer_is_unavailable(behind: S3Bucket, s3_proxy: FaultProxy) -> None:
    """An answer to the start of an upload that broke before its first byte is StoreUnavailable."""
    s3_proxy.add(Fault.TRUNCATE, method="POST", contains="uploads", times=None)
    with pytest.raises(StoreUnavailable, match="empty answer"):
        behind.upload("image/large", io.BytesIO(BODY * 20), 20 * MIB, lambda _: None)


class Failing(io.BytesIO):
    """A source whose last read raises."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= 16 * MIB:
            raise RuntimeError("bang")
        return super().read(size)


def test_an_upload_that_is_broken_off_leaves_no_parts(behind: S3Bucket, aws_keys: Seaweed) -> None:
    """A multipart upload that fails is aborted at the server."""
    with pytest.raises(RuntimeError):
        behind.upload("image/broken", Failing(bytes(20 * MIB)), 20 * MIB, lambda _: None)
    uploads = aws_keys.client().list_multipart_uploads(Bucket="images")
    assert [found for found in uploads.get("Uploads", []) if found["Key"].endswith("image/broken")] == []


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("at", [1, 20 * MIB], ids=["first", "last"])
def test_an_upload_whose_progress_breaks_it_off_leaves_nothing(behind: S3Bucket, aws_keys: Seaweed, error: BaseException, at: int) -> None:
    """Neither object nor parts, also when all was sent; no part is sent again because of it."""
    told: list[int] = []
    lock = threading.Lock()

    def stop(count: int) -> None:
        with lock:
            told.append(count)
            if sum(told) >= at:
                raise error

    with pytest.raises(type(error)):
        behind.upload("image/stopped", io.BytesIO(bytes(20 * MIB)), 20 * MIB, stop)
    assert at <= sum(told) <= 20 * MIB
    with pytest.raises(NotFound):
        behind.open("image/stopped")
    uploads = aws_keys.client().list_multipart_uploads(Bucket="images")
    assert [found for found in uploads.get("Uploads", []) if found["Key"].endswith("image/stopped")] == []


def test_content_that_cannot_be_made_while_the_store_is_away_is_told_as_it_is(behind: S3Bucket, s3_proxy: FaultProxy) -> None:
    """What making the content raises comes out, not that the queued image could not be removed; whoever asks next may remove it."""
    layout = ImagefsLayout(behind)

    def content() -> tuple[io.BytesIO, int]:
        s3_proxy.add(Fault.FORBIDDEN, times=None)
        raise NoSpace("no room for it")

    with pytest.raises(NoSpace, match="no room for it"):
        layout.create(ImageRecord(id=ID, created_at="", updated_at=""), content, lambda _: None)
    s3_proxy.clear()
    assert layout.find(ID).record.status == "queued"
    layout.delete(ID)
    assert [entry.key for entry in behind.list()] == [KEY]


@pytest.mark.parametrize("target", ["/data", "/digests"])
def test_a_creation_that_the_store_fails_leaves_nothing(behind: S3Bucket, s3_proxy: FaultProxy, target: str) -> None:
    """If the upload of data or digests is refused, the image is not there afterwards."""
    layout = ImagefsLayout(behind)
    s3_proxy.add(Fault.FORBIDDEN, method="PUT", contains=f"{ID}{target}", times=None)
    with pytest.raises(StoreRefused):
        layout.create(ImageRecord(id=ID, created_at="", updated_at=""), given(b"body"), lambda _: None)
    assert [entry.key for entry in behind.list()] == [KEY]


@pytest.mark.parametrize("number", range(4))
def test_a_creation_survives_each_lost_answer(behind: S3Bucket, s3_proxy: FaultProxy, number: int) -> None:
    """Whichever PUT of a creation loses its answer, the image is created once and whole."""
    layout = ImagefsLayout(behind)
    puts = itertools.count()
    s3_proxy.set_plan(lambda request: (Fault.LOST_ANSWER, 0) if request.method == "PUT" and next(puts) == number else None)
    made = layout.create(ImageRecord(id=ID, created_at="", updated_at=""), given(b"body"), lambda _: None)
    assert s3_proxy.injected == 1
    assert layout.find(ID) == made
    assert made.record.status == "active"


# What an operator may have got wrong


def test_a_bucket_that_does_not_exist_is_named(aws_keys: Seaweed) -> None:
    """A missing bucket is NotFound with the bucket, the endpoint and what to do."""
    bucket = s3_bucket(aws_keys.endpoint_url, bucket="no-such-bucket")
    with pytest.raises(NotFound, match=f"bucket 'no-such-bucket' does not exist at {aws_keys.endpoint_url}: create it or mend"):
        bucket.check()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AWS_ACCESS_KEY_ID", "unknown-key", "refuses the AWS credentials .InvalidAccessKeyId."),
        ("AWS_SECRET_ACCESS_KEY", "wrong-secret-canary", "refuses the AWS credentials .SignatureDoesNotMatch."),
        ("AWS_ACCESS_KEY_ID", "", "no AWS credentials"),
    ],
    ids=["key", "secret", "none"],
)
def test_wrong_credentials_are_refused_in_words(aws_keys: Seaweed, monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str) -> None:
    """Credentials that are wrong or missing are StoreRefused, at once and without a secret in the message."""
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreRefused, match=reason) as caught:
        s3_bucket(aws_keys.endpoint_url).check()
    assert "canary" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_credentials_that_may_only_read_are_refused_a_write(aws_keys: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Access denied is StoreRefused and says what to give."""
    for name, value in aws_keys.environment(reader=True).items():
        monkeypatch.setenv(name, value)
    bucket = s3_bucket(aws_keys.endpoint_url)
    bucket.check()
    with pytest.raises(StoreRefused, match=r"denies access \(AccessDenied\): give these credentials permission on bucket 'images'"):
        bucket.put("a", b"x", None)
    with pytest.raises(StoreRefused, match="denies access"):
        bucket.upload("a", io.BytesIO(b"x"), 1, lambda _: None)


@pytest.mark.parametrize(
    "options",
    [{"endpoint_url": "no url"}, {"ca_bundle": "/does/not/exist.pem"}, {"profile": "no-such-profile"}, {"region": "not a region!"}],
    ids=["endpoint", "ca_bundle", "profile", "region"],
)
def test_options_that_cannot_be_right_are_mistakes_in_the_configuration(aws_keys: Seaweed, options: dict[str, str]) -> None:
    """A wrong option is ConfigError on one line, before anything is sent."""
    with pytest.raises(ConfigError) as caught:
        open_store("s3://images", s3=S3Options(**{"endpoint_url": aws_keys.endpoint_url, **options}))
    assert next(iter(options.values())) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_secret_reaches_a_message_or_a_log(behind: S3Bucket, s3_proxy: FaultProxy, aws_keys: Seaweed, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the secret key nor a signature stands in any error, cause of an error or log line, at DEBUG either."""
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    data = behind.open(KEY)
    for fault in (Fault.RESET, Fault.STALL, Fault.TRUNCATE, Fault.UNAVAILABLE, Fault.WRONG_ETAG, Fault.FORBIDDEN):
        s3_proxy.add(fault, times=2)
        try:
            list(data.stream(0, 1000))
            list(data.stream(0, 1000))
        except StoreError as error:
            told += [str(error), repr(error.__cause__)]
        s3_proxy.clear()
    behind.put("record", b"x", None)
    said = "\n".join(told) + caplog.text
    assert len(told) == 12
    for secret in (aws_keys.secret_key, "Signature", "X-Amz"):
        assert secret not in said


def test_all_traffic_comes_from_the_source_address(s3_proxy: FaultProxy) -> None:
    """Small requests, uploads and data all come from the configured local address."""
    bucket = S3Bucket("images", f"source-{uuid.uuid4()}", S3Options(endpoint_url=s3_proxy.endpoint_url), source_address="127.0.0.2")
    bucket.upload(KEY, io.BytesIO(BODY), len(BODY), lambda _: None)
    bucket.put("record", b"x", None)
    assert b"".join(bucket.open(KEY).stream(0, 10)) == BODY[:10]
    assert {request.method for request in s3_proxy.requests} == {"GET", "HEAD", "PUT"}
    assert {request.client_address for request in s3_proxy.requests} == {"127.0.0.2"}


def test_connections_are_used_again(behind: S3Bucket, s3_proxy: FaultProxy) -> None:
    """Reads one after the other go over one connection, also when a consumer takes exactly the bytes it needs and no more."""
    data = behind.open(KEY)
    for offset in range(5):
        next(iter(data.stream(offset, 100)))
        assert b"".join(data.stream(offset, 300_000)) == BODY[offset : offset + 300_000]
    pool = behind._pool.connection_from_url(s3_proxy.endpoint_url)
    assert pool.num_connections == 1


# Directories


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 4 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "imagefs-test", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def test_a_full_disk_is_no_space_and_leaves_nothing(small_disk: Path) -> None:
    """An upload and a put into a full filesystem raise NoSpace, and no unfinished file stays."""
    bucket = Directory(small_disk)
    with pytest.raises(NoSpace, match="make room"):
        bucket.upload("image/data", io.BytesIO(BODY * 8), 8 * MIB, lambda _: None)
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == []
    with pytest.raises(NoSpace):
        bucket.put("image/record", BODY * 8, None)
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == [".lock"]


def test_a_creation_on_a_full_disk_leaves_no_image(small_disk: Path) -> None:
    """The record of an image that did not fit is gone, and so is its directory."""
    layout = ImagefsLayout(Directory(small_disk))
    with pytest.raises(NoSpace):
        layout.create(ImageRecord(id=ID, created_at="", updated_at=""), given(io.BytesIO(BODY * 8), 8 * MIB), lambda _: None)
    assert list(small_disk.iterdir()) == []


def test_a_store_directory_that_vanished_is_unavailable_not_empty(tmp_path: Path) -> None:
    """A store whose filesystem is not mounted is StoreUnavailable, so that nobody takes its images for deleted."""
    bucket = Directory(tmp_path / "store", create=True)
    bucket.check()
    bucket.put("image/record", b"x", None)
    shutil.rmtree(tmp_path / "store")
    requests: tuple[Callable[[], object], ...] = (
        lambda: list(bucket.list()),
        lambda: bucket.get("image/record"),
        lambda: bucket.open("image/record"),
    )
    for ask in requests:
        with pytest.raises(StoreUnavailable, match="mounted"):
            ask()
    with pytest.raises(StoreUnavailable):
        bucket.put("image/record", b"x", None)


def test_a_file_changed_in_place_is_noticed_before_its_bytes_are_given(file_bucket: Directory) -> None:
    """Writing into the file under a running stream ends it with VersionChanged."""
    file_bucket.upload(KEY, io.BytesIO(BODY), MIB, lambda _: None)
    data = file_bucket.open(KEY)
    stream = data.stream(0, MIB)
    first = next(stream)
    with (file_bucket.root / KEY).open("r+b") as file:
        file.write(b"changed")
    with pytest.raises(VersionChanged):
        list(stream)
    assert first == BODY[: len(first)]


def test_a_lock_that_another_holds_for_long_is_unavailable(file_bucket: Directory) -> None:
    """A writer gives up when another one holds the lock for ten seconds."""
    now = itertools.count()
    impatient = Directory(file_bucket.root, sleep=lambda _: None, clock=lambda: float(next(now)))
    version = file_bucket.put("image/record", b"x", None)
    with file_bucket._parent("image/record") as (directory, _), file_bucket._locked(directory), pytest.raises(StoreUnavailable, match="lock"):
        impatient.put("image/record", b"y", version)


def test_writers_survive_the_removal_of_their_directory(file_bucket: Directory) -> None:
    """Writers that create while others delete the last object of the directory all succeed or lose properly, and no write is lost."""
    wins = 0
    stop = threading.Event()

    def delete() -> None:
        while not stop.is_set():
            file_bucket.delete("image/record")

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        for _ in range(200):
            with contextlib.suppress(Conflict):
                file_bucket.put("image/record", b"x", None)
                wins += 1
    finally:
        stop.set()
        thread.join()
    assert wins > 0
    file_bucket.delete("image/record")
    assert list(file_bucket.root.iterdir()) == []


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_store(file_bucket: Directory) -> None:
    """An I/O error of the source is InvalidInput that says where, not an error of the store."""

    class Unreadable(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(InvalidInput, match="source cannot be read at byte 0"):
        ImagefsLayout(file_bucket).create(ImageRecord(id=ID, created_at="", updated_at=""), given(Unreadable(), 10), lambda _: None)
    assert list(file_bucket.list()) == []

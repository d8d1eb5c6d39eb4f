"""Listing and reading many objects of a real S3 server at once, in which single requests go wrong: all comes right by the longer way."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from imagefs.errors import StoreRefused, StoreUnavailable
from imagefs.store.options import S3Options
from imagefs.store.retry import SmallRetry
from imagefs.store.s3 import S3Bucket
from imagefs.store.s3_connector import Timeouts
from tests.support.s3proxy import Fault, FaultProxy, Request
from tests.support.seaweed import Seaweed

pytestmark = pytest.mark.s3

QUICK = Timeouts(connect=2.0, read=1.0)
STARTS = "0123456789abcdef"
COUNT = 1100
"""More than a page of a listing has."""


def bucket_at(endpoint: str, prefix: str) -> S3Bucket:
    """Return a bucket that waits for nothing long."""
    retry = SmallRetry(sleep=lambda _: None, chance=lambda: 0.0)
    return S3Bucket("images", prefix, S3Options(endpoint_url=endpoint), timeouts=QUICK, retry=retry)


@pytest.fixture(scope="module")
def prefix(seaweed: Seaweed) -> str:
    """Where the objects are: COUNT of them, of all beginnings, and some that are not wanted."""
    made = f"fleet-{uuid.uuid4()}"
    client = seaweed.client()

    def put(number: int) -> None:
        key = f"{made}/{STARTS[number % 16]}{number} +%/record"
        client.put_object(Bucket="images", Key=key, Body=f"body {number}".encode() * 20)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(COUNT)))
    for other in (".hidden/record", "x1/record", "a1/other"):
        client.put_object(Bucket="images", Key=f"{made}/{other}", Body=b"other")
    return made


def keys() -> set[str]:
    """Return the keys that are wanted."""
    return {f"{STARTS[number % 16]}{number} +%/record" for number in range(COUNT)}


def contents() -> dict[str, bytes]:
    """Return what is in the objects."""
    return {f"{STARTS[number % 16]}{number} +%/record": f"body {number}".encode() * 20 for number in range(COUNT)}


def is_long_way(request: Request) -> bool:
    """Tell whether botocore has sent a request."""
    return "boto" in {name.lower(): value for name, value in request.headers.items()}.get("user-agent", "").lower()


@pytest.mark.parametrize("gently", [False, True])
def test_a_listing_of_several_pages_is_whole(prefix: str, s3_proxy: FaultProxy, gently: bool) -> None:
    """Each key comes once, with the ETag that a GET gives, and what is not wanted does not come."""
    bucket = bucket_at(s3_proxy.endpoint_url, prefix)
    found = list(bucket.list_below(STARTS, "/record", gently))
    assert len(found) == COUNT
    listed = dict(found)
    assert listed.keys() == keys()
    key = next(iter(listed))
    assert bucket.get(key)[1] == listed[key]
    assert not any(is_long_way(request) for request in s3_proxy.requests[:-1])


@pytest.mark.parametrize(
    "fault", [Fault.RESET, Fault.TRUNCATE, Fault.STALL, Fault.UNAVAILABLE, Fault.FORBIDDEN, Fault.REDIRECT, Fault.GARBAGE, Fault.EMPTY]
)
def test_a_page_that_fails_is_asked_for_again(prefix: str, s3_proxy: FaultProxy, fault: Fault) -> None:
    """Whatever becomes of one page in the middle, the listing is whole."""
    bucket = bucket_at(s3_proxy.endpoint_url, prefix)
    s3_proxy.add(fault, method="GET", contains="/7", after=2000)
    assert dict(bucket.list_below(STARTS, "/record")).keys() == keys()
    assert s3_proxy.injected == 1


@pytest.mark.parametrize(("fault", "error"), [(Fault.UNAVAILABLE, StoreUnavailable), (Fault.FORBIDDEN, StoreRefused)])
def test_a_page_that_never_comes_ends_the_listing(prefix: str, s3_proxy: FaultProxy, fault: Fault, error: type[Exception]) -> None:
    """A listing that is not whole is an error that says what is wrong, never a shorter listing."""
    bucket = bucket_at(s3_proxy.endpoint_url, prefix)
    s3_proxy.add(fault, method="GET", contains="/7", times=None)
    with pytest.raises(error, match="listing s3://images/fleet-"):
        list(bucket.list_below(STARTS, "/record"))


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE, Fault.UNAVAILABLE, Fault.FORBIDDEN, Fault.REDIRECT, Fault.EMPTY, Fault.LOST_ANSWER])
def test_an_object_that_fails_is_read_again(prefix: str, s3_proxy: FaultProxy, fault: Fault) -> None:
    """Whatever becomes of one object's answer, each object comes once, and is what it is."""
    bucket = bucket_at(s3_proxy.endpoint_url, prefix)
    s3_proxy.add(fault, method="GET", contains="/a10 ", after=20)
    found: list[tuple[str, bytes]] = []
    bucket.get_many(sorted(keys()), lambda key, body, version: found.append((key, body)))
    assert len(found) == COUNT
    assert dict(found) == contents()
    assert s3_proxy.injected == 1
    assert sum(is_long_way(request) for request in s3_proxy.requests) <= 2


def test_objects_that_are_gone_are_left_out(prefix: str, s3_proxy: FaultProxy) -> None:
    """Of twenty keys of which some have no object, the others come."""
    bucket = bucket_at(s3_proxy.endpoint_url, prefix)
    wanted = sorted(keys())[:20]
    found: dict[str, bytes] = {}
    bucket.get_many([*wanted, "gone/record", "also/gone"], lambda key, body, version: found.update({key: body}))
    assert found == {key: contents()[key] for key in wanted}


def test_a_store_that_denies_reading_says_so(prefix: str, s3_proxy: FaultProxy) -> None:
    """Hundreds of objects that may not be read are one error, soon, and not hundreds of retries."""
    bucket = bucket_at(s3_proxy.endpoint_url, prefix)
    s3_proxy.add(Fault.FORBIDDEN, method="GET", contains="/record", times=None)
    with pytest.raises(StoreRefused, match="denies access"):
        bucket.get_many(sorted(keys()), lambda key, body, version: None)
    assert len(s3_proxy.requests) < 400

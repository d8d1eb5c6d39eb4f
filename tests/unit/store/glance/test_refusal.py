"""What Glance's answers mean."""

import pytest

from imagefs.errors import (
    Conflict,
    ImageRefused,
    InvalidInput,
    NoSpace,
    NotFound,
    NotPermitted,
    QuotaExceeded,
    StoreRefused,
    StoreUnavailable,
    VersionChanged,
)
from imagefs.store.glance.refusal import data_refusal, refusal, target_host, wait_asked, words_of


@pytest.mark.parametrize(
    ("method", "status", "error"),
    [
        ("GET", 400, StoreRefused),
        ("PATCH", 400, InvalidInput),
        ("GET", 401, StoreRefused),
        ("PUT", 401, StoreRefused),
        ("GET", 403, StoreRefused),
        ("PATCH", 403, NotPermitted),
        ("GET", 404, NotFound),
        ("DELETE", 404, NotFound),
        ("POST", 409, Conflict),
        ("PATCH", 413, QuotaExceeded),
        ("PUT", 413, NoSpace),
        ("PUT", 415, ImageRefused),
        ("PUT", 410, StoreUnavailable),
        ("GET", 429, StoreUnavailable),
        ("GET", 500, StoreUnavailable),
        ("PATCH", 503, StoreUnavailable),
        ("GET", 302, StoreRefused),
        ("POST", 308, StoreRefused),
        ("GET", 418, StoreRefused),
    ],
)
def test_each_status_has_its_error(method: str, status: int, error: type[Exception]) -> None:
    """By method: what a user did, what the store cannot, and what it will not."""
    assert isinstance(refusal("doing", status, {}, b"", "http://x", method=method), error)


@pytest.mark.parametrize(("status", "error"), [(204, NotFound), (404, NotFound), (416, VersionChanged), (403, StoreRefused), (503, StoreUnavailable)])
def test_each_status_of_data_has_its_error(status: int, error: type[Exception]) -> None:
    """Image data has meanings of its own."""
    assert isinstance(data_refusal("doing", status, {}, "http://x"), error)


def test_a_message_is_one_line_of_words() -> None:
    """Neither markup nor the status, credentials or control characters of the body are in it."""
    page = b"<html><title>403 Forbidden</title><body><h1>403 Forbidden</h1>\nAttribute &#x27;x&#x27; is\x1b reserved.<br />\n</body></html>"
    assert words_of(page, 403) == "Attribute 'x' is reserved"
    assert words_of(b"bad s3://AK:secret@host/b", 400) == "bad s3://host/b"
    assert len(words_of(b"x" * 10_000, 400)) == 200
    assert words_of(b"\xff", 799) == "\ufffd"


def test_a_redirect_tells_its_host_alone() -> None:
    """The rest of the address may hold a secret."""
    assert target_host({"Location": "http://user:pw@elsewhere:1/a?token=x"}) == "elsewhere"
    assert target_host({"Location": "/relative"}) == target_host({}) == "the same host"
    assert target_host({"Location": "http://[broken"}) == "an unreadable address"


@pytest.mark.parametrize(
    ("status", "asked", "seconds"),
    [(503, "2", 2), (429, "0", 0), (503, "99", 3), (500, "2", 0), (503, "Wed, 21 Oct", 0), (503, "-1", 0), (503, "²", 0)],
)
def test_a_wait_is_bounded(status: int, asked: str, seconds: float) -> None:
    """Only whole seconds of 429 and 503 count."""
    assert wait_asked(status, {"Retry-After": asked}) == seconds

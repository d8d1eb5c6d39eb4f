"""What an S3 server's answers mean."""

import pytest

from imagefs.errors import ImagefsError, NotFound, StoreBusy, StoreRefused, StoreUnavailable, VersionChanged
from imagefs.store.answers import data_refusal, refusal


@pytest.mark.parametrize(
    ("code", "status", "kind", "words"),
    [
        ("NoSuchBucket", 404, NotFound, "bucket 'b' does not exist at http://e: create it"),
        ("NoSuchKey", 404, NotFound, "not there"),
        ("404", 404, NotFound, "not there"),
        ("SlowDown", 503, StoreUnavailable, "SlowDown"),
        ("RequestTimeout", 400, StoreUnavailable, "RequestTimeout"),
        ("", 502, StoreUnavailable, "502"),
        ("TooManyRequests", 429, StoreUnavailable, "busy"),
        ("RequestTimeTooSkewed", 403, StoreRefused, "clock"),
        ("ExpiredToken", 400, StoreRefused, "credentials"),
        ("AccessDenied", 403, StoreRefused, "permission on bucket 'b'"),
        ("PermanentRedirect", 301, StoreRefused, "region or endpoint_url"),
        ("AuthorizationHeaderMalformed", 400, StoreRefused, "region"),
        ("EntityTooLarge", 400, StoreRefused, "the server's words"),
    ],
)
def test_each_answer_has_its_error(code: str, status: int, kind: type[ImagefsError], words: str) -> None:
    """Code and status give the error's kind and what to mend, behind what was being done."""
    error = refusal("doing it", code=code, status=status, said="the server's words", bucket="b", endpoint="http://e")
    assert type(error) is kind
    assert words in str(error)
    assert str(error).startswith("doing it: ")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (412, VersionChanged),
        (416, VersionChanged),
        (404, NotFound),
        (401, StoreRefused),
        (403, StoreRefused),
        (307, StoreRefused),
        (400, StoreRefused),
        (429, StoreBusy),
        (500, StoreUnavailable),
        (503, StoreBusy),
    ],
)
def test_each_status_of_image_data_has_its_error(status: int, kind: type[ImagefsError]) -> None:
    """A status in answer to a ranged GET gives the error's kind, with the object's name."""
    error = data_refusal(status, "s3://b/k", {})
    assert type(error) is kind
    assert "s3://b/k" in str(error)

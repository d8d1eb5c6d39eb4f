"""This module says what the answers of an S3 server mean, in imagefs's errors and with what to mend; it does no I/O."""

from collections.abc import Mapping
from typing import Final

from imagefs.errors import ImagefsError, NotFound, StoreBusy, StoreRefused, StoreUnavailable, VersionChanged

LONGEST_WAIT: Final = 30.0
"""Seconds that a server is left alone at most, whatever it asks for: a guest's disk waits."""

_BUSY: Final = frozenset({"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException", "BadDigest"})
_CREDENTIALS: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthFailure"}
)


def refusal(doing: str, *, code: str, status: int, said: str, bucket: str, endpoint: str) -> ImagefsError:
    """Return the error that S3's error `code` (empty if the answer had no body) and HTTP `status` mean; `said` is the server's own message."""
    if code == "NoSuchBucket":
        return NotFound(f"{doing}: bucket '{bucket}' does not exist at {endpoint}: create it or mend [store] url")
    if status == 404:
        return NotFound(f"{doing}: it is not there")
    if code in _BUSY or status >= 500 or status == 429:
        return StoreUnavailable(f"{doing}: {endpoint} is busy or failing ({code or status})")
    if code == "RequestTimeTooSkewed":
        return StoreRefused(f"{doing}: {endpoint} refuses this node's clock: set the time")
    if code in _CREDENTIALS:
        return StoreRefused(f"{doing}: {endpoint} refuses the AWS credentials ({code}): mend them, or [store.s3] profile")
    if status in (401, 403):
        return StoreRefused(f"{doing}: {endpoint} denies access ({code}): give these credentials permission on bucket '{bucket}', or mend them")
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect") or 300 <= status < 400:
        return StoreRefused(f"{doing}: {endpoint} is not where bucket '{bucket}' is ({code}): mend [store.s3] region or endpoint_url")
    return StoreRefused(f"{doing}: {said}")


def wait_asked(status: int, headers: Mapping[str, str]) -> float:
    """Return the seconds that the server asks to be left alone, LONGEST_WAIT at most; 0 if it does not ask."""
    text = headers.get("Retry-After", "")
    return min(float(text), LONGEST_WAIT) if status in (429, 503) and text.isascii() and text.isdigit() else 0.0


def data_refusal(status: int, name: str, headers: Mapping[str, str]) -> ImagefsError:
    """Return the error that an HTTP status, with these headers, in answer to a GET of image data means."""
    match status:
        case 412:
            return VersionChanged(f"{name} is another version now: open the image again")
        case 416:
            return VersionChanged(f"{name} is shorter now: open the image again")
        case 404:
            return NotFound(f"{name} is not there any more")
        case 401 | 403:
            return StoreRefused(
                f"reading {name}: access denied (HTTP {status}): check the credentials, their permission to read, and this node's clock"
            )
        case 429 | 503:
            return StoreBusy(f"reading {name}: the server asks to slow down (HTTP {status})", wait_asked(status, headers))
        case _ if status >= 500:
            return StoreUnavailable(f"reading {name}: the server failed (HTTP {status})")
        case _ if 300 <= status < 400:
            return StoreRefused(f"reading {name}: redirected (HTTP {status}), which imagefs does not follow: mend [store.s3] endpoint_url or region")
        case _:
            return StoreRefused(f"reading {name}: the server refuses (HTTP {status})")

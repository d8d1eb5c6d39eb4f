"""This module says what Glance's answers mean, in imagefs's errors and with what to mend; it does no I/O."""

import html
import http
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from imagefs.errors import (
    Conflict,
    ImagefsError,
    ImageRefused,
    InvalidInput,
    NoSpace,
    NotFound,
    NotPermitted,
    QuotaExceeded,
    StoreBusy,
    StoreRefused,
    StoreUnavailable,
    VersionChanged,
)
from imagefs.store import answers

LONGEST_WAIT: Final = 3.0
"""Seconds to wait at most because a Retry-After asks for it: the tries of a small request have 10 in all."""
_TAG: Final = re.compile(r"<[^<>]*>")
_CREDENTIALS: Final = re.compile(r"//[^\s/]*@")
_SAID_LENGTH: Final = 200
_STATUSES: Final = frozenset(http.HTTPStatus)


class AccessDenied(StoreRefused):
    """The account may not read this."""


def refusal(doing: str, status: int, headers: Mapping[str, str], body: bytes, endpoint: str, *, method: str) -> ImagefsError:
    """Return the error that an HTTP status in answer to a small request of `method` means."""
    said = words_of(body, status)
    because = f": {said}" if said else ""
    refused = None if method == "GET" else _write_refusal(f"{doing}: {endpoint}", status, because, of_data=method == "PUT")
    if refused is not None:
        return refused
    match status:
        case 401:
            return StoreRefused(f"{doing}: {endpoint} refuses the token: check the cloud of [store.glance] and its credentials")
        case 403:
            return AccessDenied(f"{doing}: {endpoint} denies access{because}: give the account of [store.glance] cloud the role admin")
        case 404:
            return NotFound(f"{doing}: it is not there")
        case _ if 300 <= status < 400:
            return StoreRefused(f"{doing}: redirected to {target_host(headers)}, which imagefs does not follow: mend [store] url")
        case 408 | 410 | 429:
            return StoreUnavailable(f"{doing}: {endpoint} cannot do it now (HTTP {status}){because}")
        case _ if status >= 500:
            return StoreUnavailable(f"{doing}: {endpoint} failed (HTTP {status})")
        case _:
            return StoreRefused(f"{doing}: {endpoint} answered HTTP {status}{because}")


def _write_refusal(what: str, status: int, because: str, *, of_data: bool) -> ImagefsError | None:
    """Return the error that a status means in answer to a write, None if it means nothing special there."""
    match status:
        case 400:
            return InvalidInput(f"{what} refuses the value{because}")
        case 403:
            return NotPermitted(f"{what} does not permit it{because}")
        case 409:
            return Conflict(f"{what} has a conflict{because}")
        case 413 if of_data:
            return NoSpace(f"{what} has no room{because}: make room, or raise the quota")
        case 413:
            return QuotaExceeded(f"{what} has a limit{because}")
        case 415:
            return ImageRefused(f"{what} refuses the image{because}")
        case _:
            return None


def data_refusal(doing: str, status: int, headers: Mapping[str, str], endpoint: str) -> ImagefsError:
    """Return the error that an HTTP status in answer to a GET of image data means."""
    match status:
        case 204:
            return NotFound(f"{doing}: it has no bytes in the backend of {endpoint}")
        case 416:
            return VersionChanged(f"{doing}: it is shorter now: open the image again")
        case 429 | 503:
            return StoreBusy(f"{doing}: {endpoint} asks to slow down (HTTP {status})", answers.wait_asked(status, headers))
        case _:
            return refusal(doing, status, headers, b"", endpoint, method="GET")


def wait_asked(status: int, headers: Mapping[str, str]) -> float:
    """Return the seconds that the server asks to be left alone, LONGEST_WAIT at most; 0 if it does not ask."""
    return min(answers.wait_asked(status, headers), LONGEST_WAIT)


def target_host(headers: Mapping[str, str]) -> str:
    """Return the host that a redirect leads to, and nothing more of its URL: that may hold a secret."""
    try:
        return urlsplit(headers.get("Location", "")).hostname or "the same host"
    except ValueError:
        return "an unreadable address"


def words_of(body: bytes, status: int) -> str:
    """Return what an error's body says, as the end of a message: one line, without markup, credentials and the status, which it repeats."""
    text = " ".join(html.unescape(_TAG.sub(" ", body[:4096].decode("utf-8", "replace"))).split())
    text = "".join(character for character in text if character.isprintable())
    phrase = f"{status} {http.HTTPStatus(status).phrase}" if status in _STATUSES else str(status)
    return _CREDENTIALS.sub("//", text.replace(phrase, "")).strip()[:_SAID_LENGTH].rstrip(".")

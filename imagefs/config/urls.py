"""This module reads the URLs of the configuration: stores, services, and what Glance's images may be read from directly.

As in `values`, each function takes what TOML gave and raises InvalidInput with what is wrong and what to write instead. No URL
holds credentials, and one that does is not repeated.
"""

import re
import urllib.parse
from collections.abc import Sequence
from typing import Final

from imagefs.config.values import read_list, read_text, seen
from imagefs.errors import InvalidInput

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_GLANCE: Final = "glance:"


def read_endpoint(value: object) -> str:
    """Return the URL of a service: http or https, with a host."""
    text = read_text(value)
    if not _is_service(text):
        raise InvalidInput(f"{_without_credentials(text)} is no URL of a service: write https://HOST or http://HOST:PORT, and no credentials")
    return text


def read_url(value: object) -> str:
    """Return a store's URL: file:///DIRECTORY, s3://BUCKET, s3://BUCKET/PREFIX or glance:https://HOST."""
    text = read_text(value)
    scheme, _, rest = text.partition("://")
    if text.startswith(_GLANCE):
        service = text.removeprefix(_GLANCE)
        if not _is_service(service):
            raise InvalidInput(f"{_without_credentials(service)} is no URL of a Glance: write glance:https://HOST, and no credentials")
        return text
    if scheme == "file":
        if not rest.startswith("/"):
            raise InvalidInput(f"'{text}' has no absolute path: write file:///DIRECTORY, with three slashes")
        return text
    if scheme == "s3":
        _check_bucket(text, rest)
        return text
    raise InvalidInput(f"{_without_credentials(text)} is not a store: write file:///DIRECTORY, s3://BUCKET/PREFIX or glance:https://HOST")


def read_direct_stores(value: object) -> tuple[str, ...]:
    """Return a list of URLs file:///DIRECTORY or s3://BUCKET/PREFIX, each of them once and without slashes at its end."""
    return read_list(value, _read_direct_store)


def _read_direct_store(value: object) -> str:
    text = read_text(value)
    scheme, _, rest = text.partition("://")
    if scheme == "file":
        if not rest.startswith("/") or "?" in rest or "#" in rest:
            raise InvalidInput(f"'{text}' is not file:///DIRECTORY with an absolute directory (write %23 for #, %3F for ?)")
        _check_parts(text, urllib.parse.unquote(rest).split("/"))
        parts = [part for part in rest.split("/") if part]
        if not parts:
            raise InvalidInput(f"'{text}' is too wide, every file of this host is below it: name Glance's own directory")
        return f"file:///{'/'.join(parts)}"
    if scheme == "s3":
        _check_bucket(text, rest)
        _check_parts(text, rest.split("/"))
        return text.rstrip("/")
    raise InvalidInput(f"{_without_credentials(text)} cannot be read directly: write file:///DIRECTORY, s3://BUCKET or s3://BUCKET/PREFIX")


def _check_parts(text: str, parts: Sequence[str]) -> None:
    """Raise InvalidInput if the URL leads up, and so is wider than it looks."""
    if any(part in (".", "..") or not part.isprintable() for part in parts):
        raise InvalidInput(f"'{text}' has '.' or '..' or a control character in its path: write the path itself")


def _check_bucket(text: str, rest: str) -> None:
    bucket = rest.partition("/")[0]
    if "@" in bucket:
        hidden = urllib.parse.quote(rest.partition("@")[2])
        raise InvalidInput(f"'s3://...@{hidden}' has credentials in it: they come from the AWS configuration chain only")
    if _BUCKET.fullmatch(bucket) is None:
        raise InvalidInput(f"'{text}' has no bucket: write s3://BUCKET or s3://BUCKET/PREFIX")


def _is_service(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # a port that is no number, half an IPv6 address
        return False


def _without_credentials(text: str) -> str:
    return seen(text.rpartition("@")[2])

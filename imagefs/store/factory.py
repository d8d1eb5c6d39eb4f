"""This module opens the store that the configuration names."""

import re
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

from imagefs.errors import ConfigError
from imagefs.store.file import Directory
from imagefs.store.flat import FlatLayout
from imagefs.store.layout import ImagefsLayout
from imagefs.store.options import S3Options
from imagefs.store.protocol import Bucket, ImageStore

_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")


def open_store(url: str, layout: str = "imagefs", s3: S3Options | None = None, source_address: str | None = None, create: bool = False) -> ImageStore:
    """Return the store at `url` (file:///DIR, s3://BUCKET/PREFIX) in `layout` (imagefs, flat); nothing is asked of it yet: see `check`.

    `source_address`: the local address for all traffic to S3. `create`: `check` makes the directory of a file store.
    Raises ConfigError with every mistake found.
    """
    mistakes = [f"store.layout: '{layout}' is neither imagefs nor flat"] if layout not in ("imagefs", "flat") else []
    if source_address is not None and not _is_local(source_address):
        mistakes.append(f"store.source_address: {source_address} is not an address of this machine")
    try:
        bucket = open_bucket(url, s3, source_address, create)
    except ConfigError as error:
        mistakes += error.mistakes
    if mistakes:
        raise ConfigError(f"store {url}", mistakes)
    return FlatLayout(bucket) if layout == "flat" else ImagefsLayout(bucket)


def open_bucket(url: str, s3: S3Options | None = None, source_address: str | None = None, create: bool = False) -> Bucket:
    """Return the bucket at `url`, with no layout. Raises ConfigError."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Directory(_file_path(url), create)
    if parts.scheme == "s3":
        if _BUCKET_NAME.fullmatch(parts.netloc) is None or parts.query or parts.fragment:
            raise ConfigError(f"store {url}", [f"store.url: '{url}' names no bucket: write s3://BUCKET or s3://BUCKET/PREFIX"])
        from imagefs.store.s3 import S3Bucket  # noqa: PLC0415 - boto3 takes a third of a second to import, which a file store need not wait for

        return S3Bucket(parts.netloc, parts.path, s3, source_address=source_address)
    raise ConfigError(f"store {url}", [f"store.url: '{url}' is neither file:///DIR nor s3://BUCKET/PREFIX"])


def _file_path(url: str) -> Path:
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not path.is_absolute() or parts.query or parts.fragment:
        raise ConfigError(f"store {url}", [f"store.url: '{url}' is not file:///DIR with an absolute directory (write %23 for #, %3F for ?)"])
    return path


def _is_local(address: str) -> bool:
    """Tell whether this machine can send from `address`."""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except (OSError, UnicodeError):
        return False
    return True

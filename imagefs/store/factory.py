"""This module opens the store that the configuration names."""

import re
import socket
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from imagefs.errors import ConfigError
from imagefs.store.file import Directory
from imagefs.store.flat import FlatLayout
from imagefs.store.layout import ImagefsLayout
from imagefs.store.options import GlanceOptions, S3Options
from imagefs.store.protocol import Bucket, ImageStore

GLANCE: Final = "glance:"
_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")


def open_store(
    url: str,
    layout: str = "imagefs",
    s3: S3Options | None = None,
    source_address: str | None = None,
    create: bool = False,
    glance: GlanceOptions | None = None,
) -> ImageStore:
    """Return the store at `url` (file:///DIR, s3://BUCKET/PREFIX, glance:https://HOST); nothing is asked of it yet: see `check`.

    `layout` (imagefs, flat) says what the objects of a bucket mean; a Glance has none.
    `source_address`: the local address for all traffic to S3 and Glance. `create`: `check` makes the directory of a file store.
    Raises ConfigError with every mistake found.
    """
    mistakes = [f"store.layout: '{layout}' is neither imagefs nor flat"] if layout not in ("imagefs", "flat") else []
    if source_address is not None and not _is_local(source_address):
        mistakes.append(f"store.source_address: {source_address} is not an address of this machine")
    if url.startswith(GLANCE) and layout == "flat":
        mistakes.append("store.layout: a Glance has no layout: leave it out")
    store: ImageStore | None = None
    try:
        if url.startswith(GLANCE):
            store = _open_glance(url, glance or GlanceOptions(), s3, source_address)
        else:
            bucket = open_bucket(url, s3, source_address, create)
            store = FlatLayout(bucket) if layout == "flat" else ImagefsLayout(bucket)
    except ConfigError as error:
        mistakes += error.mistakes
    if mistakes or store is None:
        # a URL may hold a password where none belongs
        raise ConfigError("[store]" if url.startswith(GLANCE) and set(url) & set("@?#") else f"store {url}", mistakes)
    return store


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
    raise ConfigError(f"store {url}", [f"store.url: '{url}' is neither file:///DIR nor s3://BUCKET/PREFIX nor glance:https://HOST"])


def _open_glance(url: str, options: GlanceOptions, s3: S3Options | None, source_address: str | None) -> ImageStore:
    endpoint = url.removeprefix(GLANCE).rstrip("/").removesuffix("/v2")
    try:
        parts = urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment:
        # not quoted: it may hold a password
        raise ConfigError("store glance:", ["store.url: write glance:https://HOST or glance:http://HOST:PORT, and no credentials"])
    # openstacksdk takes half a second to import, and need not be there for other stores
    from imagefs.store.glance.connection import Connection  # noqa: PLC0415
    from imagefs.store.glance.direct import DirectStores  # noqa: PLC0415
    from imagefs.store.glance.store import GlanceStore  # noqa: PLC0415

    direct = DirectStores(options.direct_stores, lambda direct_url: open_bucket(direct_url, s3, source_address))
    return GlanceStore(f"{GLANCE}{endpoint}", Connection(endpoint, options.cloud, source_address=source_address), direct)


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

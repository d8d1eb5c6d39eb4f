"""This module reads images past Glance, from the directory or bucket where Glance keeps them, if that is allowed for them.

What Glance shows as the location of an image may come from the image's owner, so a location is used only as far as it names a
place in a store that the configuration allows, and there only the object of that image: the last part of its path is the
image's own id, as Glance's drivers for files and S3 have it. Otherwise an owner could name another project's image and
read it with the rights of this host. Hosts and credentials in a location are never used.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from imagefs.errors import ImagefsError
from imagefs.store.protocol import Bucket, DataObject

_S3_SCHEMES: Final = frozenset({"s3", "s3+http", "s3+https"})

_log = logging.getLogger(__name__)


class DirectStores:
    """The stores that images may be read from directly."""

    def __init__(self, urls: Sequence[str], open_bucket: Callable[[str], Bucket]) -> None:
        """Open each of `urls` (file:///DIR, s3://BUCKET/PREFIX). Raises ConfigError; whether they are there is seen when they are read."""
        self._stores = [(url, open_bucket(url)) for url in urls]

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return bool(self._stores)

    def open(self, image_id: str, locations: Sequence[str], size: int, version: str) -> DataObject | None:
        """Return the image's bytes out of the first location that is allowed and has `size` bytes; None if there is none.

        A location that is allowed and cannot be read is logged: reading through Glance works, but is not what was configured.
        """
        for location in locations:
            for url, bucket in self._stores:
                key = key_below(url, location, image_id)
                if key is None:
                    continue
                try:
                    found = bucket.open(key)
                except ImagefsError as error:
                    _log.warning("an image is read through Glance and not directly image=%s error=%s", image_id, error)
                    continue
                if found.size == size:
                    return _Direct(found, version)
                _log.warning("an image is read through Glance: its object has another size image=%s store=%s bytes=%d", image_id, url, found.size)
        return None


def key_below(url: str, location: str, image_id: str) -> str | None:
    """Return the key of a location in the store at `url`; None if it is not below it or not this image's."""
    scheme, separator, rest = location.partition("://")
    allowed = urlsplit(url)
    if not separator or not rest.isprintable():
        return None
    if allowed.scheme == "file" and scheme == "file":
        # Glance writes paths into locations as they are, without percent-encoding.
        below = _below(unquote(allowed.path).strip("/").split("/"), rest.removeprefix("/").split("/")) if rest.startswith("/") else None
    elif allowed.scheme == "s3" and scheme in _S3_SCHEMES:
        wanted = [allowed.netloc, *(part for part in allowed.path.split("/") if part)]
        named = rest.rpartition("@")[2].split("/")
        below = _below(wanted, named[1:]) or _below(wanted, named)  # host/bucket/key, as Glance writes it, or bucket/key
    else:
        return None
    if not below or below[-1] != image_id or any(part in ("", ".", "..") or part.startswith(".") for part in below):
        return None
    return "/".join(below)


def _below(root: Sequence[str], parts: Sequence[str]) -> Sequence[str] | None:
    return parts[len(root) :] if list(parts[: len(root)]) == list(root) else None


@dataclasses.dataclass(frozen=True)
class _Direct:
    """An object of another store under the version of the image's bytes."""

    found: DataObject
    version: str

    @property
    def size(self) -> int:
        """Bytes in the image."""
        return self.found.size

    @property
    def path(self) -> Path | None:
        """The local file, if it is one."""
        return self.found.path

    def stream(self, offset: int, length: int) -> Iterator[bytes]:
        """As DataObject says."""
        return self.found.stream(offset, length)

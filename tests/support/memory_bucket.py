"""This module is a bucket in memory that counts what it is asked, for tests of what is built on one."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from imagefs.errors import Conflict, NotFound
from imagefs.store.protocol import SMALL_LIMIT, Entry, Progress


class MemoryObject:
    """One object's bytes at one version."""

    path: Path | None = None

    def __init__(self, body: bytes, version: str) -> None:
        self._body = body
        self.size = len(body)
        self.version = version

    def stream(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield the bytes at once."""
        yield self._body[offset : offset + length]


class MemoryBucket:
    """A Bucket over a dictionary. Versions are MD5 sums, as of S3, or `salted` so that they are none, as of a server that encrypts.

    `failing` has keys whose reading or writing raises what it maps them to; `asked` has what was read one by one.
    """

    url = "test:"

    def __init__(self, *, remote: bool = True, salt: bytes = b"") -> None:
        self.remote = remote
        self.objects: dict[str, bytes] = {}
        self.failing: dict[str, Exception] = {}
        self.asked: list[str] = []
        self._salt = salt

    def check(self) -> None:
        """Return: it is always there."""

    def version(self, key: str) -> str:
        """Return the version of an object."""
        return hashlib.md5(self.objects[key] + self._salt, usedforsecurity=False).hexdigest()

    def list(self) -> Iterator[Entry]:
        """Yield every object."""
        for key in list(self.objects):
            yield Entry(key, len(self.objects[key]), self.version(key), 0.0)

    def list_below(self, starts: Sequence[str], suffix: str, gently: bool = False) -> Iterator[tuple[str, str]]:
        """Yield what fits."""
        for key in list(self.objects):
            if key.startswith(tuple(starts)) and key.endswith(suffix):
                yield key, self.version(key)

    def get_many(self, keys: Iterable[str], take: Callable[[str, bytes, str], None]) -> None:
        """Read one after the other."""
        for key in keys:
            if key in self.objects:
                take(key, *self.get(key))

    def get(self, key: str, limit: int = SMALL_LIMIT) -> tuple[bytes, str]:
        """Return an object."""
        self.asked.append(key)
        self._fail(key)
        if key not in self.objects:
            raise NotFound(key)
        return self.objects[key][:limit], self.version(key)

    def peek(self, key: str, offset: int, length: int) -> bytes:
        """Return a part of an object."""
        return self.get(key)[0][offset : offset + length]

    def put(self, key: str, body: bytes, expected: str | None) -> str:
        """Write an object on its condition."""
        self._fail(key)
        if (self.version(key) if key in self.objects else None) != expected:
            raise Conflict(key)
        self.objects[key] = body
        return self.version(key)

    def upload(self, key: str, source: BinaryIO, size: int, progress: Progress) -> str:
        """Write an object."""
        self.objects[key] = source.read(size)
        progress(size)
        return self.version(key)

    def open(self, key: str, size: int | None = None) -> MemoryObject:
        """Return an object pinned."""
        self._fail(key)
        if key not in self.objects:
            raise NotFound(key)
        return MemoryObject(self.objects[key], self.version(key))

    def delete(self, key: str) -> None:
        """Remove an object."""
        self.objects.pop(key, None)

    def _fail(self, key: str) -> None:
        if key in self.failing:
            raise self.failing[key]

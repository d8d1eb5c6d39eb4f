"""This module is names/: the names of images made fit for a directory, and which image a name means when several share it."""

import functools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from imagefs.catalog.image import CatalogImage

FILE_NAME_LIMIT: Final = 255
"""Bytes of a file's name in Linux."""
_BIDIRECTIONAL: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@functools.lru_cache(maxsize=4096)
def file_name(name: str) -> str:
    """Return an image's name as a file name: `/`, control and bidirectional characters and a leading dot as %XX of UTF-8."""
    if name.isascii() and name.isprintable() and "/" not in name:
        escaped = name  # nearly all
    else:
        escaped = "".join(_percent(character) if _unprintable(character) else character for character in name)
    return "%2E" + escaped[1:] if escaped.startswith(".") else escaped


def _unprintable(character: str) -> bool:
    return character == "/" or character in _BIDIRECTIONAL or unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def file_names(images: Iterable[CatalogImage]) -> dict[str, str]:
    """Return the names/ directory: the newest active image of a name has it plainly, all that share it as `<name>@<8 of id>`.

    A name whose file name would be over 255 bytes is cut, and then always carries the id's 8 digits.
    """
    names = FileNames()
    for image in images:
        names.add(image)
    for _ in names.finish():
        pass
    return names.by_name


class FileNames:
    """The same, step by step, for who must not hold up others: `add` every image, then go through `finish`; `by_name` is the directory."""

    def __init__(self) -> None:
        self.by_name: dict[str, str] = {}
        self._single: dict[str, CatalogImage] = {}
        self._shared: dict[str, list[CatalogImage]] = {}

    def add(self, image: CatalogImage) -> None:
        """Take an image."""
        if not image.name:
            return
        name = file_name(image.name)
        if name in self._shared:
            self._shared[name].append(image)
        elif (other := self._single.pop(name, None)) is not None:
            self._shared[name] = [other, image]
        else:
            self._single[name] = image

    def finish(self) -> Iterator[None]:
        """Fill `by_name`: the caller may do other things between two steps, of which each names one image or looks at one."""
        for name, image in self._single.items():
            if len(name) * 4 > FILE_NAME_LIMIT and len(name.encode()) > FILE_NAME_LIMIT:
                self.by_name[_with_id(name, image)] = image.id
            else:
                self.by_name[name] = image.id
            yield
        self._single = {}
        for name, group in self._shared.items():
            newest: tuple[tuple[bool, str, str], str] | None = None
            for image in group:
                self.by_name[_with_id(name, image)] = image.id
                newest = max(filter(None, (newest, (_precedence(image), image.id))))
                yield
            if newest is not None and len(name.encode()) <= FILE_NAME_LIMIT:
                self.by_name[name] = newest[1]


def _with_id(name: str, image: CatalogImage) -> str:
    short = name.encode()[:240].decode(errors="ignore")
    return f"{short}@{image.id[:8]}"


def newest_active(group: Sequence[CatalogImage]) -> CatalogImage:
    """Return which of several images of one name that name means: the newest active one, else the newest."""
    return max(group, key=_precedence)


def _precedence(image: CatalogImage) -> tuple[bool, str, str]:
    record = image.record
    return record.status == "active", record.created_at, record.id

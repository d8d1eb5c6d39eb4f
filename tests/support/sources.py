"""This module holds what tests store images from: bytes, and sources that do something else than give theirs."""

import io
from typing import BinaryIO

from imagefs.store.protocol import Content
from imagefs.units import MIB


class Bomb(io.BytesIO):
    """A source that does something instead of giving its second piece."""

    def __init__(self, what: object) -> None:
        super().__init__(bytes(4 * MIB))
        self.what = what

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            if isinstance(self.what, BaseException):
                raise self.what
            assert callable(self.what)
            self.what()
        return super().read(size)


def given(source: BinaryIO | bytes, size: int | None = None) -> Content:
    """Return what gives a store these bytes; `size` is how many they are said to be, by default as many as they are."""
    if isinstance(source, bytes):
        said = len(source) if size is None else size
        return lambda: (io.BytesIO(source), said)
    assert size is not None, "a stream does not say how long it is"
    return lambda: (source, size)

"""This module holds sources of images that do something else than give their bytes."""

import io

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

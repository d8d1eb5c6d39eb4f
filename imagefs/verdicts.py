"""This module is a few bits for each of many numbered things: what one identity may do with each of a hundred thousand images, in 0.4 MB.

A dictionary of answers takes 10 MB for that, and there may be hundreds of identities.
"""

from typing import Final

_PAGE: Final = 64
_SLACK: Final = 1024
"""Pages of things that are gone for which it is not worth beginning again."""


class Verdicts:
    """A byte for each number, 0 where nothing was added. Numbers are dense, come and go, and never come back."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def of(self, number: int) -> int:
        """Return the bits of a number."""
        page = self._pages.get(number // _PAGE)
        return page[number % _PAGE] if page is not None else 0

    def add(self, number: int, bits: int) -> None:
        """Set bits of a number."""
        page = self._pages.get(number // _PAGE)
        if page is None:
            page = self._pages[number // _PAGE] = bytearray(_PAGE)
        page[number % _PAGE] |= bits

    def trim(self, count: int) -> None:
        """Forget everything if most of it is of things that are gone: there are `count` now."""
        if len(self._pages) > 16 * (count // _PAGE) + _SLACK:
            self._pages.clear()

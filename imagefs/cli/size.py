"""This module reads sizes as a user writes them: bytes, or a number with a unit of 1024 as for qemu-img and truncate."""

import re
from typing import Final

import click

from imagefs.errors import InvalidInput

SIZE_LIMIT: Final = 2**63 - 1
"""Bytes of a file at most."""
_SIZE: Final = re.compile(r"(\d{1,20})([KMGTPE]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_UNITS: Final = "KMGTPE"


class SizeType(click.ParamType[int]):
    """An option's value that is a size, in bytes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes. Fails as click wants it for what is no size."""
        try:
            return parse_size(str(value))
        except InvalidInput as error:
            self.fail(str(error), param, ctx)


def parse_size(text: str) -> int:
    """Return the bytes that a text such as 10G means: GiB. Raises InvalidInput for no size, 0, or more than a file can have."""
    match = _SIZE.fullmatch(text.strip())
    size = int(match[1]) << 10 * (_UNITS.find(match[2].upper()) + 1 if match[2] else 0) if match is not None else 0
    if not 0 < size <= SIZE_LIMIT:
        raise InvalidInput(f"'{text}' is not a size: write bytes, or a number with K, M, G or T, such as 10G for 10 GiB")
    return size

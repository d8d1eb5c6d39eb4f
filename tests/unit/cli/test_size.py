"""Sizes are read as qemu-img and truncate read them."""

import pytest

from imagefs.cli.size import SIZE_LIMIT, parse_size
from imagefs.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("10G", 10 << 30),
        ("10GiB", 10 << 30),
        ("10GB", 10 << 30),
        ("3k", 3072),
        ("2m", 2 << 20),
        ("1T", 1 << 40),
        (" 7 ", 7),
        ("512B", 512),
        ("7E", 7 << 60),
    ],
)
def test_units_are_of_1024(text: str, size: int) -> None:
    """With or without iB; any case."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0G", "-1", "1.5G", "G", "10 G", "10X", "1e9", "8E", str(SIZE_LIMIT + 1), "9" * 30, "٣G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Also what no file can have."""
    with pytest.raises(InvalidInput, match="is not a size"):
        parse_size(text)

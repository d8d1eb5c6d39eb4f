"""Pieces of an image in the order in which they lie, some at a time."""

import random

import pytest

from imagefs.errors import ImageRefused
from imagefs.hydration.window import Window
from imagefs.image.qcow2.plan import Piece


def piece(host_offset: int, guest_offset: int = 0) -> Piece:
    return Piece(host_offset, 100, guest_offset, 100, True, 0)


@pytest.mark.parametrize("capacity", [1, 3, 10, 1000])
def test_windows_bring_every_piece_once(capacity: int) -> None:
    """Window after window gives all pieces in order, and never holds more than twice the capacity."""
    pieces = [piece(1000 * number) for number in range(50)]
    found = []
    start: int | None = 0
    while start is not None:
        window = Window(start, capacity)
        for one in random.Random(start).sample(pieces, len(pieces)):
            window.add([one])
            assert len(window.pieces) < 2 * capacity
        window.close()
        assert len(window.pieces) <= capacity
        found += window.pieces
        start = window.end
    assert found == pieces


def test_pieces_at_one_place_stay_together() -> None:
    """Clusters that share stored bytes are in one window, since these pass by once."""
    window = Window(0, 3)
    window.add([piece(1000), *(piece(2000, guest) for guest in range(3)), piece(3000)])
    window.close()
    assert (window.pieces, window.end) == ([piece(1000)], 2000)


def test_too_many_at_one_place() -> None:
    """An image in which more clusters share stored bytes than fit is not examined at all."""
    window = Window(0, 3)
    with pytest.raises(ImageRefused, match="share the stored bytes at offset 5"):
        window.add(piece(5, guest) for guest in range(6))

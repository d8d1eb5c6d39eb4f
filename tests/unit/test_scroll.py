"""Tests of long texts that are kept compressed."""

from hypothesis import given
from hypothesis import strategies as st

from imagefs.scroll import Scroll


@given(
    pieces=st.lists(st.integers(0, 300_000), max_size=8),
    reads=st.lists(st.tuples(st.integers(0, 1_500_000), st.integers(0, 400_000)), max_size=8),
)
def test_a_scroll_reads_as_what_was_written(pieces: list[int], reads: list[tuple[int, int]]) -> None:
    """Any range of it, in any order, is that range of all that was appended."""
    whole, scroll = b"", Scroll()
    for number, length in enumerate(pieces):
        text = (b"%d." % number * (length + 1))[:length]
        whole += text
        scroll.append(text)
    assert len(scroll) == len(whole)
    for offset, length in reads:
        assert scroll.read(offset, length) == whole[offset : offset + length]


def test_a_text_given_at_once_is_there() -> None:
    """What it is made with is its beginning; an empty one is false."""
    assert Scroll(b"abc").read(1, 1) == b"b"
    assert not Scroll()

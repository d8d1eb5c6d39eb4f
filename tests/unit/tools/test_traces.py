"""Traces: the files that are there, what a broken one is told, and the arithmetic of what was read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.node import Failed
from tools.traces import BLOCK, MIB, Trace, invented, load_trace, names, parse

HEADER = "# guest: 1048576; a guest\n"


def test_every_recorded_trace_can_be_read() -> None:
    """And belongs to the guest that its name says."""
    assert names()
    for name in names():
        trace = load_trace(name)
        assert trace.guest == name
        assert 0 < trace.unique <= trace.size


def test_a_trace_is_read_as_it_is_written() -> None:
    """In order, repetitions included."""
    trace = parse(f"{HEADER}4096 512\n0 4096\n4096 512\n", "x.trace")
    assert trace.reads == [(4096, 512), (0, 4096), (4096, 512)]
    assert (trace.guest, trace.size, trace.words, trace.total) == ("guest", 1048576, "a guest", 5120)
    assert parse(trace.text(), "again") == trace


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "line 1"),
        ("4096 512\n", "line 1"),
        ("# guest: many; words\n0 1\n", "line 1"),
        (HEADER, "no reads"),
        (f"{HEADER}0 4096\nx 1\n", "line 3"),
        (f"{HEADER}0\n", "line 2"),
        (f"{HEADER}0 0\n", "line 2"),
        (f"{HEADER}-4096 4096\n", "line 2"),
        (f"{HEADER}1048576 1\n", "line 2"),
    ],
)
def test_a_broken_trace_is_refused_with_its_line(text: str, word: str) -> None:
    """A trace that is replayed only in part would measure something else."""
    with pytest.raises(Failed, match=word):
        parse(text, "x.trace")


def test_a_trace_that_is_not_there_says_how_to_record_it() -> None:
    """The command is in the message."""
    with pytest.raises(Failed, match=r"tools\.trace nobody"):
        load_trace("nobody")


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 30_000)), min_size=1, max_size=40))
def test_extents_have_just_the_blocks_that_were_read(reads: list[tuple[int, int]]) -> None:
    """Against a set of blocks."""
    trace = Trace("x", 300_000, "", reads)
    blocks = {block for offset, length in reads for block in range(offset // BLOCK, -(-(offset + length) // BLOCK))}
    found = {start + step for start, end in trace.extents() for step in range(0, end - start, BLOCK)}
    assert found == {block * BLOCK for block in blocks}
    assert trace.unique == sum(min(BLOCK, trace.size - block * BLOCK) for block in blocks)


def test_an_invented_trace_is_the_same_each_time_and_within_its_disk() -> None:
    """So that two runs measure the same."""
    one, other = invented(256 * MIB, 16_000_000), invented(256 * MIB, 16_000_000)
    assert one == other
    assert parse(one.text(), "invented") == one
    assert 16_000_000 <= one.total <= 24_000_000

"""This module decides what to fetch beside and ahead of what a reader misses; it does no I/O.

It is told of misses, and of the first touch of some of the units that were fetched without being asked for (the marks): so it knows what became
of its guesses while a hit costs nothing. Numbers were chosen by replaying recorded boots of three guests at depth 1 over a link of 30 ms and
1 Gb/s: against a fixed window of 512 KiB they save a third of the time for a fifth more bytes. Windows that double with each miss of a stream,
as for files, fetched six times what such a boot reads.
"""

from typing import Final, NamedTuple

FIRST_UNITS: Final = 4
"""Units of the window of a first miss somewhere: 256 KiB. Where a boot profile has brought nearly all, misses lie alone and want no more."""

LARGEST_UNITS: Final = 8
"""Units of the largest window of a miss that belongs to no stream: 512 KiB. With 2 MiB a boot waits 0.1 less and fetches 0.2 more."""

BLOCK_UNITS: Final = 32
"""Units within which misses make the window of the next one larger: 2 MiB, about a file and what lies beside it."""

BACK_UNITS: Final = 4
"""A stream may read so many units before where it was: 256 KiB. The kernel sends the reads of one stream in any order."""

FORWARD_UNITS: Final = 8
"""It may jump over so many: 512 KiB."""

STREAMS: Final = 16
"""Streams followed at once in one cache; the one that was quiet for longest is forgotten for a new one."""

STREAM_UNITS: Final = 16
"""Units after which a run of reads is a stream worth reading ahead of: 1 MiB."""

AHEAD_UNITS: Final = 512
"""Units that a stream is read ahead at most: 32 MiB, eight times what a link of 1 Gb/s and 30 ms holds; a busy host answers late."""

FULL_UNITS: Final = 128
"""Units ahead from which on a stream is read ahead anew at three quarters of that, not at a half: the link must not run dry."""

MARK_UNITS: Final = 4
"""One unit in so many is a mark."""

SURE_UNITS: Final = 64
"""Units of a stream up to which it is read ahead by as much again: 4 MiB. Beyond that by half of it: a kernel and its initrd end after 10 to 20."""

ENDLESS_UNITS: Final = 384
"""Units from which on it is by as much again once more: 24 MiB. This is no file of a boot but a copy of the whole image."""


class Step(NamedTuple):
    """What to fetch because of one read."""

    window: range
    """Units that come with what the reader wants, in the same fill; begins with the first unit that it wants."""
    ahead: list[range]
    """Units to fetch beside that, each range as urgent as Urgency.AHEAD."""
    marks: list[int]
    """Units whose first touch `ReadAhead.seen` wants to hear of; some may be here already."""


class _Stream:
    """A run of reads that follow each other: where it is, up to where it was fetched, and how many units it has read."""

    __slots__ = ("end", "position", "read")

    def __init__(self, unit: int) -> None:
        self.position = unit
        self.end = unit
        self.read = 0

    def advance(self, units: range) -> None:
        """Note a read of `units`."""
        if units.stop <= self.position:
            return
        if units.start - self.position > MARK_UNITS + 2:
            self.read //= 2  # it jumped: half a stream
        self.read += min(units.stop - self.position, len(units) + MARK_UNITS)
        self.position = units.stop
        self.end = max(self.end, self.position)

    def wanted(self) -> int:
        """Return how many units it should be ahead."""
        if self.read < STREAM_UNITS:
            return 0
        if SURE_UNITS <= self.read < ENDLESS_UNITS:
            return max(SURE_UNITS, self.read // 2)
        return min(AHEAD_UNITS, self.read)


class ReadAhead:
    """The reads of one cache. Used on the event loop only.

    Invariants: what it asks for lies within the cache, without the units of the read itself but for the window; and per stream no more than
    AHEAD_UNITS before its reader.
    """

    def __init__(self, unit_count: int) -> None:
        """Take the number of units in the cache."""
        self._unit_count = unit_count
        self._misses = bytearray(-(-unit_count // BLOCK_UNITS))
        self._streams: list[_Stream] = []  # the one that was read last comes first

    def seen(self, units: range, missed: bool) -> Step:
        """Take a read of `units` (one or more) that missed some of them, or touched a mark; return what to fetch for it."""
        stream = self._stream(units.start)
        stream.advance(units)
        ahead: list[range] = []
        window = units
        if missed:
            guess = self._window(units)
            window = range(units.start, max(units.stop, min(guess.stop, units.start + WINDOW_LIMIT)))
            ahead += [part for part in (range(window.stop, guess.stop), range(guess.start, units.start)) if part]
            stream.end = max(stream.end, guess.stop, units.stop)
        further = self._further(stream)
        if further:
            ahead.append(further)
        fetched = [range(units.stop, window.stop), *(part for part in ahead if part.start >= units.stop)]
        marks = [unit for part in fetched for unit in range(part.start + -part.start % MARK_UNITS, part.stop, MARK_UNITS)]
        return Step(window, ahead, marks)

    def _window(self, units: range) -> range:
        """Return the window of a miss: aligned, and the larger the more misses there were around it."""
        block = units.start // BLOCK_UNITS
        misses = self._misses[block]
        self._misses[block] = min(misses + 1, 8)
        size = min(LARGEST_UNITS, FIRST_UNITS << misses)
        start = units.start - units.start % size
        return range(start, min(start + size, self._unit_count))

    def _stream(self, unit: int) -> _Stream:
        """Return the stream that a read at `unit` belongs to, as the last one read: of two the one that is further, or a new one."""
        found = None
        for stream in self._streams:
            if stream.position - BACK_UNITS <= unit <= stream.end + FORWARD_UNITS and (found is None or stream.end > found.end):
                found = stream
        if found is not None:
            self._streams.remove(found)
        self._streams.insert(0, found if found is not None else _Stream(unit))
        del self._streams[STREAMS:]
        return self._streams[0]

    def _further(self, stream: _Stream) -> range:
        """Return what a stream should be ahead, once a part of what it was ahead is used up: fewer and larger requests than at each step."""
        wanted = stream.wanted()
        if not wanted or stream.end - stream.position >= (wanted * 3 // 4 if wanted > FULL_UNITS else wanted // 2):
            return range(0)
        start = stream.end
        stream.end = max(start, min(stream.position + wanted, self._unit_count))
        return range(start, stream.end)


WINDOW_LIMIT: Final = 16
"""Units that one demanded request takes at most: 1 MiB. The rest of a larger window comes beside it."""

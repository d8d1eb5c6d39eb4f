"""This package holds what real guests read of their disks while they booted, and reads those files: one `offset length` a line, in bytes, in order.

`tools.trace` records them. The first line is `# GUEST: SIZE OF THE DISK; WORDS`. Nothing of what was read is in them.
"""

import dataclasses
import functools
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.node import Failed

BLOCK: Final = 4096
MIB: Final = 1024 * 1024
_HEADER: Final = re.compile(r"# (?P<guest>[\w.-]+): (?P<size>\d+); (?P<words>.+)")


@dataclasses.dataclass(frozen=True)
class Trace:
    """The reads of one boot: what guest it was, its disk's bytes, and each read's offset and length in bytes, in order."""

    guest: str
    size: int
    words: str
    reads: Sequence[tuple[int, int]]

    @property
    def total(self) -> int:
        """Return the bytes of all reads."""
        return sum(length for _, length in self.reads)

    @functools.cached_property
    def unique(self) -> int:
        """Return the bytes of the blocks of 4 KiB that were read: the boot set."""
        return sum(end - start for start, end in self.extents())

    def extents(self, unit: int = BLOCK) -> list[tuple[int, int]]:
        """Return what was read as sorted (start, end) in whole units, cut at the end of the disk; those that touch are one."""
        merged: list[tuple[int, int]] = []
        for offset, length in sorted(self.reads):
            start, end = offset // unit * unit, min(self.size, -(-(offset + length) // unit) * unit)
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((start, end))
        return merged

    def text(self) -> str:
        """Return what parse takes."""
        return f"# {self.guest}: {self.size}; {self.words}\n" + "".join(f"{offset} {length}\n" for offset, length in self.reads)


def parse(text: str, name: str) -> Trace:
    """Return the trace in a text. Raises Failed with `name`, the line and what is wrong with it."""
    first, *lines = text.splitlines() or [""]
    header = _HEADER.fullmatch(first)
    if header is None:
        raise Failed(f"{name}: line 1 is not '# GUEST: BYTES; WORDS'")
    size = int(header["size"])
    reads = []
    for number, line in enumerate(lines, 2):
        try:
            offset, length = (int(word) for word in line.split())
        except ValueError:
            raise Failed(f"{name}: line {number} is not 'OFFSET LENGTH' in bytes") from None
        if offset < 0 or length <= 0 or offset + length > size:
            raise Failed(f"{name}: line {number} does not lie within the disk of {size} bytes")
        reads.append((offset, length))
    if not reads:
        raise Failed(f"{name}: it has no reads")
    return Trace(header["guest"], size, header["words"], reads)


def names() -> list[str]:
    """Return the guests of which there are traces, in alphabetical order."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.trace"))


def load_trace(guest: str) -> Trace:
    """Return a guest's trace. Raises Failed."""
    path = Path(__file__).parent / f"{guest}.trace"
    try:
        return parse(path.read_text(encoding="ascii"), path.name)
    except FileNotFoundError:
        raise Failed(f"there is no trace of a boot of {guest}: python -m tools.trace {guest} {path} records one") from None


def invented(size: int, total: int) -> Trace:
    """Return the trace of a guest that does not exist, on a disk of `size` bytes: reads of about `total` bytes, shaped like those of a Linux guest.

    Runs of reads that follow one another lie in a few places of the disk, four tenths of them are of one block, and a few are repeated.
    """
    chance = random.Random(size)
    places = [chance.randrange(0, size - size // 16, BLOCK) for _ in range(6)]
    reads: list[tuple[int, int]] = [(0, BLOCK), (size - BLOCK, BLOCK)]
    left = total
    while left > 0:
        offset = min(chance.choice(places) + chance.randrange(0, size // 16, BLOCK), size - 2 * MIB)
        for _ in range(chance.choice((1, 1, 1, 4, 16))):
            length = BLOCK if chance.random() < 0.4 else BLOCK * chance.choice((2, 4, 8, 16, 32))
            reads.append((offset, length))
            offset += length
            left -= length
        if chance.random() < 0.05:
            reads.append(chance.choice(reads))
    return Trace("invented", size, "a guest that does not exist", reads)

"""This module does the same small piece of blocking work for many things at once, in a few threads: one request for each of a fleet's records."""

import collections
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final, TypeVar

from imagefs.errors import ImageRefused, NotFound
from imagefs.store.protocol import Listed, Read, StoredRecord

T = TypeVar("T")
R = TypeVar("R")

THREADS: Final = 16
GENTLE: Final = 2
"""The same, while guests want the interpreter that the answers are read by."""
FIRST: Final = 4
"""At once in the beginning."""
SOON: Final = 0.5
"""Seconds below which a request was answered soon: a page of a thousand keys takes a good server 0.1 to 0.3."""
SLOW: Final = 1.5
"""Seconds above which there are too many at once."""


def each(work: Callable[[T], R], things: Iterable[T], threads: int = THREADS) -> Iterator[tuple[T, R]]:
    """Yield (thing, work(thing)) as they are done, in any order. What `work` raises is raised here, and nothing more is begun."""
    yield from grown(work, things, lambda thing, result: (), threads)


def grown(work: Callable[[T], R], things: Iterable[T], more: Callable[[T, R], Iterable[T]], threads: int = THREADS) -> Iterator[tuple[T, R]]:
    """Like `each`, where a result may lead to `more` things, as the page of a list does to the next one.

    A server that takes long is asked less at once: sixteen requests that take it a second one after the other take sixteen seconds each
    together, and longer than anybody waits.
    """
    left, following = iter(things), collections.deque[T]()
    pace = Pace(threads)

    def timed(thing: T) -> tuple[R, float]:
        started = time.monotonic()
        return work(thing), time.monotonic() - started

    with ThreadPoolExecutor(threads, thread_name_prefix="store-crowd") as pool:
        doing: dict[Future[tuple[R, float]], T] = {}
        try:
            while True:
                while len(doing) < pace.limit and (following or (another := list(itertools.islice(left, 1)))):
                    thing = following.popleft() if following else another[0]
                    doing[pool.submit(timed, thing)] = thing
                if not doing:
                    return
                for future in wait(doing, return_when=FIRST_COMPLETED).done:
                    thing = doing.pop(future)
                    result, taken = future.result()
                    pace.learn(taken)
                    following.extend(more(thing, result))
                    yield thing, result
        finally:
            for future in doing:
                future.cancel()


class Pace:
    """How many requests may be on their way: one more after each that was answered soon, half of them after one that was not."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._share = float(min(most, FIRST))

    @property
    def limit(self) -> int:
        """Requests at once."""
        return int(self._share)

    def learn(self, seconds: float) -> None:
        """Take up how long a request took."""
        if seconds > SLOW:
            self._share = max(1.0, self._share * 0.7)
        elif seconds < SOON:
            self._share = min(float(self._most), self._share + 1)


def read_each(record: Callable[[Listed], StoredRecord], wanted: Iterable[Listed], take: Read) -> int:
    """Do what ImageStore.records says by reading each record with `record`, those that came with the listing excepted."""
    asked = []
    for listed in wanted:
        if listed.stored is not None:
            take(listed, listed.stored)
        else:
            asked.append(listed)

    def read(listed: Listed) -> StoredRecord | ImageRefused | None:
        try:
            return record(listed)
        except NotFound:
            return None
        except ImageRefused as error:
            return error

    for listed, found in each(read, asked):
        if found is not None:
            take(listed, found)
    return len(asked)

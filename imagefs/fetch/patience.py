"""This module decides how long to wait for bytes before asking for them a second time, and how often that may be done; it does no I/O."""

import collections
from typing import Final

LEAST: Final = 0.2
"""Seconds that are always waited: below this a second request costs more than it saves."""

FACTOR: Final = 3
"""Times the slow end (95 %) of what was usual lately, after which something is wrong with this one request."""

SAMPLES: Final = 128
REFRESH: Final = 16
"""Samples after which the slow end is computed anew."""

SHARE: Final = 0.05
"""Of all requests, those that may be second ones: a store that is slow as a whole must not be asked for everything twice."""

SAVED: Final = 4.0
"""Second requests that may be saved up; as many are there at first, for a mount's first boot."""


class Usual:
    """How long something took lately, in seconds."""

    def __init__(self) -> None:
        self._samples: collections.deque[float] = collections.deque(maxlen=SAMPLES)
        self._news = 0
        self._slow = 0.0

    def note(self, seconds: float) -> None:
        """Add one that ended."""
        self._samples.append(seconds)
        self._news += 1
        if self._news >= REFRESH or len(self._samples) < REFRESH:
            ordered = sorted(self._samples)
            self._slow = ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)]
            self._news = 0

    @property
    def patience(self) -> float:
        """Seconds after which one that has not ended is worth a second try."""
        return max(LEAST, FACTOR * self._slow)


class SecondTries:
    """The second requests that may be sent: a share of the first ones.

    Invariant: of n first requests no more than n * SHARE + SAVED get a second one.
    """

    def __init__(self) -> None:
        self._saved = SAVED

    def earn(self) -> None:
        """Note a first request."""
        self._saved = min(SAVED, self._saved + SHARE)

    def take(self, left: float = 0.0) -> bool:
        """Tell whether a second request may be sent now, and count it; `left` of what was saved must remain for others."""
        if self._saved - 1 < left:
            return False
        self._saved -= 1
        return True

"""This module keeps an image from being served once its bytes were found to be other than its record says."""

import copy

from imagefs.cache.filler import Deliver, UnitFiller
from imagefs.errors import WrongBytes
from imagefs.extents import Extents
from imagefs.fetch.traffic import Turn
from imagefs.urgency import Urgency


class Verdict:
    """What was found out about the bytes of one version of an image. It is set on the event loop, and asked in any thread."""

    __slots__ = ("__weakref__", "refusal")

    def __init__(self) -> None:
        self.refusal: WrongBytes | None = None
        """Why nothing of the image is served any more."""

    def check(self) -> None:
        """Raise the refusal, if there is one: a copy for each reader, since a traceback grows with each raise."""
        if self.refusal is not None:
            raise copy.copy(self.refusal) from self.refusal


class JudgedFiller:
    """A UnitFiller that brings nothing of an image that is refused, also not what was on its way by then."""

    def __init__(self, filler: UnitFiller, verdict: Verdict) -> None:
        """Take what brings units, and what is known of the image."""
        self._filler = filler
        self._verdict = verdict
        self.size = filler.size
        """Bytes of the address space."""

    def plan(self, unit: int) -> tuple[int, int]:
        """As UnitFiller says."""
        return self._filler.plan(unit)

    async def extents(self, offset: int, length: int) -> Extents:
        """As UnitFiller says. Raises WrongBytes for a refused image."""
        self._verdict.check()
        return await self._filler.extents(offset, length)

    async def turn(self, urgency: Urgency) -> Turn:
        """As UnitFiller says. Raises WrongBytes for a refused image."""
        self._verdict.check()
        return await self._filler.turn(urgency)

    async def fill(self, first_unit: int, count: int, deliver: Deliver, urgency: Urgency = Urgency.DEMAND) -> None:
        """As UnitFiller says. Raises WrongBytes for a refused image."""
        self._verdict.check()

        def judged(unit: int, body: bytes | None) -> None:
            self._verdict.check()
            deliver(unit, body)

        await self._filler.fill(first_unit, count, judged, urgency)

"""This module is the form of a plan that needs bytes to go on: a generator that says what it wants, all at once, and goes on with the answers.

Each round is a round trip over the network, whatever it wants, so plans ask for all that they can use at a time, and plans that know nothing
of each other go side by side. A plan does no I/O: whoever drives it does, and bounds it.
"""

import dataclasses
from collections.abc import Generator
from typing import TypeVar

Place = tuple[int, int]
"""(offset, length) in bytes. May lie outside the disk, when the image says so: whoever drives the plan cuts it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """What a plan has found out: places that the guest is `likely` to read, in order of use, and those that are `wanted` now to go on."""

    wanted: tuple[Place, ...] = ()
    likely: tuple[Place, ...] = ()


Result = TypeVar("Result")
Plan = Generator[Round, list[bytes], Result]
"""Takes for each wanted place its bytes, fewer or none where they cannot be had, and returns its result at the end."""


def side_by_side(plans: "list[Plan[Result]]") -> "Plan[list[Result | None]]":
    """Plan to do all these in as many rounds as the longest takes. Returns their results in order."""
    results: list[Result | None] = [None] * len(plans)
    answers: dict[int, list[bytes]] = {}
    going = dict(enumerate(plans))
    while going:
        rounds: dict[int, Round] = {}
        for index, plan in list(going.items()):
            try:
                rounds[index] = plan.send(answers[index]) if index in answers else next(plan)
            except StopIteration as end:
                results[index] = end.value
                del going[index]
        if not rounds:
            break
        given = iter((yield Round(
            tuple(place for each in rounds.values() for place in each.wanted),
            tuple(place for each in rounds.values() for place in each.likely),
        )))  # fmt: skip
        answers = {index: [next(given, b"") for _ in each.wanted] for index, each in rounds.items()}
    return results

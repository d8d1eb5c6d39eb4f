"""This module says how urgent the fetching of something is: what a reader waits for, what one will probably want, what may come in its own time."""

import enum


@enum.unique
class Urgency(enum.IntEnum):
    """Why something is fetched; the lower number goes first. Each has slots and worker threads of its own, so that none waits for another's."""

    DEMAND = 0
    """A reader waits for it."""
    AHEAD = 1
    """A reader will probably want it soon: read-ahead, a boot profile, a prefetch that somebody asked for."""
    IDLE = 2
    """Nobody waits for it: hydration. It pauses while DEMAND fetches are under way."""

"""What running a command in a test gives."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


Run = Callable[..., Outcome]

"""This module states invariants: promises of a class that tests have checked."""


def require(holds: bool, promise: str) -> None:
    """Raise AssertionError, naming the promise, unless it holds."""
    if not holds:
        raise AssertionError(f"broken promise: {promise}")

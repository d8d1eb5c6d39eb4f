"""Tests of what mode bits allow a caller."""

import os

import pytest

from imagefs.identity import Caller, mode_allows

DIRECTORY, FILE = 0o040000, 0o100000


@pytest.mark.parametrize(
    ("uid", "gid", "wanted", "mode", "allowed"),
    [
        (1000, 1000, os.R_OK, FILE | 0o400, True),
        (1000, 1000, os.W_OK, FILE | 0o400, False),
        (1000, 1000, os.R_OK, FILE | 0o044, False),  # the owner has the owner's bits only, even if others have more
        (2000, 1000, os.R_OK, FILE | 0o040, True),
        (2000, 1000, os.R_OK, FILE | 0o404, False),
        (2000, 2000, os.R_OK, FILE | 0o004, True),
        (2000, 2000, os.R_OK | os.W_OK, FILE | 0o004, False),
        (0, 0, os.R_OK | os.W_OK, FILE | 0o000, True),
        (0, 0, os.X_OK, FILE | 0o666, False),
        (0, 0, os.X_OK, DIRECTORY | 0o000, True),
    ],
)
def test_mode_allows_as_the_kernel_does(uid: int, gid: int, wanted: int, mode: int, allowed: bool) -> None:
    """For an object of uid 1000 and gid 1000, the answer is the kernel's."""
    assert mode_allows(Caller(uid, gid), wanted, mode, 1000, 1000) is allowed


def test_groups_have_the_callers_own_and_the_databases() -> None:
    """The group a caller runs with counts besides those that the user database gives its uid; an unknown uid has that one only."""
    assert Caller(0, 4242).groups() >= {0, 4242}
    assert Caller(3999999, 7).groups() == {7}

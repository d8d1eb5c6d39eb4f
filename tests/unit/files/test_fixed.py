"""Tests of the parts of the tree that never change."""

import pytest

from imagefs.errors import StoreUnavailable
from imagefs.files.fixed import RootDirectory
from imagefs.identity.caller import Caller
from imagefs.properties.mode import Mode

ROOT = Caller(0, 0)


async def test_the_root_says_why_a_refresh_failed() -> None:
    """Until one succeeds, to the caller it failed for."""
    failures = [StoreUnavailable("the store is away")]

    async def refresh() -> None:
        if failures:
            raise failures.pop()

    root = RootDirectory({}, 0, 0, refresh, lambda _: True)
    with pytest.raises(StoreUnavailable):
        await root.set_xattr(ROOT, "user.imagefs.refresh", b"", Mode.SET)
    assert root.xattrs(ROOT)["user.imagefs.error"] == b"the store is away"
    assert "user.imagefs.error" not in root.xattrs(Caller(1000, 1000))
    await root.set_xattr(ROOT, "user.imagefs.refresh", b"", Mode.SET)
    assert "user.imagefs.error" not in root.xattrs(ROOT)

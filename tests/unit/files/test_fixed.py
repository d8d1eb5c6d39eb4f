"""Tests of the parts of the tree that never change."""

from typing import cast

import pytest

from imagefs.catalog import Catalog
from imagefs.config import IdentityConfig
from imagefs.errors import StoreUnavailable
from imagefs.files.fixed import RootDirectory
from imagefs.identity.caller import Caller
from imagefs.identity.map import IdentityMap
from imagefs.properties.access import Access
from imagefs.properties.mode import Mode
from imagefs.properties.policy import Policies
from imagefs.properties.protection import UNPROTECTED
from imagefs.sight import Sights
from imagefs.upkeep import Upkeep

ROOT = Caller(0, 0)


class NoJobs:
    """An upkeep that has done nothing yet."""

    def result(self, uid: int) -> None:
        return None


def admins() -> Sights:
    """Sights under which root is an admin."""
    identities = IdentityMap(IdentityConfig(), 0, "test")
    return Sights(cast("Catalog", None), identities, Access(Policies.of({}), UNPROTECTED), identities.everyone)


async def test_the_root_says_why_a_refresh_failed() -> None:
    """Until one succeeds, to the caller it failed for."""
    failures = [StoreUnavailable("the store is away")]

    async def refresh() -> None:
        if failures:
            raise failures.pop()

    root = RootDirectory({}, 0, 0, refresh, admins(), cast("Upkeep", NoJobs()))
    with pytest.raises(StoreUnavailable):
        await root.set_xattr(ROOT, "user.imagefs.refresh", b"", Mode.SET)
    assert root.xattrs(ROOT)["user.imagefs.error"] == b"the store is away"
    assert "user.imagefs.error" not in root.xattrs(Caller(1000, 1000))
    await root.set_xattr(ROOT, "user.imagefs.refresh", b"", Mode.SET)
    assert "user.imagefs.error" not in root.xattrs(ROOT)

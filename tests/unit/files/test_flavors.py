"""Tests of flavors/: who finds what there."""

import json
import os
from pathlib import Path
from typing import cast

import pytest

from imagefs.catalog import Catalog, RecordDatabase
from imagefs.config import IdentityConfig, MapEntry
from imagefs.errors import NotFound, ReadOnly
from imagefs.files.flavors import FlavorsDirectory
from imagefs.files.node import Node
from imagefs.flavors import BUILT_IN, make_flavor
from imagefs.identity.caller import Caller
from imagefs.identity.map import IdentityMap
from imagefs.sight import Sights
from imagefs.store.protocol import ImageStore
from tests.support.access import open_access

ROOT, GIVEN, OTHER = Caller(0, 0), Caller(1001, 1001), Caller(1002, 1002)
PRIVATE = make_flavor("gold", vcpus=1, ram=1, disk=1, is_public=False, projects=("p1",))


@pytest.fixture
def flavors(tmp_path: Path) -> FlavorsDirectory:
    """flavors/ with the built-in ones, and a private one for the project of GIVEN."""
    catalog = Catalog(cast("ImageStore", None), RecordDatabase(tmp_path / "db", "test:"))
    identities = IdentityMap(IdentityConfig(map=(MapEntry(uid=1001, project_id="p1"), MapEntry(uid=1002, project_id="p2"))), 0, "test")
    sights = Sights(catalog, identities, open_access(), identities.everyone)
    return FlavorsDirectory({**BUILT_IN, "gold": PRIVATE}, sights, 0, 0)


async def text(node: Node, caller: Caller) -> dict[str, object]:
    """Return what a caller reads."""
    await node.open(caller, os.O_RDONLY)
    found: dict[str, object] = json.loads(bytes(node.read_nowait(0, 10_000) or b""))
    return found


async def test_private_flavor_is_there_for_those_who_may_use_it(flavors: FlavorsDirectory) -> None:
    """Its projects and admins find and list it; to others it is what a name is that nothing has."""
    for caller, there in ((ROOT, True), (GIVEN, True), (OTHER, False)):
        names = [name for name, _ in await flavors.children(caller)]
        assert names == [*BUILT_IN, *(["gold"] if there else [])]
        if there:
            assert (await text(await flavors.lookup(caller, "gold"), caller))["name"] == "gold"
            continue
        for name in ("gold", "silver"):
            with pytest.raises(NotFound, match=f"there is no flavor '{name}'"):
                await flavors.lookup(caller, name)


async def test_only_admins_see_whom_a_flavor_is_for(flavors: FlavorsDirectory) -> None:
    """The file of an admin is another one, and nobody else opens it, not even by its number."""
    shown = await flavors.lookup(GIVEN, "gold")
    whole = await flavors.lookup(ROOT, "gold")
    assert shown.inode != whole.inode
    assert (await text(whole, ROOT))["projects"] == ["p1"]
    assert "projects" not in await text(shown, GIVEN)
    for node, caller in ((whole, GIVEN), (whole, OTHER), (shown, OTHER)):
        with pytest.raises(NotFound):
            await node.open(caller, os.O_RDONLY)
        with pytest.raises(NotFound):
            node.check(caller, os.R_OK)


async def test_kernel_keeps_nothing_of_private_flavors(flavors: FlavorsDirectory) -> None:
    """Public ones are the same for all, and are kept; lists differ by who asks."""
    private, public = await flavors.lookup(ROOT, "gold"), await flavors.lookup(ROOT, "m1.small")
    assert (private.attributes().name_timeout, private.attributes().attributes_timeout) == (0, 0)
    assert public.attributes().name_timeout > 0
    assert public is await flavors.lookup(OTHER, "m1.small")
    assert len({flavors.listing_inode(caller) for caller in (ROOT, GIVEN, OTHER)}) == 3


async def test_all_files_are_found_by_number(flavors: FlavorsDirectory) -> None:
    """A daemon that was started anew finds each file that an earlier one told of."""
    known = {node.inode for node in flavors.fixed}
    for caller in (ROOT, GIVEN, OTHER):
        for name, give in await flavors.children(caller):
            assert give().inode in known, name
    assert len(known) == len(BUILT_IN) + 2


async def test_flavors_are_never_written(flavors: FlavorsDirectory) -> None:
    """Whoever asks, and whichever flavor it is."""
    for name in ("gold", "m1.small"):
        node = await flavors.lookup(ROOT, name)
        with pytest.raises(ReadOnly):
            await node.open(ROOT, os.O_WRONLY)
        with pytest.raises(ReadOnly):
            await node.write(0, b"x")
    with pytest.raises(ReadOnly):
        await flavors.make_file(ROOT, "silver", 0o600)

"""Tests of what identities see of the catalog: lists, names, and what the kernel may keep for everybody."""

from pathlib import Path
from typing import cast

import msgspec
import pytest
from trio.testing import MockClock

from imagefs.catalog import Catalog, CatalogImage, RecordDatabase
from imagefs.config import IdentityConfig, MapEntry
from imagefs.errors import NotFound, StoreUnavailable
from imagefs.identity.caller import Caller
from imagefs.identity.map import Identity, IdentityMap
from imagefs.properties.access import Access
from imagefs.properties.policy import Policies
from imagefs.properties.protection import UNPROTECTED, Protection
from imagefs.sight import COMMON_LIMIT, QUESTIONS, QUESTIONS_PER_SECOND, Sights
from imagefs.store.protocol import ImageStore, StoredRecord
from imagefs.store.record import ImageRecord, Member

OURS, THEIRS = "ours", "theirs"
OWNER, STRANGER, NOBODY = Caller(1001, 1001), Caller(1002, 1002), Caller(1003, 1003)
CONFIG = IdentityConfig(
    map=(
        MapEntry(uid=1001, roles=("member", "reader"), project_id=OURS),
        MapEntry(uid=1002, roles=("member", "reader"), project_id=THEIRS),
    )
)


def image(number: int, name: str, *, created: str = "2026-01-01T00:00:00Z", **attributes: object) -> ImageRecord:
    """Return a record of an active image that OURS owns."""
    base = ImageRecord(
        id=f"{number:08x}-0000-4000-8000-000000000000",
        created_at=created,
        updated_at=created,
        name=name,
        status="active",
        owner=OURS,
        visibility="private",
    )
    return msgspec.structs.replace(base, **attributes)


class Shelf:
    """A store with one image that no look has seen."""

    url = "test:"

    def __init__(self, unseen: ImageRecord | None = None) -> None:
        self.unseen = unseen
        self.asked = 0

    def find(self, image_id: str) -> StoredRecord:
        self.asked += 1
        if self.unseen is None or self.unseen.id != image_id:
            raise NotFound(image_id)
        return StoredRecord(self.unseen, "1")


def make_sights(tmp_path: Path, *records: ImageRecord, access: Access | None = None, unseen: ImageRecord | None = None) -> Sights:
    """Return the sights of a catalog with these images."""
    database = RecordDatabase(tmp_path / "db", "test:")
    database.save([CatalogImage(record, "1") for record in records], [])
    catalog = Catalog(cast("ImageStore", Shelf(unseen)), database)
    identities = IdentityMap(CONFIG, 0, "test")
    return Sights(catalog, identities, access or Access(Policies.of({}), UNPROTECTED), identities.everyone)


async def test_an_image_that_is_not_seen_is_as_one_that_does_not_exist(tmp_path: Path) -> None:
    """`find` says the same of a hidden image as of none, whether a look has seen it or the store must be asked."""
    private, unseen = image(1, "private"), image(2, "unseen")
    sights = make_sights(tmp_path, private, unseen=unseen)
    for record in (private, unseen):
        with pytest.raises(NotFound, match=f"^there is no image {record.id}$"):
            await sights.of(STRANGER).find(record.id)
        assert (await sights.of(OWNER).find(record.id)).record == record
    unknown = image(3, "").id
    with pytest.raises(NotFound, match=f"^there is no image {unknown}$"):
        await sights.of(STRANGER).find(unknown)
    with pytest.raises(NotFound):
        await sights.of(OWNER).find("../../etc")


async def test_a_store_that_fails_does_not_tell_who_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store is down an unknown id is as absent as a hidden image; an admin is told what is wrong."""
    hidden, unknown = image(1, "private"), image(2, "unknown")
    sights = make_sights(tmp_path, hidden)

    def fail(self: Shelf, image_id: str) -> StoredRecord:
        raise StoreUnavailable("the store is down")

    monkeypatch.setattr(Shelf, "find", fail)
    for record in (hidden, unknown):
        with pytest.raises(NotFound, match=f"^there is no image {record.id}$"):
            await sights.of(STRANGER).find(record.id)
    with pytest.raises(StoreUnavailable):
        await sights.of(Caller(0, 0)).find(unknown.id)


async def test_an_id_is_never_taken_for_a_name(tmp_path: Path) -> None:
    """An image that is named like the id of one that is gone does not take its place."""
    gone = image(9, "gone").id
    sights = make_sights(tmp_path, image(1, gone))
    with pytest.raises(NotFound):
        await sights.of(OWNER).resolve(gone)


async def test_names_are_those_of_the_callers_own_list(tmp_path: Path) -> None:
    """A newer image of another project, shared by nobody or merely known by id, does not take a name."""
    ours = image(1, "debian")
    community = image(2, "debian", owner=THEIRS, visibility="community", created="2026-02-01T00:00:00Z")
    pending = image(3, "debian", owner=THEIRS, visibility="shared", members=(Member(OURS, "pending"),), created="2026-03-01T00:00:00Z")
    hidden = image(4, "debian", os_hidden=True, created="2026-04-01T00:00:00Z")
    sights = make_sights(tmp_path, ours, community, pending, hidden)
    assert await sights.of(OWNER).names() == {"debian": ours.id}
    assert (await sights.of(OWNER).resolve("debian")).record.id == ours.id
    assert (await sights.of(OWNER).resolve(community.id)).record.id == community.id
    names = await sights.of(STRANGER).names()
    assert names["debian"] == pending.id
    assert set(names.values()) == {community.id, pending.id}
    assert await sights.of(NOBODY).names() == {}


async def test_a_name_that_is_cut_is_found_whole(tmp_path: Path) -> None:
    """An image whose name is too long for names/ is found by its name all the same, if it is seen."""
    name = "é" * 200
    sights = make_sights(tmp_path, image(1, name), image(2, name, created="2026-01-02T00:00:00Z"))
    assert (await sights.of(OWNER).resolve(name)).record.id == image(2, name).id
    for caller, wanted in ((OWNER, "é" * 201), (STRANGER, name)):
        with pytest.raises(NotFound):
            await sights.of(caller).resolve(wanted)


async def test_the_listing_has_a_line_for_what_is_seen(tmp_path: Path) -> None:
    """All that is visible by id is in it, with what is not in the default list marked, and with the caller's own membership only."""
    shared = image(1, "shared", visibility="shared", members=(Member(THEIRS, "pending"), Member("third", "accepted")))
    community = image(2, "community", visibility="community", properties={"os_distro": "debian"})
    sights = make_sights(tmp_path, shared, community, image(3, "private"))
    lines = [msgspec.json.decode(line) for line in (await sights.of(STRANGER).listing()).read(0, 1 << 30).splitlines()]
    assert {line["name"]: line["imagefs.listed"] for line in lines} == {"shared": False, "community": False}
    assert lines[0]["imagefs.member_status"] == "pending"
    assert "third" not in repr(lines)
    assert lines[1]["os_distro"] == "debian"


async def test_only_what_everybody_sees_is_public(tmp_path: Path) -> None:
    """A public image is not for everybody while some callers have no role that lets them see it."""
    public = image(1, "public", visibility="public")
    sights = make_sights(tmp_path, public, image(2, "private"))
    known = {name: await sights.of(Caller(0, 0)).resolve(name) for name in ("public", "private")}
    assert not sights.is_public(known["public"])  # the default identity has no role at all
    sights.replace(Access(Policies.of({"get_image": "role:reader or 'public':%(visibility)s or rule:context_is_admin"}), UNPROTECTED))
    assert sights.is_public(known["public"])
    assert not sights.is_public(known["private"])


async def test_new_rules_are_obeyed_at_once(tmp_path: Path) -> None:
    """After `replace` nothing is left of what the old rules said: images, lists, names, properties."""
    sights = make_sights(tmp_path, image(1, "private", properties={"secret": "x", "plain": "y"}))
    before = sights.of(OWNER)
    found = await before.resolve("private")
    assert "user.secret" in before.xattrs(found).xattrs
    rules = b"[secret]\ncreate=!\nread=!\nupdate=!\ndelete=!\n[.*]\ncreate=@\nread=@\nupdate=@\ndelete=@\n"
    policies = Policies.of({"get_image": "@"})
    generation = sights.generation
    sights.replace(Access(policies, Protection.parse(rules, "test", "roles", policies)))
    assert sights.generation != generation
    assert "user.secret" not in sights.of(OWNER).xattrs(found).xattrs
    assert sights.of(OWNER).xattrs(found).xattrs["user.plain"] == b"y"
    sights.replace(Access(Policies.of({"get_image": "!"}), UNPROTECTED))
    assert not sights.of(OWNER).sees(found)
    assert await sights.of(OWNER).names() == {}


def test_a_map_that_is_too_large_makes_nothing_public(tmp_path: Path) -> None:
    """With very many identities nobody works out whether all of them see an image: the kernel keeps nothing then."""
    public = image(1, "public", visibility="public")
    sights = make_sights(tmp_path, public, access=Access(Policies.of({"get_image": "@"}), UNPROTECTED))
    sights._common = [Identity(project_id=str(number)) for number in range(COMMON_LIMIT + 1)]
    assert not sights.is_public(CatalogImage(public, "1"))


async def test_trying_out_ids_does_not_load_the_store(tmp_path: Path, mock_clock: MockClock) -> None:
    """Who asks for many ids that no look has found soon has few of them looked for; others, and admins, are not touched by that."""
    sights = make_sights(tmp_path)
    shelf = cast("Shelf", sights._catalog._store)

    async def ask(caller: Caller, times: int) -> int:
        before = shelf.asked
        for number in range(times):
            with pytest.raises(NotFound, match=r"^there is no image|^[0-9a-f-]{36}$"):
                await sights.of(caller).find(f"{number:08x}-2222-4222-8222-222222222222")
        return shelf.asked - before

    assert await ask(STRANGER, 3 * QUESTIONS) == QUESTIONS
    assert await ask(OWNER, 3) == 3
    mock_clock.jump(5)
    assert await ask(STRANGER, 3 * QUESTIONS) == 5 * QUESTIONS_PER_SECOND
    assert await ask(Caller(0, 0), 3 * QUESTIONS) == 3 * QUESTIONS


async def test_more_members_than_an_attribute_holds_are_left_out(tmp_path: Path) -> None:
    """A list of members over 64 KiB is counted as omitted and not listed: nobody could read it."""
    few, many = (tuple(Member(f"{number:03}" + "\U0001f600" * 250) for number in range(count)) for count in (2, 128))
    sights = make_sights(tmp_path, image(1, "few", visibility="shared", members=few), image(2, "many", visibility="shared", members=many))
    sight = sights.of(OWNER)
    assert "user.imagefs.members" in sight.xattrs(await sight.resolve("few")).xattrs
    shown = sight.xattrs(await sight.resolve("many")).xattrs
    assert "user.imagefs.members" not in shown
    assert shown["user.imagefs.omitted"] == b"1"

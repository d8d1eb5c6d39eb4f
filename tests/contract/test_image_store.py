"""What every ImageStore promises: imagefs's own layout over a directory and a real S3 server, and a real Glance."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import threading
import uuid
from collections.abc import Callable

import msgspec
import pytest

from imagefs.errors import AlreadyExists, Conflict, InvalidInput, NotFound, NotPermitted, Unsupported
from imagefs.store.glance.store import GlanceStore
from imagefs.store.layout import ImagefsLayout
from imagefs.store.protocol import PROFILE_LIMIT, Bucket, ImageStore, StoredRecord
from imagefs.store.record import ImageRecord, Member
from imagefs.units import MIB
from tests.support.glance import Glance
from tests.support.sources import Bomb, given

BODY = bytes(range(256)) * 1000 + b"the last unit is short"


@dataclasses.dataclass(frozen=True)
class World:
    """A store, and what is left of an image in it: keys, files, records."""

    store: ImageStore
    leftovers: Callable[[str], list[str]]

    def create(self, body: bytes = BODY, **attributes: object) -> ImageRecord:
        """Store an image under a new id, unless `attributes` has one."""
        return self.store.create(record(**attributes), given(body), lambda _: None).record


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3), pytest.param("glance", marks=pytest.mark.glance)])
def world(request: pytest.FixtureRequest) -> World:
    """Each kind of store in turn. The Glance is not empty: images of other tests may be in it."""
    if request.param == "glance":
        glance: Glance = request.getfixturevalue("glance")
        store: GlanceStore = request.getfixturevalue("glance_store")
        return World(store, glance.leftovers)
    bucket: Bucket = request.getfixturevalue(f"{request.param}_bucket")
    return World(ImagefsLayout(bucket), lambda image_id: [entry.key for entry in bucket.list() if entry.key.startswith(image_id)])


def record(**attributes: object) -> ImageRecord:
    new = ImageRecord(id=str(uuid.uuid4()), created_at="", updated_at="", disk_format="raw", container_format="bare")
    return msgspec.structs.replace(new, **attributes)


def listed(world: World, image_id: str) -> StoredRecord | None:
    """Return what a listing says of one image."""
    found = [entry for entry in world.store.list() if entry.image_id == image_id]
    if not found:
        return None
    (entry,) = found
    stored = world.store.record(entry)
    assert stored.version == entry.version
    return stored


def with_property(name: str, old: ImageRecord) -> ImageRecord:
    return msgspec.structs.replace(old, properties={**old.properties, name: "x"})


def test_a_store_can_be_checked(world: World) -> None:
    """Check returns for a store that is there."""
    world.store.check()


def test_a_created_image_is_active_with_everything_filled_in(world: World) -> None:
    """Create returns the record with size, hashes and times, and find and the listing have the same one."""
    wanted = record(name="debian", min_disk=2, min_ram=64, visibility="public", properties={"os_distro": "debian", "a/b~c": "ü "}, tags=("t1", "t2"))
    made = world.store.create(wanted, given(BODY), lambda _: None)
    learnt = {"size": len(BODY), "checksum": hashlib.md5(BODY, usedforsecurity=False).hexdigest(), "os_hash_algo": "sha512"}
    for name, value in {**msgspec.structs.asdict(wanted), **learnt, "os_hash_value": hashlib.sha512(BODY).hexdigest(), "status": "active"}.items():
        if name not in ("created_at", "updated_at", "owner", "virtual_size", "tree"):
            assert getattr(made.record, name) == value, name
    assert "2026-01-01" < made.record.created_at <= made.record.updated_at
    assert world.store.find(wanted.id) == listed(world, wanted.id) == made


def test_the_bytes_of_an_image_read_back(world: World) -> None:
    """Ranges give exactly their bytes, cut at the end, and nothing past it."""
    data = world.store.data(world.create())
    assert data.size == len(BODY)
    for offset, length in ((0, 1), (1000, 70_000), (0, len(BODY)), (len(BODY) - 3, 100), (len(BODY), 1), (len(BODY) + 9, 9)):
        assert b"".join(data.stream(offset, length)) == BODY[offset : offset + length]


def test_a_stream_may_be_left_early(world: World) -> None:
    """After a reader that took one piece only, the next one reads right bytes."""
    data = world.store.data(world.create(bytes(range(256)) * 4096 * 4))
    for _ in range(3):
        stream = data.stream(0, data.size)
        assert next(stream)[:4] == b"\0\1\2\3"
        stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert b"".join(data.stream(255, 2)) == b"\xff\0"


def test_an_image_of_no_bytes_can_be_created(world: World) -> None:
    """An empty image is active and reads as nothing."""
    made = world.create(b"")
    assert (made.size, made.status) == (0, "active")
    assert list(world.store.data(made).stream(0, 1)) == []


def test_progress_adds_up_to_the_size(world: World) -> None:
    """What is reported while an image is stored is its bytes, in several steps."""
    steps: list[int] = []
    world.store.create(record(), given(bytes(4 * MIB)), steps.append)
    assert sum(steps) == 4 * MIB
    assert len(steps) > 1


def test_there_is_no_page_of_digests_past_the_last(world: World) -> None:
    """A page that the store has not is NotFound."""
    with pytest.raises(NotFound, match="no page 2"):
        world.store.digest_page(world.create(), 2)


def test_the_bytes_of_an_image_that_is_gone_are_not_found(world: World) -> None:
    """Data of a deleted image raises NotFound, at its first read if not before."""
    made = world.create()
    world.store.delete(made.id)
    with pytest.raises(NotFound):
        list(world.store.data(made).stream(0, 1))


def test_an_id_that_is_taken_is_refused_and_its_image_untouched(world: World) -> None:
    """Create with the id of another image raises AlreadyExists and neither changes nor removes that image."""
    made = world.create(name="mine")
    with pytest.raises(AlreadyExists, match=made.id):
        world.create(b"other bytes", id=made.id, name="other")
    assert world.store.find(made.id).record == made
    assert b"".join(world.store.data(made).stream(0, len(BODY))) == BODY


def test_a_source_that_ends_early_leaves_no_image(world: World) -> None:
    """Create of fewer bytes than announced fails with the reason and leaves nothing."""
    wanted = record()
    with pytest.raises(InvalidInput, match="ended after 100 of 200 bytes"):
        world.store.create(wanted, given(bytes(100), 200), lambda _: None)
    assert world.leftovers(wanted.id) == []


@pytest.mark.parametrize("error", [RuntimeError("bang"), KeyboardInterrupt(), OSError(5, "Input/output error")], ids=["error", "interrupt", "EIO"])
def test_a_creation_that_is_broken_off_leaves_nothing(world: World, error: BaseException) -> None:
    """Whatever ends a creation, the record and the data are gone after it, also of an image that was to be protected."""
    wanted = record(protected=True)
    with pytest.raises(InvalidInput if isinstance(error, OSError) else type(error)):
        world.store.create(wanted, given(Bomb(error), 4 * MIB), lambda _: None)
    assert world.leftovers(wanted.id) == []
    with pytest.raises(NotFound):
        world.store.find(wanted.id)


def test_an_image_is_queued_while_its_content_is_made(world: World) -> None:
    """The image is there, for find and in the listing, without bytes, before its content is asked for; that is asked for once."""
    wanted = record(name="later", properties={"instance_uuid": "x"})
    seen: list[StoredRecord | None] = []

    def content() -> tuple[io.BytesIO, int]:
        seen.extend((world.store.find(wanted.id), listed(world, wanted.id)))
        return io.BytesIO(BODY), len(BODY)

    made = world.store.create(wanted, content, lambda _: None)
    assert len(seen) == 2
    for stored in seen:
        assert stored is not None
        assert (stored.record.status, stored.record.size, stored.record.name) == ("queued", None, "later")
        assert stored.record.properties == {"instance_uuid": "x"}
    assert (made.record.status, made.record.size) == ("active", len(BODY))


@pytest.mark.parametrize("error", [RuntimeError("no room for it"), KeyboardInterrupt(), NotPermitted("no")], ids=["error", "interrupt", "refused"])
def test_content_that_cannot_be_made_leaves_no_image(world: World, error: BaseException) -> None:
    """What making the content raises passes through, and the queued image is gone."""
    wanted = record(protected=True)

    def content() -> tuple[io.BytesIO, int]:
        assert world.store.find(wanted.id).record.status == "queued"
        raise error

    with pytest.raises(type(error)):
        world.store.create(wanted, content, lambda _: None)
    assert world.leftovers(wanted.id) == []
    with pytest.raises(NotFound):
        world.store.find(wanted.id)


def test_an_image_deleted_while_its_content_is_made_stays_deleted(world: World) -> None:
    """Its bytes are not stored then, and nothing is left."""
    wanted = record()

    def content() -> tuple[io.BytesIO, int]:
        world.store.delete(wanted.id)
        return io.BytesIO(BODY), len(BODY)

    with pytest.raises(NotFound):
        world.store.create(wanted, content, lambda _: None)
    assert world.leftovers(wanted.id) == []


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("size", [100_000, 30 * MIB], ids=["small", "parts"])
def test_progress_may_break_a_creation_off(world: World, error: BaseException, size: int) -> None:
    """What progress raises, at the first bytes or at the last, passes through soon and leaves nothing, also where an image goes in several parts."""
    body = bytes(range(250)) * (size // 250)
    for enough in (1, len(body)):
        wanted = record()
        steps: list[int] = []

        def stop(count: int, enough: int = enough, steps: list[int] = steps) -> None:
            steps.append(count)
            if sum(steps) >= enough:
                raise error

        with pytest.raises(type(error)):
            world.store.create(wanted, given(body), stop)
        assert sum(steps) >= enough
        assert world.leftovers(wanted.id) == []
        with pytest.raises(NotFound):
            world.store.find(wanted.id)


def test_an_image_deleted_while_it_is_stored_stays_deleted(world: World) -> None:
    """Deleting an image that is being stored makes the creation fail, and nothing is left."""
    wanted = record()
    deletions = iter([world.store.delete])

    def delete_once() -> None:
        for delete in deletions:
            delete(wanted.id)

    with pytest.raises(NotFound):
        world.store.create(wanted, given(Bomb(delete_once), 4 * MIB), lambda _: None)
    assert world.leftovers(wanted.id) == []


def test_a_property_set_while_the_image_is_stored_is_kept(world: World) -> None:
    """An update during the upload neither fails nor is lost."""
    wanted = record()
    renames = iter([world.store.update])

    def rename_once() -> None:
        for update in renames:
            update(wanted.id, lambda old: msgspec.structs.replace(old, name="renamed"))

    made = world.store.create(wanted, given(Bomb(rename_once), 4 * MIB), lambda _: None)
    assert (made.record.name, made.record.status) == ("renamed", "active")


def test_update_changes_the_record(world: World) -> None:
    """Update writes what the change returns, with a new version, and touches nothing else."""
    made = world.create(properties={"keep": "1", "drop": "2", "set": "3"}, tags=("old", "stay"))
    version = world.store.find(made.id).version

    def change(old: ImageRecord) -> ImageRecord:
        properties = {"keep": "1", "set": "", "new/~ one": "ü"}
        return msgspec.structs.replace(old, name="new", os_hidden=True, min_ram=5, properties=properties, tags=("new", "stay"), protected=True)

    changed = world.store.update(made.id, change)
    assert msgspec.structs.replace(changed.record, updated_at="") == msgspec.structs.replace(change(made), updated_at="")
    assert changed.record.updated_at >= made.updated_at
    assert changed.version != version
    assert world.store.find(made.id) == listed(world, made.id) == changed


def test_members_are_added_changed_and_removed(world: World) -> None:
    """The members of a shared image are part of its record, and change its version."""
    made = world.create(members=(Member("p1"), Member("p2", "accepted")))
    assert world.store.find(made.id).record.members == (Member("p1"), Member("p2", "accepted"))
    version = world.store.find(made.id).version
    changed = world.store.update(made.id, lambda old: msgspec.structs.replace(old, members=(Member("p1", "rejected"), Member("p3"))))
    assert changed.record.members == (Member("p1", "rejected"), Member("p3"))
    assert changed.version != version
    assert listed(world, made.id) == changed


def test_an_image_is_deactivated_and_reactivated(world: World) -> None:
    """The status changes back and forth, and the bytes stay readable for those who may."""
    made = world.create()
    off = world.store.update(made.id, lambda old: msgspec.structs.replace(old, status="deactivated"))
    assert off.record.status == world.store.find(made.id).record.status == "deactivated"
    assert b"".join(world.store.data(off.record).stream(0, 10)) == BODY[:10]
    assert world.store.update(made.id, lambda old: msgspec.structs.replace(old, status="active")).record.status == "active"


def test_an_update_that_changes_nothing_writes_nothing(world: World) -> None:
    """A change that returns an equal record leaves version and updated_at."""
    image_id = world.create().id
    before = world.store.find(image_id)
    assert world.store.update(image_id, lambda old: old) == before
    assert world.store.find(image_id) == before


def test_what_the_change_raises_ends_the_update(world: World) -> None:
    """An error of the change function passes through, and nothing is written."""
    before = world.create()

    def refuse(_: ImageRecord) -> ImageRecord:
        raise NotPermitted("no")

    with pytest.raises(NotPermitted, match="no"):
        world.store.update(before.id, refuse)
    assert world.store.find(before.id).record == before


def test_concurrent_updates_are_all_kept(world: World) -> None:
    """Four writers of one process that each set properties of their own lose none."""
    image_id = world.create(b"small").id

    def write(writer: int) -> None:
        for number in range(3):
            world.store.update(image_id, functools.partial(with_property, f"w{writer}n{number}"))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(world.store.find(image_id).record.properties) == 12


def test_delete_removes_everything(world: World) -> None:
    """After delete nothing of the image is left, and other images are."""
    made, other = world.create(), world.create()
    world.store.delete(made.id)
    assert world.leftovers(made.id) == []
    assert world.leftovers(other.id)
    assert listed(world, made.id) is None
    assert listed(world, other.id) is not None
    for ask in (world.store.find, world.store.delete, lambda image_id: world.store.update(image_id, lambda old: old)):
        with pytest.raises(NotFound, match=made.id):
            ask(made.id)


def test_a_protected_image_is_not_deleted(world: World) -> None:
    """Delete of a protected image raises NotPermitted, and all of it stays."""
    made = world.create(protected=True)
    with pytest.raises(NotPermitted, match="protected"):
        world.store.delete(made.id)
    assert b"".join(world.store.data(world.store.find(made.id).record).stream(0, 100)) == BODY[:100]
    assert world.store.find(made.id).record == made


@pytest.mark.parametrize("image_id", ["", "..", "not-a-uuid", f"../{uuid.UUID(int=1)}", "AAAAAAAA-2222-4333-8444-555555555555", "detail?x=1", "a/b"])
def test_what_is_no_image_id_is_not_found(world: World, image_id: str) -> None:
    """Find never makes a path of something that is not an image id."""
    with pytest.raises(NotFound):
        world.store.find(image_id)


def test_a_boot_profile_is_kept_beside_its_image_or_not_at_all(world: World) -> None:
    """A store that keeps profiles gives back the newest; one that does not says so, and has none."""
    made = world.create()
    assert world.store.profile(made) is None
    if isinstance(world.store, GlanceStore):
        with pytest.raises(Unsupported, match=made.id):
            world.store.put_profile(made, b"one", None)
        assert world.store.profile(made) is None
        return
    world.store.put_profile(made, b"one", None)
    found = world.store.profile(made)
    assert found is not None
    assert found[0] == b"one"
    world.store.put_profile(made, b"two, which is longer", found[1])
    newest = world.store.profile(made)
    assert newest is not None
    assert newest[0] == b"two, which is longer"
    assert newest[1] != found[1]
    assert world.store.find(made.id).record == made


def test_a_boot_profile_is_written_only_over_the_one_that_was_read(world: World) -> None:
    """Of two nodes that end their boots at once one gets Conflict, and reads again."""
    made = world.create()
    with contextlib.suppress(Unsupported):
        world.store.put_profile(made, b"one", None)
        for expected in (None, "another version"):
            with pytest.raises(Conflict):
                world.store.put_profile(made, b"two", expected)
        found = world.store.profile(made)
        assert found is not None
        assert found[0] == b"one"


def test_a_hostile_boot_profile_is_cut(world: World) -> None:
    """However long the object is, PROFILE_LIMIT bytes of it are read."""
    made = world.create()
    with contextlib.suppress(Unsupported):
        world.store.put_profile(made, bytes(PROFILE_LIMIT + 9), None)
        found = world.store.profile(made)
        assert found is not None
        assert len(found[0]) == PROFILE_LIMIT


def test_a_boot_profile_goes_with_its_image(world: World) -> None:
    """Deleting leaves nothing of it, and what is written afterwards does not stay: there is no image that it could be of."""
    made = world.create()
    with contextlib.suppress(Unsupported):
        world.store.put_profile(made, b"one", None)
    world.store.delete(made.id)
    assert world.leftovers(made.id) == []
    with pytest.raises((NotFound, Unsupported)):
        world.store.put_profile(made, b"two", None)
    assert world.leftovers(made.id) == []
    assert world.store.profile(made) is None

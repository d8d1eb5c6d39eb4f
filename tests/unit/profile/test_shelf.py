"""Where profiles lie: two nodes and a store, what each learns of the other, and what is written when."""

import os
import stat
from pathlib import Path
from typing import cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

from imagefs.catalog import CatalogImage
from imagefs.profile.merge import boot_set
from imagefs.profile.record import KEPT_BOOTS, Boot, decode, encode
from imagefs.profile.shelf import ABANDONED_SECONDS, ABSENT_SECONDS, FOUND_SECONDS, REMEMBERED, ProfileShelf
from imagefs.store.protocol import ImageStore
from tests.support.booting import DISK, IMAGE, IMAGE_ID, OTHER_BYTES, ProfileStore, boot, profile_of, scattered

UNITS = scattered(200)


def shelf_of(store: ProfileStore, directory: Path, nursery: trio.Nursery) -> ProfileShelf:
    return ProfileShelf(cast("ImageStore", store), directory, nursery, chance=lambda: 0.0)


async def learnt(shelf: ProfileShelf, image: CatalogImage = IMAGE, disk_size: int = DISK) -> list[int]:
    """Return what a boot is expected to read, once all has been asked."""
    known = shelf.ask(image)
    await known.settled.wait()
    return list(known.units(disk_size))


def stored(store: ProfileStore) -> list[Boot]:
    """Return the boots of the store's profile."""
    return list(decode(store.bodies[IMAGE_ID][0], "store").boots)


async def test_nothing_is_known_of_an_image_that_nobody_booted(nursery: trio.Nursery, tmp_path: Path) -> None:
    """No profile anywhere is no error, and nothing is made on the disk."""
    shelf = shelf_of(ProfileStore(), tmp_path / "profiles", nursery)
    assert await learnt(shelf) == []
    assert not (tmp_path / "profiles").exists()


async def test_a_boot_is_kept_here_and_in_the_store(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Both have the same profile; the file is the owner's alone."""
    store = ProfileStore()
    shelf = shelf_of(store, tmp_path / "profiles", nursery)
    one = boot(UNITS)
    await shelf.add(IMAGE, DISK, one)
    body = (tmp_path / "profiles" / IMAGE_ID).read_bytes()
    assert body == store.bodies[IMAGE_ID][0] == encode(profile_of(one))
    assert stat.S_IMODE((tmp_path / "profiles" / IMAGE_ID).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "profiles").stat().st_mode) == 0o700
    assert await learnt(shelf) == UNITS


async def test_another_node_learns_through_the_store(nursery: trio.Nursery, tmp_path: Path) -> None:
    """What one node has recorded the other replays, and the other's boot joins the profile of both."""
    store = ProfileStore()
    one, other = (shelf_of(store, tmp_path / name, nursery) for name in ("one", "other"))
    await one.add(IMAGE, DISK, first := boot(UNITS, 1))
    assert await learnt(other) == UNITS
    await other.add(IMAGE, DISK, second := boot([*UNITS[5:], 1, 2, 3], 2))
    assert stored(store) == [first, second]
    assert decode((tmp_path / "other" / IMAGE_ID).read_bytes(), "").boots == (first, second)
    assert await learnt(shelf_of(store, tmp_path / "one", nursery)) == UNITS[5:]


async def test_the_same_boot_in_both_places_counts_once(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Or a single boot would seem to be two that agree, and its odd reads would stay."""
    store = ProfileStore()
    await shelf_of(store, tmp_path, nursery).add(IMAGE, DISK, boot(UNITS))
    known = shelf_of(store, tmp_path, nursery).ask(IMAGE)
    await known.settled.wait()
    assert len(known.boots) == 1


async def test_boots_that_only_one_place_has_are_put_together(nursery: trio.Nursery, tmp_path: Path) -> None:
    """The file has boots that the store did not take, and the store those of other nodes: the newest five count."""
    store = ProfileStore()
    local = [boot(UNITS, 2 * number) for number in range(4)]
    theirs = [boot(UNITS, 2 * number + 1) for number in range(4)]
    tmp_path.joinpath(IMAGE_ID).write_bytes(encode(profile_of(*local)))
    store.keep(profile_of(*theirs))
    known = shelf_of(store, tmp_path, nursery).ask(IMAGE)
    await known.settled.wait()
    assert [found.recorded_at for found in known.boots] == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("where", ["file", "store"])
async def test_a_profile_of_other_bytes_is_not_used_and_overwritten(where: str, nursery: trio.Nursery, tmp_path: Path) -> None:
    """The image has other bytes, or a disk of another size, or the file is another image's: then nothing is expected, and that is no error."""
    renamed = CatalogImage(msgspec.structs.replace(IMAGE.record, id="99999999-6a4c-4b11-9c6b-0f3c1d2e4f50"), "1")
    usual = boot(UNITS)
    others = (profile_of(usual, image=OTHER_BYTES), profile_of(usual, disk_size=DISK + 512), profile_of(usual, image=renamed))
    for number, other in enumerate(others):
        store, directory = ProfileStore(), tmp_path / f"{number}"
        directory.mkdir()
        if where == "file":
            (directory / IMAGE_ID).write_bytes(encode(other))
        else:
            store.bodies[IMAGE_ID] = (encode(other), "v")
        shelf = shelf_of(store, directory, nursery)
        assert await learnt(shelf) == []
        await shelf.add(IMAGE, DISK, new := boot(UNITS[:50]))
        assert stored(store) == [new]
        assert decode((directory / IMAGE_ID).read_bytes(), "") == profile_of(new)


async def test_a_name_that_the_bytes_had_before_still_fits(nursery: trio.Nursery, tmp_path: Path) -> None:
    """An image that was hashed after its first boots keeps their profile."""
    before = CatalogImage(msgspec.structs.replace(IMAGE.record, os_hash_value=None), "1")
    assert before.data_version != IMAGE.data_version
    tmp_path.joinpath(IMAGE_ID).write_bytes(encode(profile_of(boot(UNITS), image=before)))
    assert await learnt(shelf_of(ProfileStore(), tmp_path, nursery)) == UNITS


async def test_the_store_is_asked_once_in_a_while(mock_clock: MockClock, nursery: trio.Nursery, tmp_path: Path) -> None:
    """Who asks at the same time shares one question; an absent profile is remembered for seconds, a present one for minutes."""
    store = ProfileStore()
    shelf = shelf_of(store, tmp_path, nursery)
    assert shelf.ask(IMAGE) is shelf.ask(IMAGE)
    await learnt(shelf)
    assert store.calls == ["profile"]
    store.keep(profile_of(boot(UNITS)))
    mock_clock.jump(ABSENT_SECONDS - 1)
    assert await learnt(shelf) == []
    mock_clock.jump(2)
    assert await learnt(shelf) == UNITS
    mock_clock.jump(FOUND_SECONDS - 1)
    assert await learnt(shelf) == UNITS
    assert store.calls == ["profile"] * 2
    mock_clock.jump(2)
    known = shelf.ask(IMAGE)
    assert list(known.units(DISK)) == UNITS  # what was known serves until there is newer
    await known.settled.wait()
    assert store.calls == ["profile"] * 3


async def test_a_full_profile_that_agrees_is_not_written_again(nursery: trio.Nursery, tmp_path: Path) -> None:
    """The hundredth boot of an image costs the store nothing; one that reads other things is taken up."""
    store = ProfileStore()
    shelf = shelf_of(store, tmp_path, nursery)
    for number in range(KEPT_BOOTS):
        await shelf.add(IMAGE, DISK, boot(UNITS, number))
    calls, body = len(store.calls), store.bodies[IMAGE_ID]
    await shelf.add(IMAGE, DISK, boot(UNITS, 100))
    assert (len(store.calls), store.bodies[IMAGE_ID]) == (calls, body)
    await shelf.add(IMAGE, DISK, new := boot(range(1, 401, 2), 101))
    assert len(stored(store)) == KEPT_BOOTS
    assert stored(store)[-1] == new
    assert set(boot_set(stored(store))) == set(UNITS)


async def test_boots_that_end_together_are_written_together(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Instances of one image that were started together cost one write."""
    store = ProfileStore()
    shelf = shelf_of(store, tmp_path, nursery)
    async with trio.open_nursery() as adding:
        for number in range(KEPT_BOOTS):
            adding.start_soon(shelf.add, IMAGE, DISK, boot(UNITS, number))
    assert [found.recorded_at for found in stored(store)] == list(range(KEPT_BOOTS))
    assert store.calls.count("put_profile") == 1


async def test_what_is_remembered_is_bounded(nursery: trio.Nursery, tmp_path: Path) -> None:
    """A node that boots a thousand images forgets the first of them, and asks again."""
    store = ProfileStore()
    shelf = shelf_of(store, tmp_path, nursery)
    for number in range(REMEMBERED + 1):
        await learnt(shelf, CatalogImage(msgspec.structs.replace(IMAGE.record, id=f"{number:08x}-6a4c-4b11-9c6b-0f3c1d2e4f50"), "1"))
    calls = len(store.calls)
    await learnt(shelf, CatalogImage(msgspec.structs.replace(IMAGE.record, id="00000000-6a4c-4b11-9c6b-0f3c1d2e4f50"), "1"))
    assert len(store.calls) == calls + 1


async def test_an_image_that_is_gone_is_forgotten_but_not_its_file(nursery: trio.Nursery, tmp_path: Path) -> None:
    """It may only not be listed for now: the file goes when it is old."""
    store = ProfileStore()
    shelf = shelf_of(store, tmp_path, nursery)
    await shelf.add(IMAGE, DISK, boot(UNITS))
    store.bodies.clear()
    shelf.forget(IMAGE)
    shelf.forget(OTHER_BYTES)
    assert await learnt(shelf) == UNITS


async def test_old_files_of_images_that_are_gone_are_removed(autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path) -> None:
    """Also what a write that was broken off has left; a new one, and one of an image that is there, stay."""
    now = 2_000_000_000.0
    shelf = ProfileShelf(cast("ImageStore", ProfileStore()), tmp_path, nursery, clock=lambda: now)
    old, known, new = "11111111-6a4c", IMAGE_ID, "22222222-6a4c"
    for name, age in ((old, ABANDONED_SECONDS + 1), (f".{old}.abc", ABANDONED_SECONDS + 1), (known, ABANDONED_SECONDS + 1), (new, 60)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (now - age, now - age))
    with trio.move_on_after(86_400 * 1.5):
        await shelf.keep_tidy(lambda: {known})
    assert sorted(os.listdir(tmp_path)) == sorted([known, new])

"""Decoded caches are proved by the hash of the stored bytes."""

import hashlib
from pathlib import Path

import pytest
import trio

from imagefs.errors import ImageRefused, WrongBytes
from imagefs.hydration import decoded
from imagefs.hydration.decoded import DecodedProof, NotedTables
from imagefs.hydration.pace import Pace
from imagefs.hydration.proof import prove
from imagefs.hydration.reading import Unsettled
from imagefs.hydration.whole_hash import whole_hashes
from imagefs.image.qcow2.tables import TablePage
from imagefs.units import GIB, KIB, MIB, UNIT
from tests.support.caching import started
from tests.support.hydrating import Picture, hydrator_of, picture, record_of
from tests.support.qcow2 import FileSource, Patched, Sample, converted, make_corpus, pattern, sample


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Images of every layout that the reader knows, but for disks of many GiB with next to nothing in them."""
    return [one for one in make_corpus(tmp_path_factory.mktemp("corpus")) if 0 < one.size < 64 * MIB]


@pytest.fixture
def compressed(tmp_path: Path) -> Sample:
    """A small compressed image."""
    source = tmp_path / "source"
    source.write_bytes(pattern(3 * MIB + 512))
    return sample(converted(tmp_path, "image", source, "cluster_size=64k", compress=True))


async def complete(path: Path, nursery: trio.Nursery, content: bytes) -> tuple[Picture, Pace]:
    """Return an open qcow2 image all of which is cached, and a pace that holds nothing up."""
    caches = await started(path, nursery)
    hydrator = hydrator_of(caches, "full", rate=GIB)
    found = await picture(caches, hydrator, content, record_of(content, disk_format="qcow2"))
    await found.disk.prefetch(0, found.disk.size)
    return found, Pace(caches.root.demand, GIB, idle=False)


async def prove_with(found: Picture, pace: Pace, pieces: int = decoded.PIECES) -> None:
    await DecodedProof(found.image, whole_hashes(found.image.record)[0], pace, pieces).run()


@pytest.mark.parametrize("pieces", [40, decoded.PIECES])
async def test_every_layout_is_proved(tmp_path: Path, nursery: trio.Nursery, corpus: list[Sample], pieces: int) -> None:
    """What is cached of a sound image is found to be right, however many windows the pass takes."""
    for number, one in enumerate(corpus):
        found, pace = await complete(tmp_path / str(number), nursery, one.image.read_bytes())
        await prove_with(found, pace, pieces)
        assert bytes(await found.disk.read(0, one.size)) == one.raw.read_bytes()


async def test_a_wrong_unit_is_found_in_every_layout(tmp_path: Path, nursery: trio.Nursery, corpus: list[Sample]) -> None:
    """One byte that was cached wrong, with a checksum that is right, shows: among data, compressed clusters, and zeros."""
    for number, one in enumerate(corpus):
        found, pace = await complete(tmp_path / str(number), nursery, one.image.read_bytes())
        file = found.disk.shelf.file
        assert file is not None
        unit = min(found.disk.shelf.unit_count - 1, 7)
        body = bytearray(file.read(unit * UNIT, min(UNIT, one.size - unit * UNIT)))
        body[-1] ^= 1
        found.disk.shelf.states[unit] = file.store(unit, bytes(body))
        with pytest.raises(WrongBytes, match="wrong at offset"):
            await prove_with(found, pace)


async def test_the_hash_decides(tmp_path: Path, nursery: trio.Nursery, compressed: Sample) -> None:
    """An object whose every cluster is cached rightly is wrong all the same if its hash is another one."""
    content = compressed.image.read_bytes()
    found, pace = await complete(tmp_path / "cache", nursery, content)
    found.source.content = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(WrongBytes):
        await prove_with(found, pace)
    with pytest.raises(WrongBytes, match=hashlib.sha512(content).hexdigest()):
        await prove(found.image, pace)
    assert not found.is_marked()


async def test_a_flipped_bit_on_the_way_is_no_verdict(tmp_path: Path, nursery: trio.Nursery, compressed: Sample) -> None:
    """The object is read once more before it is called wrong."""
    content = compressed.image.read_bytes()
    found, pace = await complete(tmp_path / "cache", nursery, content)
    found.source.requests.clear()
    found.source.script = lambda attempt, offset, length: [b"!" + content[offset + 1 : offset + length]] if attempt == 0 else None
    assert await prove(found.image, pace) is not None
    assert found.is_marked()


async def test_tables_that_were_fetched_wrong(tmp_path: Path, nursery: trio.Nursery, compressed: Sample) -> None:
    """A table that was other than it stands in the object, so that a cluster came from the wrong place, shows."""
    content = compressed.image.read_bytes()
    patched = Patched(compressed.image)
    first, second = patched.l2_table_offset(), patched.l2_table_offset() + 8
    entries = patched.get("Q", first), patched.get("Q", second)
    patched.put("Q", first, entries[1]).put("Q", second, entries[0])
    found, pace = await complete(tmp_path / "cache", nursery, bytes(patched.body))
    found.source.content = content
    with pytest.raises(WrongBytes):
        await prove_with(found, pace)


async def test_what_is_evicted_meanwhile_proves_nothing(tmp_path: Path, nursery: trio.Nursery, compressed: Sample) -> None:
    """A cache that loses units during the pass is neither marked nor called wrong."""
    found, pace = await complete(tmp_path / "cache", nursery, compressed.image.read_bytes())

    async def evicting(amount: int) -> None:
        await found.disk.shelf.evict([1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "turn", evicting)
        assert await prove(found.image, pace) is None
    assert not found.is_marked()


async def test_damage_on_the_disk_is_not_the_images_fault(tmp_path: Path, nursery: trio.Nursery, compressed: Sample) -> None:
    """A cached unit that the disk has changed is erased, so that it is fetched again; the image is not refused."""
    found, pace = await complete(tmp_path / "cache", nursery, compressed.image.read_bytes())
    file = found.disk.shelf.file
    assert file is not None
    with open(f"/proc/self/fd/{file.units}", "r+b") as units:  # noqa: ASYNC230 - a few bytes of a local file
        units.seek(5 * UNIT + 17)
        units.write(b"damage")
    assert await prove(found.image, pace) is None
    assert found.disk.missing(0, found.disk.size)
    await found.disk.prefetch(0, found.disk.size)
    assert await prove(found.image, pace) is not None


async def test_an_image_with_too_many_tables(tmp_path: Path, nursery: trio.Nursery, compressed: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be compared in bounded memory is marked as complete, and as compared with nothing."""
    found, pace = await complete(tmp_path / "cache", nursery, compressed.image.read_bytes())
    monkeypatch.setattr(decoded, "TABLE_PAGES", 1)
    mark = await prove(found.image, pace)
    assert mark is not None
    assert not mark.verified


async def test_tables_that_change_are_noticed(tmp_path: Path) -> None:
    """A page of tables that reads differently the second time ends the pass: it is not known which one was used."""
    path = tmp_path / "stored"
    path.write_bytes(bytes(4 * KIB))
    noted = NotedTables(FileSource(path))
    assert noted.read_nowait(0, 512) is None
    assert noted.size == 4 * KIB
    await noted.read(*TablePage(0, 512))
    path.write_bytes(b"!" * 4 * KIB)
    with pytest.raises(Unsettled):
        await noted.read(0, 512)


@pytest.mark.parametrize("error", [ImageRefused("no"), WrongBytes("no")])
async def test_a_store_that_fails_in_the_pass(
    tmp_path: Path, nursery: trio.Nursery, compressed: Sample, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What the store raises in the pass is raised from it."""
    found, pace = await complete(tmp_path / "cache", nursery, compressed.image.read_bytes())
    found.source.script = lambda attempt, offset, length: [error]
    with pytest.raises(type(error)):
        await prove_with(found, pace)

"""Tests of the catalog bundle's form."""

import hashlib
import struct
import zlib
from collections.abc import Iterator

import pytest

from imagefs.errors import StateDamaged
from imagefs.sealed import HEADER_SIZE, seal
from imagefs.store import bundle
from imagefs.store.protocol import StoredRecord
from imagefs.store.record import ImageRecord, encode_record


def stored(count: int, **attributes: str) -> Iterator[StoredRecord]:
    """Return records of so many images."""
    for number in range(count):
        image_id = f"{number:08x}-0000-4000-8000-000000000000"
        record = ImageRecord(id=image_id, created_at="2026-01-01T00:00:00Z", updated_at="2026-01-01T00:00:00Z", properties=dict(attributes))
        yield StoredRecord(record, f"etag-{number}")


def test_what_goes_in_comes_out() -> None:
    """Every record with the version that it was read at, in its stored form."""
    body, count = bundle.encode_bundle(stored(1000))
    expected = [(one.record.id, one.version, encode_record(one.record)) for one in stored(1000)]
    assert count == 1000
    assert list(bundle.decode_bundle(body, "here")) == expected


def test_an_empty_bundle_is_sound() -> None:
    """No images are no damage."""
    body, count = bundle.encode_bundle([])
    assert (count, list(bundle.decode_bundle(body, "here"))) == (0, [])


def test_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle never grows over what its readers read of it."""
    monkeypatch.setattr(bundle, "LARGEST", 200_000)
    incompressible = (
        StoredRecord(
            ImageRecord(
                id=f"{number:08x}-0000-4000-8000-000000000000",
                created_at="",
                updated_at="",
                properties={str(part): hashlib.sha512(f"{number} {part}".encode()).hexdigest() for part in range(20)},
            ),
            "1",
        )
        for number in range(1000)
    )
    body, count = bundle.encode_bundle(incompressible)
    assert 0 < count < 1000
    assert len(body) <= 200_000
    assert len(list(bundle.decode_bundle(body, "here"))) == count


def sealed(plain: bytes) -> bytes:
    """Return bytes as the content of a bundle that passes every checksum."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    return seal(bundle.MAGIC, bundle.VERSION, packer.compress(plain) + packer.flush())


GOOD = bundle.encode_bundle(stored(50))[0]
ENTRY = struct.pack("<36sHI", b"00000000-0000-4000-8000-000000000000", 1, 5)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage" * 100,
        GOOD[:-1],
        GOOD[: HEADER_SIZE + 3],
        GOOD[:40] + bytes([GOOD[40] ^ 1]) + GOOD[41:],
        seal(b"IMFSXXXX", bundle.VERSION, GOOD[HEADER_SIZE:]),
        seal(bundle.MAGIC, bundle.VERSION + 1, GOOD[HEADER_SIZE:]),
        seal(bundle.MAGIC, bundle.VERSION, b"not deflate"),
        seal(bundle.MAGIC, bundle.VERSION, GOOD[HEADER_SIZE:-20]),
        sealed(b"short"),
        sealed(ENTRY + b"1ab"),
        sealed(struct.pack("<36sHI", b"../../etc/passwd", 0, 0)),
        sealed(struct.pack("<36sHI", b"00000000-0000-4000-8000-000000000000", 1, 2**32 - 1) + b"x"),
    ],
)
def test_a_bundle_that_is_not_sound_says_so(body: bytes) -> None:
    """Garbage, cut, changed, of another kind, or sound outside and not inside: nothing but StateDamaged comes of it."""
    with pytest.raises(StateDamaged, match="here"):
        list(bundle.decode_bundle(body, "here"))


def test_a_stream_that_grows_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small object that unpacks to more than any bundle has is not read on."""
    monkeypatch.setattr(bundle, "UNPACKED_LIMIT", 8 * 1024 * 1024)
    bomb = sealed((struct.pack("<36sHI", b"00000000-0000-4000-8000-000000000000", 0, 1 << 20) + bytes(1 << 20)) * 64)
    assert len(bomb) < 1024 * 1024
    with pytest.raises(StateDamaged, match="longer than any"):
        list(bundle.decode_bundle(bomb, "here"))


def test_a_version_that_is_a_sum_is_told() -> None:
    """An ETag that is the MD5 of the bytes can be compared with them; others cannot."""
    assert bundle.is_sum(hashlib.md5(b"x", usedforsecurity=False).hexdigest(), b"x")
    assert not bundle.is_sum("0" * 32, b"x")

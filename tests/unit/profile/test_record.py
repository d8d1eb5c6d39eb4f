"""The stored form of a boot profile: it comes back as it was, and nothing else is believed."""

import contextlib
import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.errors import StateDamaged
from imagefs.profile.record import BOOT_UNITS, KEPT_BOOTS, LARGEST, MAGIC, VERSION, Boot, Profile, decode, encode, runs_of, version_digest
from imagefs.sealed import HEADER_SIZE, seal, unseal
from imagefs.units import UNIT
from tests.support.booting import boot, profile_of

runs = st.builds(lambda first, count: range(first, first + count), st.integers(0, 99), st.integers(0, 99))
boots = st.builds(
    Boot,
    uuid=st.uuids(),
    recorded_at=st.integers(0, 2**64 - 1),
    units=st.lists(st.integers(0, 2**20 - 1), unique=True, max_size=60) | runs,
)
profiles = st.builds(
    Profile,
    image_id=st.uuids().map(str),
    version=st.text().map(version_digest),
    disk_size=st.integers((2**20 - 1) * UNIT + 1, 2**63),
    boots=st.lists(boots, max_size=KEPT_BOOTS).map(tuple),
)


@given(profiles)
def test_a_profile_comes_back_as_it_was(profile: Profile) -> None:
    """Whatever the boots are, decoding what was encoded gives the same, order included."""
    assert decode(encode(profile), "here") == profile


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda payload: seal(MAGIC, VERSION, payload)))
def test_garbage_is_refused_with_the_place_it_was_found_in(body: bytes) -> None:
    """Bytes that no imagefs wrote, and payloads that only look right on the outside, are StateDamaged and nothing worse."""
    with contextlib.suppress(StateDamaged):
        if unseal(MAGIC, VERSION, body, "")[56:60] == bytes(4):
            return  # a profile without boots
    with pytest.raises(StateDamaged, match="s3://images/x/profile"):
        decode(body, "s3://images/x/profile")


SMALL = encode(profile_of(boot([5, 6, 7, 2]), boot(range(9))))


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 7))
def test_a_changed_bit_and_a_missing_end_are_noticed(at: int, bit: int) -> None:
    """A bit that flipped anywhere, and a body that is cut anywhere, are refused."""
    body = bytearray(SMALL)
    with pytest.raises(StateDamaged):
        decode(bytes(body[:at]), "here")
    body[at] ^= 1 << bit
    with pytest.raises(StateDamaged):
        decode(bytes(body), "here")


def sealed(boot_count: int, *runs: tuple[int, int], disk_size: int = 1000 * UNIT, run_count: int | None = None) -> bytes:
    """Return a well sealed profile with one boot of these runs, that says it has so many boots and runs."""
    payload = struct.pack("<16s32sQI", uuid.uuid4().bytes, version_digest("v1"), disk_size, boot_count)
    payload += struct.pack("<16sQI", uuid.uuid4().bytes, 1, len(runs) if run_count is None else run_count)
    return seal(MAGIC, VERSION, payload + b"".join(struct.pack("<QI", *run) for run in runs))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (sealed(1, (990, 11)), "run of 11 units at unit 990"),
        (sealed(1, (2**63, 1)), "which cannot be"),
        (sealed(1, (0, 0)), "run of 0 units"),
        (sealed(1, (0, 2**32 - 1), disk_size=2**60), "run of 4294967295 units"),
        (sealed(1, *[(first * 2048, 2048) for first in range(4)], (9000, 1), disk_size=2**40), "run of 1 units at unit 9000"),
        (sealed(1, (5, 3), (7, 1)), "names a unit twice"),
        (sealed(1, (5, 3), run_count=2), "ends within a boot"),
        (sealed(1, (5, 3), run_count=2**32 - 1), "ends within a boot"),
        (sealed(2, (5, 3)), "ends within a boot"),
        (sealed(KEPT_BOOTS + 1, (5, 3)), "has 6 boots"),
        (seal(MAGIC, VERSION, b"short"), "ends within a boot"),
        (seal(MAGIC, VERSION + 1, bytes(60)), "version 2 is unknown here"),
        (seal(b"IMFSMAP0", VERSION, bytes(60)), "the magic is"),
        (bytes(LARGEST + 1), "more than a boot profile can"),
    ],
)
def test_what_a_sound_profile_cannot_say_is_refused(body: bytes, words: str) -> None:
    """Each bound of the format is held: units within the disk, each once, 512 MiB in a boot, five boots, nothing missing."""
    with pytest.raises(StateDamaged, match=words):
        decode(body, "here")


def test_the_longest_profile_fits_its_bound() -> None:
    """Five boots of 512 MiB in which no unit follows the one before take LARGEST bytes, and are read back."""
    units = range(0, 2 * BOOT_UNITS, 2)
    body = encode(profile_of(*[boot(units) for _ in range(KEPT_BOOTS)]))
    assert len(body) == LARGEST > HEADER_SIZE
    assert [list(found.units) for found in decode(body, "here").boots] == [list(units)] * KEPT_BOOTS


def test_runs_keep_the_order_of_first_touch() -> None:
    """Units that follow each other are one run; a step back or a gap begins another."""
    assert list(runs_of([7, 8, 9, 3, 4, 10, 2, 1])) == [(7, 3), (3, 2), (10, 1), (2, 1), (1, 1)]
    assert list(runs_of([])) == []

"""This module is a boot profile and the form it is stored in (imagefs-profile(5)): which units of a disk its last boots read, in which order.

A sealed record (magic IMFSPROF) whose payload is, in little-endian byte order:

    0   16 bytes  the image's UUID
    16  32 bytes  SHA-256 of the version of the image's bytes
    48  u64       bytes of the disk
    56  u32       boots that follow, the oldest first

and for each boot

    0   16 bytes  a UUID made with the recording
    16  u64       when the recording ended, Unix seconds
    24  u32       runs that follow, in the order in which the guest came to them
    28            each run: u64 first unit, u32 units

A unit is 64 KiB of the disk. It is in a boot once at most. A profile comes from a store that others may write: `decode` believes nothing.
"""

import array
import dataclasses
import hashlib
import itertools
import struct
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from imagefs.errors import StateDamaged
from imagefs.sealed import HEADER_SIZE, seal, unseal
from imagefs.units import unit_count

MAGIC: Final = b"IMFSPROF"
VERSION: Final = 1
KEPT_BOOTS: Final = 5
"""Boots in a profile: enough that what one of them alone has read does not count, few enough that an image's users may change."""
BOOT_UNITS: Final = 8192
"""Units of a boot at most, 512 MiB: ten times what a Linux server reads until it serves. What comes later is no longer what a boot waits for."""

_PROFILE: Final = struct.Struct("<16s32sQI")
_BOOT: Final = struct.Struct("<16sQI")
_RUN: Final = struct.Struct("<QI")
LARGEST: Final = HEADER_SIZE + _PROFILE.size + KEPT_BOOTS * (_BOOT.size + BOOT_UNITS * _RUN.size)
"""Bytes of the longest profile there can be."""


@dataclasses.dataclass(frozen=True, slots=True)
class Boot:
    """One boot: a name that no other has, when it was recorded (Unix seconds), and the units in order of first touch, each once."""

    uuid: uuid.UUID
    recorded_at: int
    units: Sequence[int]
    """As an array: a tuple of integers takes five times the memory."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", array.array("Q", self.units))


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """The last boots from one image, the oldest first. `version` is the SHA-256 of what names the image's bytes (see `version_digest`)."""

    image_id: str
    version: bytes
    disk_size: int
    boots: tuple[Boot, ...] = ()


def version_digest(data_version: str) -> bytes:
    """Return what a profile names a version of an image's bytes by."""
    return hashlib.sha256(data_version.encode("utf-8", "surrogateescape")).digest()


def encode(profile: Profile) -> bytes:
    """Return the stored form. The profile must be one that `decode` would accept."""
    parts = [_PROFILE.pack(uuid.UUID(profile.image_id).bytes, profile.version, profile.disk_size, len(profile.boots))]
    for boot in profile.boots:
        runs = list(runs_of(boot.units))
        parts.append(_BOOT.pack(boot.uuid.bytes, boot.recorded_at, len(runs)))
        parts += [_RUN.pack(first, count) for first, count in runs]
    return seal(MAGIC, VERSION, b"".join(parts))


def decode(body: bytes, origin: str) -> Profile:
    """Return the profile in `body`, which was read from `origin`. Raises StateDamaged with the reason if it is not sound."""
    if len(body) > LARGEST:
        raise StateDamaged(f"{origin}: it has over {LARGEST} bytes, more than a boot profile can")
    payload = unseal(MAGIC, VERSION, body, origin)
    try:
        image_id, version, disk_size, count = _PROFILE.unpack_from(payload)
        if count > KEPT_BOOTS:
            raise StateDamaged(f"{origin}: it has {count} boots, and a profile has {KEPT_BOOTS} at most")
        position, boots = _PROFILE.size, []
        for _ in range(count):
            boot, position = _decode_boot(payload, position, unit_count(disk_size), origin)
            boots.append(boot)
    except struct.error:
        raise StateDamaged(f"{origin}: it ends within a boot") from None
    return Profile(str(uuid.UUID(bytes=image_id)), version, disk_size, tuple(boots))


def _decode_boot(payload: bytes, position: int, units: int, origin: str) -> tuple[Boot, int]:
    """Return the boot at `position`, of a disk of so many units, and where it ends."""
    name, recorded_at, count = _BOOT.unpack_from(payload, position)
    position += _BOOT.size
    found: dict[int, None] = {}
    for _ in range(count):
        first, length = _RUN.unpack_from(payload, position)
        position += _RUN.size
        if not 0 < length <= BOOT_UNITS - len(found) or first + length > units:
            raise StateDamaged(f"{origin}: a boot has a run of {length} units at unit {first}, which cannot be")
        before = len(found)
        found.update(dict.fromkeys(range(first, first + length)))
        if len(found) != before + length:
            raise StateDamaged(f"{origin}: a boot names a unit twice")
    return Boot(uuid.UUID(bytes=name), recorded_at, tuple(found)), position


def runs_of(units: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield (first unit, count) of the runs of consecutive units, in the order of `units`."""
    for _, run in itertools.groupby(enumerate(units), key=lambda pair: pair[1] - pair[0]):
        members = [unit for _, unit in run]
        yield members[0], len(members)

"""This module makes the config drive of an instance: a small ISO 9660 disk from which cloud-init and its like configure the guest.

It is an OpenStack config drive: volume id config-2, with openstack/latest/ in it. cloud-init reads the newest version that it knows and
`latest` if there is none, so there is only that. There is no network_data.json: cloud-init takes one without networks for the wish to have
none, and without the file it asks DHCP, which is right for whatever network the guest is started with.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import struct
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from imagefs.child import find_tool, run_tool
from imagefs.errors import InvalidInput, NoSpace
from imagefs.units import KIB

VOLUME_ID: Final = "config-2"
AVAILABILITY_ZONE: Final = "imagefs"
MAX_USER_DATA: Final = 64 * KIB
MAX_META_DATA: Final = 64 * KIB
"""Bytes, which is what an extended attribute can hold; Nova's bound on user data is the same."""
TIME_LIMIT: Final = 60.0
"""Seconds to write some hundred KiB."""

_TOOLS: Final = ("genisoimage", "mkisofs", "xorrisofs")
_HOSTNAME_LIMIT: Final = 63  # bytes of one label of a name in DNS
_FIXED: Final = frozenset({"uuid"})
"""What is the instance's own: with another one, cloud-init would take the guest for a new one or for another."""
_POINTERS: Final = frozenset({"files", "network_config"})
"""Keys that point at further files on the drive, which there are not; cloud-init refuses a drive that lacks them."""
_SECTOR: Final = 2048


def parse_meta_data(text: str) -> dict[str, Any]:
    """Return the JSON object in `text`, the caller's additions to the metadata. Raises InvalidInput that says what is wrong with it."""
    if len(text.encode(errors="surrogateescape")) > MAX_META_DATA:
        raise InvalidInput(f"metadata has more than {MAX_META_DATA} bytes: make it shorter")
    try:
        found = json.loads(text, parse_constant=_no_constant)
        json.dumps(found).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"metadata is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInput('metadata is not a JSON object: write {"key": "value", ...}')
    if reserved := sorted(_FIXED & found.keys()):
        raise InvalidInput(f"metadata has the key {reserved[0]}, which the instance has by itself: leave it out")
    if pointers := sorted(_POINTERS & found.keys()):
        raise InvalidInput(
            f"metadata has the key {pointers[0]}, which points at files that a config drive of imagefs has not: put them into user data"
        )
    for key in ("hostname", "name", "availability_zone"):
        if not isinstance(found.get(key, ""), str):
            raise InvalidInput(f"metadata: {key} is not a text: put it in quotes")
    for key in ("meta", "public_keys"):
        table = found.get(key, {})
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise InvalidInput(f"metadata: {key} is not an object with texts: write {{{json.dumps(key)}: {{...: ...}}}}")
    return found


def check_user_data(user_data: bytes) -> None:
    """Raise InvalidInput if there is too much of it. What it means is between the user and the guest."""
    if len(user_data) > MAX_USER_DATA:
        raise InvalidInput(f"user data has {len(user_data)} bytes, and {MAX_USER_DATA} is the most: compress it with gzip, or let it fetch the rest")


def hostname_of(name: str, instance_uuid: str) -> str:
    """Return what an instance's name makes as a host's: lower-case ASCII letters, digits and hyphens, at most 63; of the uuid if nothing is left."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    hyphened = re.sub(r"[\s._-]+", "-", plain)
    return re.sub(r"[^a-z0-9-]", "", hyphened)[:_HOSTNAME_LIMIT].strip("-") or f"server-{instance_uuid}"


def meta_data(instance_uuid: str, name: str, added: Mapping[str, Any]) -> bytes:
    """Return meta_data.json of an instance: what Nova puts there, with the caller's keys added or in the place of its own."""
    built = {
        "uuid": instance_uuid,
        "name": name,
        "hostname": hostname_of(name, instance_uuid),
        "launch_index": 0,
        "availability_zone": AVAILABILITY_ZONE,
        "meta": {},
        "public_keys": {},
    }
    return json.dumps({**built, **added, "uuid": instance_uuid}, sort_keys=True, indent=1).encode()


def make_config_drive(directory: Path, instance_uuid: str, name: str, user_data: bytes | None, added: Mapping[str, Any]) -> Path:
    """Make a config drive in a new file in `directory`, mode 0600, and return its path; the same arguments give the same bytes. Blocks.

    `added` is what `parse_meta_data` returned. Raises InvalidInput for too much user data or without a tool that makes it, NoSpace,
    ImagefsError if the tool fails; nothing is left then.
    """
    what = f"the config drive of instance '{name}'"
    check_user_data(user_data or b"")
    tool = find_tool(_TOOLS, "genisoimage", what)
    iso = directory / f".config-drive.{secrets.token_hex(6)}.iso"
    try:
        with tempfile.TemporaryDirectory(prefix=".config-drive.", dir=directory) as tree:
            _write_tree(Path(tree) / "openstack" / "latest", meta_data(instance_uuid, name, added), user_data)
            os.close(os.open(iso, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            run_tool([tool, "-quiet", "-J", "-r", "-V", VOLUME_ID, "-o", str(iso.absolute()), tree], what, TIME_LIMIT)
            image = bytearray(iso.read_bytes())
            settle_times(image)
            iso.write_bytes(image)
    except BaseException as error:
        with contextlib.suppress(OSError):
            iso.unlink()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{what}: {error.strerror}: free some room in the state directory") from error
        raise
    return iso


def _write_tree(latest: Path, metadata: bytes, user_data: bytes | None) -> None:
    latest.mkdir(parents=True)
    files = {"meta_data.json": metadata, "vendor_data.json": b"{}", "user_data": user_data}
    for name, content in files.items():
        if content is not None:
            (latest / name).write_bytes(content)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


_DATES: Final = slice(813, 881)
"""Where a volume descriptor has its four dates: made, changed, expires, in force."""
_NO_DATE: Final = b"0" * 16 + b"\0"
_STAMP: Final = bytes((100, 1, 1, 0, 0, 0, 0))
"""The year 2000 in a directory's records; a clock that is behind does not matter to a guest's files, and one that is ahead does."""


def settle_times(image: bytearray) -> None:
    """Set all dates of an ISO 9660 image with Rock Ridge names to a fixed one, in place; they would tell no more than when it was made."""
    for start in range(16 * _SECTOR, len(image) - _SECTOR + 1, _SECTOR):
        kind = image[start]
        if image[start + 1 : start + 6] != b"CD001" or kind == 255:
            return
        if kind in (1, 2):  # the primary volume, and that with Joliet's names
            image[start + _DATES.start : start + _DATES.stop] = _NO_DATE * 4
            _settle_record(image, start + 156)
            _settle_directory(image, start + 156, 0)


def _settle_directory(image: bytearray, record: int, depth: int) -> None:
    """Settle the records of the directory that `record` is about, and those of directories in it."""
    first, length = (struct.unpack_from("<I", image, record + at)[0] for at in (2, 10))
    at = first * _SECTOR
    end = min(at + length, len(image))
    number = 0
    while at < end:
        if image[at] == 0:  # records do not cross sectors
            at += _SECTOR - at % _SECTOR
            continue
        _settle_record(image, at)
        if image[at + 25] & 2 and number >= 2 and depth < 8:  # the first two are the directory itself and the one above it
            _settle_directory(image, at, depth + 1)
        number += 1
        at += image[at]


def _settle_record(image: bytearray, record: int) -> None:
    image[record + 18 : record + 25] = _STAMP
    name_length = image[record + 32]
    start = record + 33 + name_length + (name_length + 1) % 2
    for at in _rock_ridge_times(image, start, record + image[record]):
        count = (image[at + 4] & 0x7F).bit_count()
        if not image[at + 4] & 0x80:  # the short form of dates, which is all that the tools write
            image[at + 5 : at + 5 + 7 * count] = _STAMP * count


def _rock_ridge_times(image: bytearray, at: int, end: int) -> Iterator[int]:
    """Yield where the entries with dates begin among a record's further entries."""
    while at + 4 <= end and image[at + 2] >= 4:
        if image[at : at + 2] == b"TF":
            yield at
        at += image[at + 2]

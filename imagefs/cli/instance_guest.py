"""This module reads from a mount what an instance is: its attributes, its disks, and what is needed to run it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from imagefs.cli.errors import print_line
from imagefs.cli.flavor import read_flavor
from imagefs.cli.machine.model import Guest, GuestDisk
from imagefs.cli.mountpoint import check_part, read_attribute, read_attributes
from imagefs.errors import ImagefsError, InvalidInput, NotFound

DEFAULT_RAM: Final = 512
"""MiB for a guest without a flavor, unless its image asks for more."""
_FAILED: Final = frozenset({"error", "killed", "deleted"})
"""Statuses of an image that will never be active."""


class DiskEntry(msgspec.Struct, frozen=True):
    """One disk of user.imagefs.disks: `size` in bytes, `path` what a link of the directory leads to, None for a disk that lies in it."""

    name: str
    kind: str
    format: str
    size: int
    path: str | None = None
    device: str = "disk"


class SnapshotProgress(msgspec.Struct, frozen=True):
    """What user.imagefs.snapshot says of the last snapshot: `done` and `total` in bytes; `error` is why it failed, or is tried again."""

    id: str
    status: str
    done: int = 0
    total: int = 0
    error: str | None = None

    @property
    def has_failed(self) -> bool:
        """Whether there will be no image."""
        return self.status in _FAILED

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.has_failed or self.status == "active"

    def shown(self) -> dict[str, object]:
        """Return the fields for a user; no error if there was none."""
        fields: dict[str, object] = {"id": self.id, "status": self.status, "done": self.done, "total": self.total}
        return fields | ({"error": self.error} if self.error is not None else {})


def missing(what: str) -> NotFound:
    """Return the error for an instance that is not there; `what` is what was being done."""
    return NotFound(f"{what}: there is no such instance: see imagefs instance list")


def instance_directory(mount: Path, name: str) -> Path:
    """Return the directory of an instance. Raises InvalidInput if the name leads elsewhere."""
    return mount / "instances" / check_part(name, "an instance")


def volume_name(link: str) -> str:
    """Return what a user calls what a link of an instance leads to: a volume's name, or the path of a block device."""
    return link if link.startswith("/") else Path(link).name


def read_disks(directory: Path) -> list[DiskEntry]:
    """Return the disks of an instance in the order in which its guest sees them. Raises OSError, ImagefsError if they cannot be understood."""
    text = read_attribute(directory, "imagefs.disks")
    if text is None:
        return []
    try:
        return sorted(msgspec.json.decode(text, type=list[DiskEntry]), key=lambda disk: disk.name)
    except msgspec.DecodeError as error:
        raise ImagefsError(f"{directory}: user.imagefs.disks is not a list of disks: {error}: use the version that mounted it") from error


def read_progress(text: str) -> SnapshotProgress:
    """Return what user.imagefs.snapshot says. Raises ImagefsError if it cannot be understood."""
    try:
        return msgspec.json.decode(text, type=SnapshotProgress)
    except msgspec.DecodeError as error:
        raise ImagefsError(f"user.imagefs.snapshot cannot be understood: {error}: use the version that mounted it") from error


def read_guest(mount: Path, name: str, what: str) -> Guest:
    """Return what a machine is planned from. Raises NotFound, InvalidInput if it has no disks yet, OSError."""
    directory = instance_directory(mount, name)
    try:
        attributes = read_attributes(directory)
        entries = read_disks(directory)
    except FileNotFoundError:
        raise missing(what) from None
    if not entries:
        raise InvalidInput(f"{what}: it has no disks yet: set its user.image first")
    image = _image_properties(mount, directory, attributes, what)
    vcpus, ram = 1, max(DEFAULT_RAM, int(image.get("min_ram", "0")))
    if "flavor" in attributes:
        kept = read_attribute(directory, "imagefs.flavor")  # as it was when the instance was made: it may be gone, or private, by now
        flavor = json.loads(kept) if kept is not None else read_flavor(mount, attributes["flavor"])
        vcpus, ram = int(flavor["vcpus"]), int(flavor["ram"])
    code = attributes.get("firmware_code")
    base = mount / "raw" / attributes["image_id"] if "image_id" in attributes else None
    return Guest(
        name,
        attributes["instance_uuid"],
        vcpus,
        ram,
        _guest_disks(directory.absolute(), entries, base.absolute() if base is not None else None),
        image,
        (mount / "images").absolute(),
        Path(code) if code else None,
        attributes.get("secure_boot") == "true",
    )


def _guest_disks(directory: Path, entries: Sequence[DiskEntry], base: Path | None) -> tuple[GuestDisk, ...]:
    """Return the disks with their paths. Links are followed by name: whoever runs the guest may not be able to go through the directory."""
    return tuple(
        GuestDisk(
            entry.name,
            Path(os.path.normpath(directory / (entry.path or entry.name))),
            entry.kind,
            entry.format,
            entry.device,
            base if entry.kind == "root" and entry.format == "qcow2" else None,
        )
        for entry in entries
    )


def _image_properties(mount: Path, directory: Path, attributes: Mapping[str, str], what: str) -> dict[str, str]:
    """Return the image's properties as they were when the instance was made; those of today for an instance of an earlier version."""
    text = read_attribute(directory, "imagefs.image_properties")
    if text is not None:
        try:
            return {name: _word(value) for name, value in msgspec.json.decode(text, type=dict[str, object]).items() if value is not None}
        except msgspec.DecodeError as error:
            raise ImagefsError(f"{what}: its user.imagefs.image_properties cannot be understood: {error}") from error
    if "image_id" not in attributes:
        return {}
    try:
        return read_attributes(mount / "images" / check_part(attributes["image_id"], "an image"))
    except FileNotFoundError:
        print_line(f"note: {what}: its image {attributes['image_id']} is gone, and with it the properties that say which devices to use")
        return {}


def _word(value: object) -> str:
    """Return a JSON value as an extended attribute would have it."""
    return str(value).lower() if isinstance(value, bool) else str(value)

"""This module is the record of an instance, and the form in which it lies in the state directory (imagefs-state(5))."""

from pathlib import Path
from typing import Final, Literal

import msgspec

from imagefs.disks.record import DiskRecord
from imagefs.errors import StateDamaged
from imagefs.flavors import Flavor
from imagefs.instances.snapshot_request import SnapshotRequest
from imagefs.sealed import seal, unseal, version_of
from imagefs.store.record import ImageRecord

MAGIC: Final = b"IMFSINST"
VERSION: Final = 2
FIRST_VERSION: Final = 1
RECORD: Final = "instance"
"""The record's file name in the instance's directory."""


class Choices(msgspec.Struct, frozen=True):
    """What was chosen for an instance before its image, each as the attribute user.<name>; None: as the configuration says."""

    ephemeral: str | None = None
    ephemeral_format: str | None = None
    encrypted: bool | None = None
    disk_format: str | None = None
    user_data: bytes | None = None
    meta_data: str | None = None
    config_drive: Literal["cdrom", "disk"] = "cdrom"


class BaseImage(msgspec.Struct, frozen=True):
    """The image that an instance was made from, as it was then: what it needs of it may outlive the image."""

    id: str
    data_version: str
    virtual_size: int
    """Bytes of the image's disk; vda may be larger."""
    disk_format: str | None = None
    min_ram: int = 0
    properties: dict[str, str] = {}
    """The additional properties that the instance's maker could read."""


class Maker(msgspec.Struct, frozen=True):
    """Who made an instance: Nova writes it on its snapshots."""

    user_id: str | None = None
    project_id: str | None = None
    roles: tuple[str, ...] = ()


class Firmware(msgspec.Struct, frozen=True):
    """The UEFI firmware that an instance was made for; its variables are in nvram.fd, unless it keeps none."""

    code: str
    secure_boot: bool = False


class SnapshotState(msgspec.Struct, frozen=True):
    """The last snapshot of an instance, and what is needed to go on with it after the daemon was ended.

    `frozen` is the number of layers of vda that show the point in time; 0 if none do, as for a disk outside of imagefs. `durable` says
    that those layers are on the host's disk as they were at that moment.
    """

    request: SnapshotRequest
    image: ImageRecord
    status: Literal["queued", "saving", "active", "killed"] = "queued"
    error: str | None = None
    frozen: int = 0
    durable: bool = False
    size: int = 0
    """Bytes that were stored, once it is active."""

    @property
    def running(self) -> bool:
        """Tell whether there is still something to do."""
        return self.status in ("queued", "saving")


class InstanceRecord(msgspec.Struct, frozen=True):
    """What is kept of an instance. `flavor` is as it was when the instance was made: a later change of it changes no disk."""

    uuid: str
    name: str
    uid: int
    gid: int
    mode: int
    created_at: str
    flavor: Flavor | None = None
    choices: Choices = Choices()
    image: BaseImage | None = None
    maker: Maker = Maker()
    firmware: Firmware | None = None
    disks: tuple[DiskRecord, ...] = ()
    direct: str | None = None
    """The path of vda where it is a qcow2 file of its own; then it is not among the disks."""
    direct_size: int = 0
    direct_backing: str = ""
    """What that file was made over: raw/<image-id> below the mount point of then."""
    volumes: dict[str, str] = {}
    """What is attached: a volume's name, or the path of a block device, by the name in the directory."""
    snapshot: SnapshotState | None = None

    @property
    def image_properties(self) -> dict[str, str]:
        """The additional properties of the image, as they were when it was chosen."""
        return self.image.properties if self.image is not None else {}

    @property
    def stems(self) -> list[str]:
        """The names of all overlay files of the instance."""
        return [stem for disk in self.disks for stem in disk.stems]


class _FirstRecord(msgspec.Struct, frozen=True):
    """The record's first form, whose image was three fields."""

    uuid: str
    name: str
    uid: int
    gid: int
    mode: int
    created_at: str
    flavor: Flavor | None = None
    image_id: str | None = None
    data_version: str | None = None
    virtual_size: int = 0
    disks: tuple[DiskRecord, ...] = ()

    def upgraded(self) -> InstanceRecord:
        """Return the same in the present form. The image's properties were not kept then."""
        image = None
        if self.image_id is not None and self.data_version is not None:
            image = BaseImage(self.image_id, self.data_version, self.virtual_size)
        disks = tuple(disk if disk.name == "vda" else msgspec.structs.replace(disk, kind="ephemeral") for disk in self.disks)
        return InstanceRecord(self.uuid, self.name, self.uid, self.gid, self.mode, self.created_at, flavor=self.flavor, image=image, disks=disks)


def encode(record: InstanceRecord) -> bytes:
    """Return the stored form."""
    return seal(MAGIC, VERSION, msgspec.json.encode(record))


def read_record(path: Path) -> InstanceRecord:
    """Read a record. Raises FileNotFoundError, StateDamaged if it is not sound."""
    body = path.read_bytes()
    try:
        if version_of(body) == FIRST_VERSION:
            return msgspec.json.decode(unseal(MAGIC, FIRST_VERSION, body, str(path)), type=_FirstRecord).upgraded()
        return msgspec.json.decode(unseal(MAGIC, VERSION, body, str(path)), type=InstanceRecord)
    except msgspec.DecodeError as error:
        raise StateDamaged(f"{path}: {error}") from error

"""This module decides whether an image fits a flavor, and which disks an instance of the two has. Pure."""

import string
from typing import Final

from imagefs.catalog import CatalogImage
from imagefs.disks.record import DISK_MODE, DiskRecord, Kind
from imagefs.errors import InvalidInput
from imagefs.flavors import Flavor
from imagefs.instances.ephemeral import plan_ephemerals
from imagefs.instances.record import InstanceRecord
from imagefs.units import GIB, MIB

NVRAM: Final = "nvram.fd"
CONFIG_DRIVE: Final = "vdz"
DEVICES: Final = tuple(f"vd{letter}" for letter in string.ascii_lowercase)
VOLUME_DEVICES: Final = DEVICES[2:]
"""Names that a volume may be attached by, unless the instance has a disk of that name."""


def check_fit(image: CatalogImage, flavor: Flavor | None) -> None:
    """Raise InvalidInput if the image is not active, or asks for more memory or disk than the flavor has."""
    record = image.record
    name = record.name or record.id
    if record.status != "active":
        raise InvalidInput(f"image '{name}' has status {record.status}: only active images can be used")
    if flavor is None:
        return
    if record.min_ram > flavor.ram:
        raise InvalidInput(f"image '{name}' needs {record.min_ram} MiB of memory, flavor {flavor.name} has {flavor.ram}: choose a larger flavor")
    if flavor.disk and record.min_disk > flavor.disk:
        raise InvalidInput(f"image '{name}' needs a disk of {record.min_disk} GiB, flavor {flavor.name} has {flavor.disk}: choose a larger flavor")


def root_size(image: CatalogImage, virtual_size: int, flavor: Flavor | None) -> int:
    """Return the bytes of vda: the flavor's disk, or the image's virtual size if there is none or it is 0.

    What must fit is the virtual size: the stored size of a compressed image says nothing about the disk in it. Raises InvalidInput.
    """
    name = image.record.name or image.record.id
    if virtual_size == 0:
        raise InvalidInput(f"image '{name}' is empty: it cannot be a disk")
    if flavor is None or not flavor.disk:
        return virtual_size
    if virtual_size > flavor.disk * GIB:
        needed = -(-virtual_size // MIB)
        raise InvalidInput(
            f"image '{name}' has a virtual size of {needed} MiB, flavor {flavor.name} a disk of {flavor.disk} GiB: choose a larger flavor"
        )
    return flavor.disk * GIB


def plan_disks(
    record: InstanceRecord, root: int, *, encrypted: bool, direct: bool, nvram_size: int = 0, config_size: int = 0
) -> tuple[DiskRecord, ...]:
    """Return the disks of an instance whose root disk has `root` bytes, in the order in which the guest sees them (Nova's).

    A direct root disk is not among them. The rest of `user.ephemeral` and of the flavor decides on ephemeral disks and swap; nvram.fd and
    the config drive are there if they have a size. Raises InvalidInput.
    """

    def disk(name: str, size: int, kind: Kind, mode: int = DISK_MODE, *, secret: bool = encrypted) -> DiskRecord:
        return DiskRecord(name, size, record.uid, record.gid, mode, kind=kind, encrypted=secret)

    disks = [] if direct else [disk("vda", root, "root")]
    flavor = record.flavor
    ephemerals = plan_ephemerals(flavor.ephemeral if flavor is not None else 0, record.choices.ephemeral)
    rest: list[tuple[int, Kind]] = [(size * GIB, "ephemeral") for size in ephemerals]
    if flavor is not None and flavor.swap:
        rest.append((flavor.swap * MIB, "swap"))
    free = DEVICES[1:-1] if config_size else DEVICES[1:]
    if len(rest) > len(free):
        raise InvalidInput(f"an instance cannot have {len(rest)} ephemeral disks: {len(free)} names are left after vda")
    disks += [disk(name, size, kind) for name, (size, kind) in zip(free, rest, strict=False)]
    if config_size:
        disks.append(disk(CONFIG_DRIVE, config_size, "config", 0o400))
    if nvram_size:
        disks.append(disk(NVRAM, nvram_size, "nvram"))
    if taken := [disk.name for disk in disks if disk.name in record.volumes]:
        raise InvalidInput(f"{taken[0]} is the name of one of the instance's own disks, and a volume is attached as {taken[0]}: detach that first")
    return tuple(disks)

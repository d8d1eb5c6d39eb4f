"""This module decides whether an image fits a flavor, and which disks an instance of the two has. Pure."""

from imagefs.catalog import CatalogImage
from imagefs.errors import InvalidInput
from imagefs.flavors import Flavor
from imagefs.instances.record import DiskRecord, InstanceRecord
from imagefs.units import GIB, MIB


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


def plan_disks(image: CatalogImage, virtual_size: int, record: InstanceRecord) -> tuple[DiskRecord, ...]:
    """Return the disks that an instance of this image and flavor has, or raise InvalidInput if the image does not fit.

    What must fit is the virtual size: the stored size of a compressed image says nothing about the disk in it.
    """
    flavor = record.flavor
    size = virtual_size
    if flavor is not None and flavor.disk:
        size = flavor.disk * GIB
        if virtual_size > size:
            needed = -(-virtual_size // MIB)
            raise InvalidInput(
                f"image '{image.record.name or image.record.id}' has a virtual size of {needed} MiB, "
                f"flavor {flavor.name} a disk of {flavor.disk} GiB: choose a larger flavor"
            )
    if size == 0:
        raise InvalidInput(f"image '{image.record.name or image.record.id}' is empty: it cannot be a disk")
    disks = [DiskRecord("vda", size, record.uid, record.gid)]
    if flavor is not None and flavor.ephemeral:
        disks.append(DiskRecord("vdb", flavor.ephemeral * GIB, record.uid, record.gid))
    return tuple(disks)

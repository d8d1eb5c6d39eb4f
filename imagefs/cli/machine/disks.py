"""This module plans the disks: which bus each is on, where on it, and in which order the firmware tries them. Pure."""

from collections.abc import Iterator, Sequence
from typing import Final

from imagefs.cli.machine.model import Disk, GuestDisk
from imagefs.errors import InvalidInput, Unsupported
from imagefs.instances.properties import Properties

DISK_BUSES: Final = ("virtio", "scsi", "sata", "ide", "usb")
SCSI_MODELS: Final = ("virtio-scsi", "lsilogic", "lsisas1068", "lsisas1078", "vmpvscsi")
_LIMITS: Final = {"ide": 4, "sata": 6, "lsilogic": 7, "lsisas1068": 8, "virtio": 24}
"""Disks that a bus takes, or a SCSI controller's model; each virtio disk needs one of 32 PCI slots, and other devices want some too."""
_BOOTABLE: Final = frozenset({"root", "ephemeral", "swap", "volume"})


def plan_disks(image: Properties, disks: Sequence[GuestDisk], *, is_q35: bool) -> tuple[Disk, ...]:
    """Return the disks in their places. Raises InvalidInput if they do not fit, Unsupported if the image wants a config drive that is not there."""
    if image.optional("img_config_drive", ("optional", "mandatory")) == "mandatory" and all(disk.kind != "config" for disk in disks):
        raise Unsupported("the image's img_config_drive is mandatory, and the instance has no config drive: make the instance anew")
    for name in ("hw_floppy_bus", "hw_rescue_bus"):  # there is neither floppy nor rescue here; the words are checked as Nova checks them
        image.optional(name, ("fdc", *DISK_BUSES))
    bus = image.choice("hw_disk_bus", DISK_BUSES, "virtio")
    cdrom_bus = image.choice("hw_cdrom_bus", DISK_BUSES[1:], "sata" if is_q35 else "ide")
    image.optional("hw_scsi_model", (*SCSI_MODELS, "buslogic", "ibmvscsi"))
    return tuple(_placed(image, disks, bus, cdrom_bus, is_q35=is_q35))


def scsi_model(image: Properties) -> str:
    """Return the model of the SCSI controller that disks need. Raises InvalidInput for one that QEMU has not."""
    return image.choice("hw_scsi_model", SCSI_MODELS, "lsilogic")


def _placed(image: Properties, disks: Sequence[GuestDisk], bus: str, cdrom_bus: str, *, is_q35: bool) -> Iterator[Disk]:
    used = dict.fromkeys(DISK_BUSES, 0)
    boots = 0
    for disk in disks:
        # a config drive is nobody's to write, and its mode says so; IDE and SATA have no disks that are read-only
        is_config = disk.kind == "config"
        is_cdrom = disk.device == "cdrom" or (disk.kind == "root" and image.text("disk_format") == "iso") or (is_config and bus in ("ide", "sata"))
        own = cdrom_bus if is_cdrom else bus
        if own == "ide" and is_q35:
            raise InvalidInput("the image's hw_disk_bus or hw_cdrom_bus is ide, and a q35 machine has no IDE: set it to sata")
        limit = _LIMITS.get(scsi_model(image) if own == "scsi" else own, 26)
        if used[own] >= limit:
            better = "scsi and its hw_scsi_model to virtio-scsi" if own == "virtio" else "virtio"
            raise InvalidInput(f"the instance has more disks than fit the {own} bus ({limit}): set the image's hw_disk_bus to {better}")
        is_bootable = disk.kind in _BOOTABLE
        boots += is_bootable
        yield Disk(disk.name, disk.path, disk.format, disk.backing, own, used[own], boots if is_bootable else None, is_cdrom, is_config)
        used[own] += 1

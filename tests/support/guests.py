"""Guests to plan machines from, without a mount."""

import dataclasses
from pathlib import Path

from imagefs.cli.machine.model import Guest, GuestDisk

UUID = "9f0a2f5c-6f2e-4c0b-9d43-8a1d6c7b9e21"
CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")


def guest(disks: tuple[str, ...] = ("vda",), /, name: str = "web1", **attributes: str) -> Guest:
    """A guest of 2 vCPUs and 1024 MiB with raw disks, the first of them its root, and an image with these attributes."""
    found = tuple(GuestDisk(disk, Path(f"/mnt/instances/{name}/{disk}"), "root" if disk == "vda" else "ephemeral") for disk in disks)
    return Guest(name, UUID, 2, 1024, found, attributes, Path("/mnt/images"))


def with_disk(plain: Guest, disk: GuestDisk) -> Guest:
    """The guest with one more disk, or with another one of that name."""
    return dataclasses.replace(plain, disks=(*(other for other in plain.disks if other.name != disk.name), disk))


def nvram(plain: Guest, *, code: Path = CODE, secure_boot: bool = False, variables: Path = Path("/mnt/instances/web1/nvram.fd")) -> Guest:
    """The guest with UEFI's code and variables."""
    return dataclasses.replace(with_disk(plain, GuestDisk("nvram.fd", variables, "nvram")), firmware_code=code, secure_boot=secure_boot)


def config_drive(plain: Guest, device: str = "cdrom") -> Guest:
    """The guest with a config drive."""
    return with_disk(plain, GuestDisk("vdz", Path("/mnt/instances/web1/vdz"), "config", device=device))


def direct(plain: Guest) -> Guest:
    """The guest with a direct disk: a qcow2 file over a raw image."""
    return with_disk(plain, GuestDisk("vda", Path("/state/direct/u/vda.qcow2"), "root", "qcow2", backing=Path("/mnt/raw/an-image")))

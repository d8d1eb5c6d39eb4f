"""Each disk gets its place."""

from pathlib import Path

import pytest

from imagefs.cli.machine.disks import plan_disks
from imagefs.cli.machine.model import GuestDisk
from imagefs.errors import InvalidInput, Unsupported
from imagefs.instances.properties import Properties

ROOT = GuestDisk("vda", Path("/i/vda"))
EPHEMERAL = GuestDisk("vdb", Path("/i/vdb"), "ephemeral")
VOLUME = GuestDisk("vdc", Path("/v/db1"), "volume")
CONFIG = GuestDisk("vdz", Path("/i/vdz"), "config", device="cdrom")


def test_a_config_drive_is_a_cdrom_beside_the_disks_and_never_booted() -> None:
    """It has the bus of cdroms; disks keep their order in the firmware's eyes."""
    found = plan_disks(Properties({}), [ROOT, EPHEMERAL, VOLUME, CONFIG], is_q35=False)
    assert [(disk.name, disk.bus, disk.position, disk.boot, disk.is_cdrom) for disk in found] == [
        ("vda", "virtio", 0, 1, False), ("vdb", "virtio", 1, 2, False), ("vdc", "virtio", 2, 3, False), ("vdz", "ide", 0, None, True),
    ]  # fmt: skip


def test_a_config_drive_as_a_disk_is_on_the_bus_of_disks() -> None:
    """user.config_drive says which it is. It is read-only, and so a CD after all on buses whose disks cannot be that."""
    disk = GuestDisk("vdz", Path("/i/vdz"), "config", device="disk")
    for bus, expected in (("virtio", ("virtio", False)), ("usb", ("usb", False)), ("sata", ("sata", True))):
        root, config = plan_disks(Properties({"hw_disk_bus": bus}), [ROOT, disk], is_q35=True)
        assert (root.bus, root.is_cdrom, root.is_readonly) == (bus, False, False)
        assert (config.bus, config.is_cdrom) == expected
        assert config.is_readonly


def test_the_root_of_an_iso_is_a_cdrom() -> None:
    """Other disks are not."""
    found = plan_disks(Properties({"disk_format": "iso", "hw_cdrom_bus": "usb"}), [ROOT, EPHEMERAL], is_q35=True)
    assert [(disk.bus, disk.is_cdrom) for disk in found] == [("usb", True), ("virtio", False)]


def test_a_mandatory_config_drive_must_be_there() -> None:
    """The image requires it; a guest without would not come up."""
    image = Properties({"img_config_drive": "mandatory"})
    with pytest.raises(Unsupported, match="has no config drive"):
        plan_disks(image, [ROOT], is_q35=False)
    assert plan_disks(image, [ROOT, CONFIG], is_q35=False)


@pytest.mark.parametrize(
    ("given", "count"), [({"hw_disk_bus": "ide"}, 4), ({"hw_disk_bus": "sata"}, 6), ({"hw_disk_bus": "scsi"}, 7), ({}, 24)], ids=str
)
def test_a_bus_takes_so_many_disks(given: dict[str, str], count: int) -> None:
    """One more is refused, with a bus that takes more."""
    many = [GuestDisk(f"vd{letter}", Path("/x"), "volume") for letter in "abcdefghijklmnopqrstuvwxyz"]
    assert len(plan_disks(Properties(given), many[:count], is_q35=False)) == count
    with pytest.raises(InvalidInput, match="more disks than fit"):
        plan_disks(Properties(given), many[: count + 1], is_q35=False)
    better = Properties({"hw_disk_bus": "scsi", "hw_scsi_model": "virtio-scsi"})
    assert len(plan_disks(better, many, is_q35=False)) == 26


@pytest.mark.parametrize(
    ("name", "value"),
    [("hw_floppy_bus", "isa"), ("hw_rescue_bus", "x"), ("img_config_drive", "yes"), ("hw_scsi_model", "x"), ("hw_cdrom_bus", "virtio")],
)
def test_bad_words_are_refused(name: str, value: str) -> None:
    """Also where no disk asks for them."""
    with pytest.raises(InvalidInput, match=f"the image's {name} is '{value}'"):
        plan_disks(Properties({name: value}), [ROOT], is_q35=False)


def test_a_scsi_controller_that_qemu_has_not_matters_with_scsi_disks_only() -> None:
    """Nova takes the word, and so does this while nobody needs the controller."""
    assert plan_disks(Properties({"hw_scsi_model": "buslogic"}), [ROOT], is_q35=False)
    with pytest.raises(InvalidInput, match="hw_scsi_model is 'buslogic'"):
        plan_disks(Properties({"hw_scsi_model": "buslogic", "hw_disk_bus": "scsi"}), [ROOT], is_q35=False)

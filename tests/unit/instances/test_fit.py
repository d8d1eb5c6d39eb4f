"""Tests of which image fits which flavor, and which disks come of it."""

import msgspec
import pytest

from imagefs.catalog import CatalogImage
from imagefs.disks.record import check_name
from imagefs.errors import InvalidInput
from imagefs.flavors import Flavor, make_flavor
from imagefs.instances.fit import check_fit, plan_disks, root_size
from imagefs.instances.record import Choices, InstanceRecord
from imagefs.store.record import ImageRecord
from imagefs.units import GIB, MIB

FLAVOR = make_flavor("f", vcpus=1, ram=512, disk=10, ephemeral=2)
NO_DISK = make_flavor("zero", vcpus=1, ram=512, disk=0)


def image(*, status: str = "active", min_ram: int = 0, min_disk: int = 0) -> CatalogImage:
    """Return an image that asks for so much."""
    record = ImageRecord(id="0", created_at="", updated_at="", name="os", status=status, min_ram=min_ram, min_disk=min_disk, size=1)
    return CatalogImage(record, "1")


def instance(flavor: Flavor | None) -> InstanceRecord:
    """Return a new instance of uid 7 with this flavor."""
    return InstanceRecord("u", "web1", 7, 8, 0o700, "", flavor=flavor)


@pytest.mark.parametrize(
    ("asks", "flavor", "reason"),
    [
        ({"status": "queued"}, FLAVOR, "status queued"),
        ({"status": "deactivated"}, None, "status deactivated"),
        ({"min_ram": 513}, FLAVOR, "513 MiB of memory"),
        ({"min_disk": 11}, FLAVOR, "disk of 11 GiB"),
    ],
)
def test_image_that_asks_for_more_is_refused(asks: dict[str, object], flavor: Flavor | None, reason: str) -> None:
    """An image that is not active, or needs more memory or disk than the flavor has, is refused with the numbers."""
    with pytest.raises(InvalidInput, match=reason):
        check_fit(image(**asks), flavor)  # type: ignore[arg-type]  # the table's values are what image() takes


def test_image_that_asks_for_no_more_fits() -> None:
    """The flavor's own numbers are enough; with disk 0, or without a flavor, min_disk is not asked."""
    check_fit(image(min_ram=512, min_disk=10), FLAVOR)
    check_fit(image(min_disk=99), NO_DISK)
    check_fit(image(min_ram=99999, min_disk=99), None)


@pytest.mark.parametrize(
    ("flavor", "virtual_size", "sizes"),
    [
        (FLAVOR, 10 * GIB, {"vda": 10 * GIB, "vdb": 2 * GIB}),
        (FLAVOR, 1, {"vda": 10 * GIB, "vdb": 2 * GIB}),
        (NO_DISK, 3 * GIB + 512, {"vda": 3 * GIB + 512}),
        (None, 100 * GIB, {"vda": 100 * GIB}),
    ],
)
def test_disks_have_the_flavors_sizes(flavor: Flavor | None, virtual_size: int, sizes: dict[str, int]) -> None:
    """The disk vda has the flavor's size, or the image's virtual size where it says 0 or there is none; vdb is there if it has an ephemeral one."""
    root = root_size(image(), virtual_size, flavor)
    disks = plan_disks(instance(flavor), root, encrypted=False, direct=False)
    assert {disk.name: disk.size for disk in disks} == sizes
    assert {(disk.uid, disk.gid, disk.mode) for disk in disks} == {(7, 8, 0o600)}


def test_virtual_size_must_fit_whatever_the_stored_size() -> None:
    """A small compressed file with a large disk in it does not fit a small flavor, and an empty image is no disk."""
    with pytest.raises(InvalidInput, match="10241 MiB"):
        root_size(image(), 10 * GIB + MIB, FLAVOR)
    with pytest.raises(InvalidInput, match="empty"):
        root_size(image(), 0, None)


def test_disks_are_in_novas_order() -> None:
    """After vda come the ephemeral disks, then swap; vdz is the config drive, read only; firmware variables are a disk too."""
    flavor = make_flavor("all", vcpus=1, ram=512, disk=10, ephemeral=5, swap=64)
    record = msgspec.structs.replace(instance(flavor), choices=Choices(ephemeral="3,2"))
    disks = plan_disks(record, 10 * GIB, encrypted=True, direct=False, nvram_size=4096, config_size=8192)
    assert [(disk.name, disk.kind, disk.size) for disk in disks] == [
        ("vda", "root", 10 * GIB),
        ("vdb", "ephemeral", 3 * GIB),
        ("vdc", "ephemeral", 2 * GIB),
        ("vdd", "swap", 64 * MIB),
        ("vdz", "config", 8192),
        ("nvram.fd", "nvram", 4096),
    ]
    assert all(disk.encrypted for disk in disks)
    assert [disk.mode for disk in disks] == [0o600] * 4 + [0o400, 0o600]
    direct = plan_disks(msgspec.structs.replace(record, choices=Choices()), 10 * GIB, encrypted=False, direct=True)
    assert [(disk.name, disk.size) for disk in direct] == [("vdb", 5 * GIB), ("vdc", 64 * MIB)]


def test_there_are_only_so_many_names() -> None:
    """Twenty-four ephemeral disks and swap have names after vda; with a config drive one less, and one more is refused."""
    flavor = make_flavor("many", vcpus=1, ram=512, disk=1, ephemeral=100, swap=1)
    record = msgspec.structs.replace(instance(flavor), choices=Choices(ephemeral=",".join(["1"] * 23)))
    assert plan_disks(record, GIB, encrypted=False, direct=False)[-1].name == "vdy"
    assert plan_disks(record, GIB, encrypted=False, direct=False, config_size=1)[-1].name == "vdz"
    with pytest.raises(InvalidInput, match="too many"):
        plan_disks(msgspec.structs.replace(record, choices=Choices(ephemeral=",".join(["1"] * 24))), GIB, encrypted=False, direct=False)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\nb", "\x7f", "n" * 256, "\udcff", "ü" * 128])
def test_name_that_cannot_be_a_directory_is_refused(name: str) -> None:
    """Empty, dots, slashes, control characters, bytes that are not UTF-8 and more than 255 bytes are refused."""
    with pytest.raises(InvalidInput, match="cannot be the name of an instance"):
        check_name(name, "an instance")


@pytest.mark.parametrize("name", ["web1", "-v", ".hidden", "Grüße 漢字", "n" * 255])
def test_name_that_a_shell_can_write_is_taken(name: str) -> None:
    """All other text is a name."""
    check_name(name, "an instance")


@pytest.mark.parametrize(("device", "config_size"), [("vdc", 0), ("vdz", 2048)])
def test_no_disk_gets_the_name_of_a_volume(device: str, config_size: int) -> None:
    """A volume that was attached before the image keeps its name, and the disks that would have it are refused."""
    flavor = make_flavor("swaps", vcpus=1, ram=512, disk=10, ephemeral=2, swap=8)
    record = msgspec.structs.replace(instance(flavor), volumes={device: "db1"})
    with pytest.raises(InvalidInput, match=f"a volume is attached as {device}: detach that first"):
        plan_disks(record, GIB, encrypted=False, direct=False, config_size=config_size)
    free = msgspec.structs.replace(record, volumes={"vdd": "db1"})
    assert len(plan_disks(free, GIB, encrypted=False, direct=False, config_size=config_size)) == 3 + bool(config_size)

"""Tests of reading a FAT filesystem, against what mkfs.vfat and mtools made."""

import os
import struct
import subprocess
from pathlib import Path

import pytest

from imagefs.profile.fat_volume import open_fat
from imagefs.profile.likely import ESP
from imagefs.profile.walk import walk
from imagefs.units import KIB, MIB
from tests.support.plans import bytes_of, run_plan

SHIM = bytes(range(256)) * 3000
GRUB = b"grub" * 300_000


@pytest.fixture(params=[("12", 4 * MIB), ("16", 32 * MIB), ("32", 64 * MIB)], ids=["FAT12", "FAT16", "FAT32"])
def esp(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    wide, size = request.param
    image, shim, grub = tmp_path / "esp", tmp_path / "shim", tmp_path / "grub"
    image.touch()
    os.truncate(image, size)
    shim.write_bytes(SHIM)
    grub.write_bytes(GRUB)
    environment = {"MTOOLS_SKIP_CHECK": "1", "PATH": os.environ["PATH"]}
    for command in (
        ["/usr/sbin/mkfs.vfat", "-F", wide, str(image)],
        ["mmd", "-i", str(image), "::EFI", "::EFI/BOOT", "::EFI/debian"],
        ["mcopy", "-i", str(image), str(shim), "::EFI/BOOT/BOOTX64.EFI"],
        ["mcopy", "-i", str(image), str(grub), "::EFI/debian/grubx64.efi"],
        ["mcopy", "-i", str(image), str(shim), "::EFI/debian/a long name that nobody starts.efi"],
    ):
        subprocess.run(command, check=True, capture_output=True, env=environment)
    return image.read_bytes()


def test_finds_what_the_firmware_starts(esp: bytes) -> None:
    """The boot loaders' bytes are found by their short names, whatever the width of the table; other files are left."""
    disk = bytes(MIB) + esp
    volume = open_fat(MIB, len(esp), esp[: 128 * KIB])
    assert volume is not None
    found, course = run_plan(walk(volume, ESP), disk)
    assert {match.path: bytes_of(disk, match.places, match.node.size) for match in found} == {
        "/EFI/BOOT/BOOTX64.EFI": SHIM,
        "/EFI/DEBIAN/GRUBX64.EFI": GRUB,
    }
    assert len(course.rounds) < 20


def test_a_chain_of_clusters_that_goes_round_ends(esp: bytes) -> None:
    """A table in which every cluster is followed by the same one gives files no longer than their sizes."""
    shape = bytearray(esp)
    (reserved,) = struct.unpack_from("<H", shape, 14)
    for at in range(reserved * 512 + 8, reserved * 512 + 64 * KIB, 4):
        struct.pack_into("<I", shape, at, 0x00030003)
    volume = open_fat(0, len(shape), bytes(shape[: 128 * KIB]))
    assert volume is not None
    found, _ = run_plan(walk(volume, ESP), bytes(shape))
    assert all(sum(length for _, length in match.places) < match.node.size + 64 * KIB for match in found)


@pytest.mark.parametrize(
    ("form", "offset", "value"), [("<H", 11, 3), ("<B", 13, 0), ("<H", 14, 0), ("<B", 16, 0), ("<B", 16, 200), ("<H", 22, 0xFFFF)]
)
def test_a_damaged_boot_sector_is_none(form: str, offset: int, value: int) -> None:
    """Sizes of nonsense are refused before anything is divided by them."""
    sector = bytearray(512)
    sector[0] = 0xEB
    struct.pack_into("<HBHBHHBH", sector, 11, 512, 4, 1, 2, 512, 8192, 0xF8, 8)
    sector[510:] = b"\x55\xaa"
    assert open_fat(0, 4 * MIB, bytes(sector)) is not None
    struct.pack_into(form, sector, offset, value)
    assert open_fat(0, 4 * MIB, bytes(sector)) is None

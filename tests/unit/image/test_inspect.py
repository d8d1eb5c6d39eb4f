"""What an image is, and which images are refused before anything reads them."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from imagefs.errors import ImageRefused
from imagefs.image.inspect import HEAD, inspect
from imagefs.units import KIB, MIB, TIB
from tests.support.qcow2 import Patched, make, qemu_img

pytestmark = pytest.mark.qemu

SIZE = 3 * MIB


def mbr(os_type: int = 0x83, boot: int = 0x80) -> bytearray:
    """A boot sector with one partition."""
    sector = bytearray(512)
    sector[446:462] = struct.pack("<B3BB3BII", boot, 0, 2, 0, os_type, 255, 255, 255, 1, 1000)
    sector[510:512] = b"\x55\xaa"
    return sector


def iso() -> bytearray:
    """The start of an ISO 9660 filesystem."""
    disk = bytearray(64 * KIB)
    disk[32 * KIB : 32 * KIB + 7] = b"\x01CD001\x01"
    return disk


def vmdk_descriptor(extent: str, create_type: str = "monolithicSparse") -> bytes:
    """The text that a VMDK is described by."""
    return f'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="{create_type}"\n{extent}\n'.encode()


def head_of(path: Path) -> tuple[bytes, int]:
    """Return a file's head and size."""
    with path.open("rb") as file:
        return file.read(HEAD), path.stat().st_size


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make(tmp_path / "image.qcow2", SIZE)


@pytest.mark.parametrize("declared", ["qcow2", None])
def test_inspect_accepts_qcow2(image: Path, declared: str | None) -> None:
    """A plain qcow2 image is one, with its virtual size, whether that was declared or not."""
    found = inspect(*head_of(image), declared, "x")
    assert (found.format, found.virtual_size, found.unreadable) == ("qcow2", SIZE, "")


@pytest.mark.parametrize(
    "options", ["compat=0.10", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "compression_type=zstd", "lazy_refcounts=on"]
)
def test_inspect_accepts_every_layout_that_is_read(tmp_path: Path, options: str) -> None:
    """All layouts that the reader knows pass, extended L2 entries too, which oslo.utils refuses."""
    found = inspect(*head_of(make(tmp_path / "image.qcow2", SIZE, options)), "qcow2", "x")
    assert (found.format, found.virtual_size) == ("qcow2", SIZE)


def test_inspect_accepts_snapshots(image: Path) -> None:
    """Internal snapshots are no reason to refuse an image: its present state is what is read."""
    qemu_img("snapshot", "-c", "before", image)
    assert inspect(*head_of(image), "qcow2", "x").virtual_size == SIZE


@pytest.mark.parametrize(
    "disk", [b"", b"x", bytes(SIZE), bytes(mbr()), bytes(mbr(boot=0x13)), gzip.compress(b"disk"), b"#!/bin/sh\n" * 60 + b"\xff" * 5000]
)
def test_inspect_takes_unknown_content_as_raw(disk: bytes) -> None:
    """What is no other format is raw, with or without a partition table, and its disk is as large as its bytes."""
    for declared in ("raw", None):
        found = inspect(disk, len(disk), declared, "x")
        assert (found.format, found.virtual_size, found.unreadable) == ("raw", len(disk), "")


def test_inspect_takes_iso_as_stored() -> None:
    """An ISO, bootable from a USB stick or not, may be declared as iso or raw."""
    hybrid = iso()
    hybrid[:512] = mbr()
    for disk in (bytes(iso()), bytes(hybrid)):
        assert inspect(disk, len(disk), "iso", "x").format == "iso"
        assert inspect(disk, len(disk), "raw", "x").format == "raw"
        assert inspect(disk, len(disk), None, "x").format == "iso"


@pytest.mark.parametrize("disk_format", ["vmdk", "vdi", "vpc", "vhdx"])
def test_inspect_knows_foreign_formats(tmp_path: Path, disk_format: str) -> None:
    """Other formats are told apart, safe to store, not readable as a disk, and refused under the name of raw."""
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", disk_format, path, "64M")
    declared = {"vpc": "vhd"}.get(disk_format, disk_format)
    for name in (declared, None):
        found = inspect(*head_of(path), name, "x")
        assert found.format == declared
        assert "qemu-img convert" in found.unreadable
        assert found.virtual_size is None or 64 * MIB <= found.virtual_size <= 65 * MIB
    with pytest.raises(ImageRefused, match=f"declared as raw, but its content is {declared}"):
        inspect(*head_of(path), "raw", "x")


def test_inspect_accepts_stream_optimized_vmdk(tmp_path: Path) -> None:
    """A VMDK whose footer is not in the head is judged by what is there."""
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 4 * KIB)
    path = tmp_path / "image.vmdk"
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", source, path)
    head, size = head_of(path)
    assert inspect(head[: 64 * KIB], size, "vmdk", "x").format == "vmdk"


def test_inspect_accepts_fixed_vhd() -> None:
    """A fixed VHD has only a footer, far from its head, and looks raw from there."""
    found = inspect(bytes(HEAD), 8 * MIB, "vhd", "x")
    assert found.format == "vhd"
    assert found.unreadable


def test_inspect_reports_unknown_declared_formats() -> None:
    """A format that nobody inspects, such as ploop, is kept as stored and not read."""
    assert inspect(bytes(KIB), KIB, "ploop", "x").unreadable


def test_inspect_accepts_luks_as_undeclared_only() -> None:
    """An encrypted disk is not raw; undeclared, it is stored but not read, and its size, which oslo gets wrong, is left out."""
    disk = bytearray(4 * KIB)
    disk[:8] = b"LUKS\xba\xbe\x00\x01"
    struct.pack_into(">I", disk, 104, 4096)
    found = inspect(bytes(disk), len(disk), None, "x")
    assert (found.format, found.virtual_size) == ("luks", None)
    assert found.unreadable
    with pytest.raises(ImageRefused, match="luks"):
        inspect(bytes(disk), len(disk), "raw", "x")


@pytest.mark.parametrize(
    ("head", "declared", "reason"),
    [
        (b"QFI\xfb" + bytes(600), "raw", "content is qcow2"),
        (b"QFI\xfb\0\0\0\3", "raw", "content is qcow2"),
        (b"QFI\xfb\0\0\0\3", "qcow2", "cut inside the header, at 8 bytes"),
        (b"QFI\xfb\0\0\0\1" + bytes(600), "qcow2", "version 1 is unknown"),
        (bytes(KIB), "qcow2", "content is raw"),
        (bytes(KIB), "vmdk", "content is raw"),
        (bytes(mbr()), "qcow2", "content is raw"),
        (bytes(iso()), "qcow2", "content is iso"),
        (b"QED\0" + bytes(600), "raw", "content is qed"),
        (b"QED\0" + bytes(600), None, "not allowed"),
        (vmdk_descriptor('RW 8 FLAT "/etc/passwd" 0', "monolithicFlat"), "raw", "content is vmdk"),
        (vmdk_descriptor('RW 8 FLAT "/etc/passwd" 0', "monolithicFlat"), "vmdk", "unsafe as vmdk"),
        (vmdk_descriptor('RW 8 SPARSE "/etc/passwd"'), "vmdk", "unsafe as vmdk"),
        (b"# Disk DescriptorFile\n" + b"\xff" * KIB, "raw", "content is vmdk"),
    ],
)
def test_inspect_refuses_heads(head: bytes, declared: str | None, reason: str) -> None:
    """Content that is not what was declared, or not safe, is refused with the reason."""
    with pytest.raises(ImageRefused, match=reason):
        inspect(head, len(head), declared, "x")


def test_inspect_refuses_polyglots(image: Path) -> None:
    """An image that is two formats at once is refused under either name."""
    head, size = head_of(image)
    for at, magic in ((510, b"\x55\xaa"), (32 * KIB, b"\x01CD001\x01"), (64, b"\x7f\x10\xda\xbe")):
        both = bytearray(head)
        both[at : at + len(magic)] = magic
        for declared in ("qcow2", "raw", "iso", None):
            with pytest.raises(ImageRefused, match="at once"):
                inspect(bytes(both), size, declared, "x")


def test_inspect_refuses_huge_raw() -> None:
    """No disk is larger than 64 TiB, whatever the store says."""
    with pytest.raises(ImageRefused, match="above 64"):
        inspect(bytes(HEAD), 64 * TIB + 1, "raw", "x")


@pytest.mark.parametrize(
    "options",
    [
        ("-b", "/etc/passwd", "-F", "raw"),
        ("-b", 'json:{"driver":"file","filename":"/etc/passwd"}', "-F", "raw"),
        ("-b", "nbd://127.0.0.1:1/x", "-F", "raw"),
    ],
)
def test_inspect_refuses_backing_files(tmp_path: Path, options: tuple[str, ...]) -> None:
    """A backing file, by path, json or URL, is refused and never opened."""
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-u", *options, path, "1M")
    with pytest.raises(ImageRefused, match="backing file"):
        inspect(*head_of(path), "qcow2", "x")


def test_inspect_refuses_data_files(tmp_path: Path) -> None:
    """An external data file is refused."""
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", path, "1M")
    with pytest.raises(ImageRefused, match="external data file"):
        inspect(*head_of(path), "qcow2", "x")


@pytest.mark.parametrize("size", [0, 1, 3, 63, 64, 511, 512, 4 * KIB, HEAD])
@pytest.mark.parametrize("start", [b"KDMV", b"vhdxfile", b"conectix", b"LUKS\xba\xbe", b"QFI\xfb", b"# Disk DescriptorFile", b"text \xc3\xa9"])
@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"a", b"regi", b"\n"])
def test_inspect_ends_for_any_head(start: bytes, fill: bytes, size: int) -> None:
    """Whatever a head says, inspection gives a verdict: an Inspection or ImageRefused."""
    head = (start + fill * (size // len(fill) + 1))[:size]
    refusals = []
    for declared in (None, "raw", "qcow2", "vmdk", "vhdx"):
        try:
            assert inspect(head, size, declared, "x").format
        except ImageRefused as error:
            refusals.append(str(error))
    assert all(refusal.startswith("image x: ") for refusal in refusals)


def damage(offset: int, form: str, number: int) -> Callable[[Patched], object]:
    return lambda image: image.put(form, offset, number)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (damage(4, "I", 9), "version 9"),
        (damage(8, "Q", 512), "backing file"),
        (damage(20, "I", 0), "cluster_bits 0"),
        (damage(20, "I", 8), "cluster_bits 8"),
        (damage(20, "I", 22), "cluster_bits 22"),
        (damage(20, "I", 63), "cluster_bits 63"),
        (damage(24, "Q", 2**63 - 1), "virtual size 9223372036854775807"),
        (damage(24, "Q", 2**64 - 1), "virtual size"),
        (damage(24, "Q", 64 * TIB + 1), "above 64"),
        (damage(24, "Q", TIB), "l1_size 1 is too small"),
        (damage(32, "I", 1), "encrypted"),
        (damage(32, "I", 2), "encrypted"),
        (damage(36, "I", 2**32 - 1), "l1_size 4294967295"),
        (damage(36, "I", 0), "l1_size 0 is too small"),
        (damage(36, "I", 4 * MIB), "beyond the file's end"),
        (damage(40, "Q", 0), "l1_table_offset 0"),
        (damage(40, "Q", 1000), "l1_table_offset 1000"),
        (damage(40, "Q", 2**63), "beyond the file's end"),
        (damage(48, "Q", 0), "refcount_table_offset 0"),
        (damage(48, "Q", 2**40), "refcount_table_offset"),
        (damage(48, "Q", 1000), "refcount_table_offset 1000"),
        (damage(56, "I", 0), "refcount_table_clusters 0"),
        (damage(56, "I", 2**31), "refcount_table_clusters"),
        (damage(60, "I", 2**31), "nb_snapshots"),
        (lambda image: image.put("I", 60, 1).put("Q", 64, 2**50), "snapshots_offset"),
        (damage(72, "Q", 1 << 1), "marked corrupt"),
        (damage(72, "Q", 1 << 2), "external data file"),
        (damage(72, "Q", 1 << 3), "compression_type 0 contradicts"),
        (damage(72, "Q", 1 << 5), "feature bits 0x20"),
        (damage(72, "Q", 1 << 63), "feature bits"),
        (lambda image: image.put("Q", 72, 1 << 4).put("I", 20, 13), "too small for extended"),
        (damage(96, "I", 7), "refcount_order 7"),
        (damage(100, "I", 72), "header_length 72"),
        (damage(100, "I", 2**31), "header_length"),
        (damage(104, "B", 1), "compression_type 1 contradicts"),
        (lambda image: image.put("Q", 72, 1 << 3).put("B", 104, 2), "compression_type 2 is unknown"),
        (lambda image: image.body.__delitem__(slice(100, None)), "cut inside the header, at 100 bytes"),
        (lambda image: image.body.__delitem__(slice(110, None)), "cut inside the header, at 110 bytes"),
        (lambda image: image.body.__delitem__(slice(512, None)), "beyond the file's end"),
    ],
)
def test_inspect_refuses_damaged_headers(image: Path, change: Callable[[Patched], object], reason: str) -> None:
    """Each bound of the header is kept: one crafted image for each."""
    patched = Patched(image)
    change(patched)
    with pytest.raises(ImageRefused, match=reason) as refused:
        inspect(bytes(patched.body[:HEAD]), len(patched.body), "qcow2", "debian-12")
    assert str(refused.value).startswith("image debian-12: refused as qcow2: ")


def test_inspect_accepts_dirty_images(image: Path) -> None:
    """The dirty bit says that refcounts may be wrong, and a reader needs none."""
    patched = Patched(image).put("Q", 72, 1)
    assert inspect(bytes(patched.body[:HEAD]), len(patched.body), "qcow2", "x").virtual_size == SIZE

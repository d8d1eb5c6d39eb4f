"""This module makes qcow2 images for tests, sound ones with QEMU's tools and hostile ones by patching bytes, and reads them."""

import dataclasses
import os
import random
import struct
import subprocess
import weakref
from collections.abc import Callable, Generator
from pathlib import Path

from imagefs.fetch.traffic import Traffic
from imagefs.holes import data_ranges
from imagefs.image.qcow2.filler import Qcow2Filler
from imagefs.units import GIB, KIB, MIB, UNIT, unit_count

_ZEROS = bytes(4 * KIB)

LAST_SECTORS = 7 * 512
"""Sizes of test disks end on no unit and no cluster."""


def qemu_img(*arguments: str | Path) -> None:
    """Run qemu-img; raises CalledProcessError if it fails."""
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def qemu_io(image: Path, *commands: str, check: bool = True) -> None:
    """Run qemu-io commands on a qcow2 image, such as "write -P 1 0 64k"; with `check`, raises CalledProcessError if one fails."""
    file = f"driver=qcow2,file.filename={image}"
    arguments = [argument for command in commands for argument in ("-c", command)]
    subprocess.run(["qemu-io", "-d", "unmap", "--image-opts", file, *arguments], check=check, capture_output=True)


def make(image: Path, size: int, options: str = "") -> Path:
    """Make an empty qcow2 image of `size` bytes with `-o` options, and return its path."""
    qemu_img("create", "-q", "-f", "qcow2", *(("-o", options) if options else ()), image, str(size))
    return image


def pattern(size: int, seed: int = 1) -> bytes:
    """Return `size` bytes in which noise, text and zeros alternate in runs of up to 100 KiB; the same for the same seed."""
    chance = random.Random(seed)
    disk = bytearray()
    while len(disk) < size:
        length = chance.randrange(1, 100 * KIB)
        disk += chance.choice((chance.randbytes(length), bytes(length), (b"%x, " % chance.getrandbits(64)) * (length // 8)))
    return bytes(disk[:size])


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sound image, what QEMU says its disk holds, and offsets at which something is."""

    name: str
    image: Path
    raw: Path
    size: int
    points: tuple[int, ...]


def converted(directory: Path, name: str, source: Path, options: str, *, compress: bool = False) -> Path:
    """Return the path of `source` (raw) converted to a qcow2 image."""
    image = directory / f"{name}.qcow2"
    qemu_img("convert", *(("-c",) if compress else ()), "-f", "raw", "-O", "qcow2", "-o", options, source, image)
    return image


def sample(image: Path, points: tuple[int, ...] = (0,)) -> Sample:
    """Return the sample that `image` is; QEMU's decoding of it is the authority."""
    raw = image.with_suffix(".raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    size = raw.stat().st_size
    return Sample(image.stem, image, raw, size, (*points, size))


def make_corpus(directory: Path) -> list[Sample]:
    """Make sound images of every layout that the reader knows."""
    source = directory / "source"
    source.write_bytes(pattern(5 * MIB + LAST_SECTORS))
    small = directory / "small"
    small.write_bytes(pattern(MIB + LAST_SECTORS, seed=2))
    images = [
        converted(directory, "v2", source, "compat=0.10"),
        converted(directory, "v2-zlib", source, "compat=0.10", compress=True),
        converted(directory, "v3", source, "compat=1.1"),
        converted(directory, "v3-512", small, "cluster_size=512"),
        converted(directory, "v3-512-zlib", small, "cluster_size=512", compress=True),
        converted(directory, "v3-4k-zlib", source, "cluster_size=4k", compress=True),
        converted(directory, "v3-64k-zlib", source, "cluster_size=64k", compress=True),
        converted(directory, "v3-64k-zstd", source, "compression_type=zstd", compress=True),
        converted(directory, "v3-2m", source, "cluster_size=2M"),
        converted(directory, "v3-2m-zlib", source, "cluster_size=2M", compress=True),
        converted(directory, "v3-2m-zstd", source, "cluster_size=2M,compression_type=zstd", compress=True),
        converted(directory, "extended-16k", source, "cluster_size=16k,extended_l2=on"),
        converted(directory, "extended-64k-zlib", source, "cluster_size=64k,extended_l2=on", compress=True),
        converted(directory, "metadata", source, "preallocation=metadata"),
        make(directory / "empty.qcow2", 0),
        make(directory / "nothing.qcow2", 3 * MIB),
    ]
    return [sample(image, (0, MIB)) for image in images] + [
        _changed(directory / "changed-64k.qcow2", "cluster_size=64k"),
        _changed(directory / "changed-4k.qcow2", "cluster_size=4k,lazy_refcounts=on"),
        _changed(directory / "changed-2m-zstd.qcow2", "cluster_size=2M,compression_type=zstd"),
        _changed(directory / "changed-extended.qcow2", "cluster_size=128k,extended_l2=on"),
        _tall(directory / "tall-2m.qcow2", "cluster_size=2M", (0, 17 * GIB, 39 * GIB)),
        _tall(directory / "tall-512.qcow2", "cluster_size=512", (0, 256 * MIB - 512, 600 * MIB)),
    ]


def _changed(image: Path, options: str) -> Sample:
    """A disk that was written, zeroed, discarded, compressed in part and kept as a snapshot."""
    make(image, 9 * MIB + LAST_SECTORS, options)
    qemu_io(image, "write -P 1 0 5M", "write -P 2 70000 3000", "write -z 1M 200k", "write -c -P 3 6M 2M")
    qemu_img("snapshot", "-q", "-c", "before", image)
    qemu_io(image, "write -P 4 2M 130k", "discard 3M 512k", "write -z -u 4M 64k", "write -P 5 6294000 9000", "write -P 6 9M 3584")
    return sample(image, (0, 70000, MIB, 2 * MIB, 3 * MIB, 4 * MIB, 6 * MIB, 6294000, 9 * MIB))


def _tall(image: Path, options: str, points: tuple[int, ...]) -> Sample:
    """A disk that needs many table pages and has little in them."""
    make(image, points[-1] + MIB, options)
    qemu_io(image, *(f"write -P {number} {point} 300k" for number, point in enumerate(points, 1)))
    return sample(image, points)


class Patched:
    """The bytes of a qcow2 image under surgery, with the fields of its header by the specification's names."""

    def __init__(self, image: Path) -> None:
        """Read the image; `save` writes it back."""
        self.path = image
        self.body = bytearray(image.read_bytes())

    def get(self, form: str, offset: int) -> int:
        """Return the big-endian number of struct form `form` at `offset`."""
        return int(struct.unpack_from(f">{form}", self.body, offset)[0])

    def put(self, form: str, offset: int, number: int) -> "Patched":
        """Replace the big-endian number at `offset`."""
        struct.pack_into(f">{form}", self.body, offset, number)
        return self

    @property
    def l1_table_offset(self) -> int:
        """Where the L1 table is."""
        return self.get("Q", 40)

    def l2_table_offset(self, index: int = 0) -> int:
        """Where the L2 table of an L1 entry is."""
        return self.get("Q", self.l1_table_offset + 8 * index) & 0x00FFFFFFFFFFFE00

    def save(self) -> Path:
        """Write the bytes back and return the path."""
        self.path.write_bytes(self.body)
        return self.path


class FileUnits:
    """A StoredObject of a file, unverified: stored units by stream, and what was asked for."""

    def __init__(self, path: Path) -> None:
        """Take the file."""
        self.path = path
        self.size = path.stat().st_size
        self.streams: list[tuple[int, int]] = []
        self.traffic = Traffic()

    def stream_units(self, first_unit: int, count: int) -> Generator[bytes, None, None]:
        """Yield stored units."""
        self.streams.append((first_unit, count))
        with self.path.open("rb") as file:
            file.seek(first_unit * UNIT)
            for _ in range(count):
                yield file.read(UNIT)


class FileSource:
    """A Source over a file. With `waits`, `read_nowait` never has anything; `reads` lists what `read` was asked for."""

    def __init__(self, path: Path, *, waits: bool = True) -> None:
        """Take the file."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self._waits = waits
        self.size = path.stat().st_size
        self.reads: list[tuple[int, int]] = []

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        """Return the bytes unless this source always waits."""
        return None if self._waits else os.pread(self._descriptor, length, offset)

    async def read(self, offset: int, length: int) -> bytes:
        """Return the bytes."""
        self.reads.append((offset, length))
        return os.pread(self._descriptor, length, offset)

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return what is not a hole."""
        return list(data_ranges(self._descriptor, offset, min(offset + length, self.size)))


class FileOutput:
    """What a Qcow2Writer writes to: a file, with holes for zeros. `fail` is called before each write, with how many there were."""

    def __init__(self, path: Path) -> None:
        """Make the file."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self._size = 0
        self.written: list[tuple[int, int]] = []
        self.fail: Callable[[int], object] = lambda count: None

    def write_at(self, offset: int, body: bytes | bytearray | memoryview) -> None:
        """Write `body`, but for zeros at its end."""
        self.fail(len(self.written))
        self.written.append((offset, len(body)))
        kept = len(body)
        while kept and body[max(0, kept - len(_ZEROS)) : kept] == _ZEROS[:kept]:
            kept -= len(_ZEROS)
        os.pwrite(self._descriptor, body[:kept], offset)
        if offset + len(body) > self._size:
            self._size = offset + len(body)
            os.truncate(self._descriptor, self._size)


def check_clean(image: Path) -> None:
    """Raise AssertionError unless qemu-img check finds neither errors nor leaks in a qcow2 image."""
    found = subprocess.run(["qemu-img", "check", "-f", "qcow2", image], check=False, capture_output=True, text=True)
    assert (found.returncode, "No errors were found" in found.stdout) == (0, True), found.stdout + found.stderr


def decoded_by_qemu(image: Path) -> bytes:
    """Return the disk that QEMU sees in a qcow2 image."""
    raw = image.with_suffix(".decoded")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    return raw.read_bytes()


class FilledSource:
    """The simplest cache: a Source in guest address space that keeps every unit its filler delivers."""

    def __init__(self, filler: Qcow2Filler) -> None:
        """Take the filler."""
        self.filler = filler
        self.size = filler.size
        self.units: dict[int, bytes] = {}

    def deliver(self, unit: int, body: bytes | None) -> None:
        """Keep a delivered unit; a second delivery of one is an error."""
        if unit in self.units:
            raise ValueError(f"unit {unit} was delivered twice")
        length = min(UNIT, self.size - unit * UNIT)
        if body is not None and len(body) != length:
            raise ValueError(f"unit {unit} was delivered with {len(body)} of {length} bytes")
        self.units[unit] = bytes(length) if body is None else body

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        """Return the bytes if all their units are here."""
        end = min(offset + length, self.size)
        units = range(offset // UNIT, unit_count(end)) if offset < end else range(0)
        if any(unit not in self.units for unit in units):
            return None
        start = offset - units.start * UNIT
        return b"".join(self.units[unit] for unit in units)[start : start + max(0, end - offset)]

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return what the filler says."""
        return await self.filler.extents(offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        """Return the bytes, filling each run of missing units with one call."""
        end = min(offset + length, self.size)
        missing = [unit for unit in range(offset // UNIT, unit_count(end)) if unit not in self.units]
        while missing:
            first = missing.pop(0)
            count = 1
            while missing and missing[0] == first + count:
                missing.pop(0)
                count += 1
            await self.filler.fill(first, count, self.deliver)
        body = self.read_nowait(offset, length)
        if body is None:
            raise ValueError(f"the filler left out units of {offset}+{length}")
        return body

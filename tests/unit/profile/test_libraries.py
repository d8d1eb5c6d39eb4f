"""Tests of following programs to their libraries, against what readelf says of this machine's own."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from imagefs.profile import elf
from imagefs.profile.ext4_volume import HEAD, open_volume
from imagefs.profile.libraries import needed_libraries
from imagefs.profile.likely import program
from imagefs.profile.walk import aim, walk
from imagefs.units import MIB
from tests.support.plans import make_ext, run_plan

PROGRAM = Path(shutil.which("qemu-img") or "/bin/ls").resolve()


def needed(path: Path) -> list[str]:
    """Return what readelf says that a file needs."""
    said = subprocess.run(["readelf", "-d", str(path)], check=True, capture_output=True, text=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", said)


def closure(path: Path) -> dict[str, Path]:
    """Return all libraries of a program, by the names that the files need them by."""
    said = subprocess.run(["ldd", str(path)], check=True, capture_output=True, text=True).stdout
    return {name: Path(where).resolve() for name, where in re.findall(r"^\t(\S+) => (\S+)", said, re.MULTILINE)}


def test_reads_needed_libraries_as_readelf_does() -> None:
    """The names come out of the dynamic section and the string table."""
    raw = PROGRAM.read_bytes()
    place = elf.parse_program(raw[: elf.HEAD])
    assert place is not None
    needs = elf.parse_dynamic(place, raw[place.dynamic : place.dynamic + place.dynamic_size])
    assert needs is not None
    assert elf.parse_names(needs, raw[needs.names : needs.names + needs.names_size]) == needed(PROGRAM)


def test_follows_libraries_of_libraries(tmp_path: Path) -> None:
    """All that ldd names is found to be likely, in a few rounds a level."""
    libraries = closure(PROGRAM)
    tree = tmp_path / "tree" / "usr" / "lib" / "x86_64-linux-gnu"
    tree.mkdir(parents=True)
    for name, where in libraries.items():
        shutil.copyfile(where, tree / name)
    shutil.copyfile(PROGRAM, tmp_path / "tree" / "program")
    make_ext(tmp_path / "tree", tmp_path / "image", 128 * MIB, "-t", "ext4", "-b", "4096")
    disk = (tmp_path / "image").read_bytes()
    volume, _ = run_plan(open_volume(0, len(disk), disk[:HEAD]), disk)
    assert volume is not None
    found, _ = run_plan(walk(volume, [aim("/program", program)]), disk)
    seen: set[str] = set()
    _, course = run_plan(needed_libraries(volume, found, seen), disk)
    assert libraries.keys() <= seen
    likely = sum(length for _, length in course.likely)
    assert likely >= sum(where.stat().st_size for where in libraries.values())
    assert len(course.rounds) < 80


def image_of(**changes: int) -> bytes:
    """Return the smallest ELF file that needs one library, with some of its fields changed."""
    field = {"headers": 64, "size": 56, "count": 2, "dynamic": 256, "dynamic_size": 64, "table": 512, "table_size": 64, "start": 1} | changes
    raw = bytearray(1024)
    raw[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", raw, 32, field["headers"])
    struct.pack_into("<HH", raw, 54, field["size"], field["count"])
    struct.pack_into("<IIQQQQ", raw, 64, 1, 0, 0, 0, 0, 1024)
    struct.pack_into("<IIQQQQ", raw, 120, 2, 0, field["dynamic"], 0, 0, field["dynamic_size"])
    struct.pack_into("<8Q", raw, 256, 1, field["start"], 5, field["table"], 10, field["table_size"], 0, 0)
    raw[513:524] = b"libx.so.1\0\0"
    return bytes(raw)


def names(raw: bytes) -> list[str]:
    place = elf.parse_program(raw)
    needs = elf.parse_dynamic(place, raw[place.dynamic : place.dynamic + place.dynamic_size]) if place else None
    return elf.parse_names(needs, raw[needs.names : needs.names + needs.names_size]) if needs else []


def test_the_smallest_file_is_sound() -> None:
    """The one that the next test damages names its library."""
    assert names(image_of()) == ["libx.so.1"]


@pytest.mark.parametrize(
    "damage",
    [
        {"headers": 1 << 63}, {"size": 0}, {"count": 0}, {"dynamic": 1 << 62}, {"dynamic_size": 1 << 60}, {"dynamic_size": 1}, {"table": 1 << 40},
        {"table_size": 0}, {"start": 1 << 63}, {"start": 63},
    ],
)  # fmt: skip
def test_damaged_files_need_nothing_or_what_they_say(damage: dict[str, int]) -> None:
    """Places and sizes of nonsense lead to no name that is not there, and to no exception."""
    assert names(image_of(**damage)) in ([], ["libx.so.1"])


def test_names_that_are_no_names_of_files_are_left_out() -> None:
    """A name may not be a path nor hold what is special in patterns."""
    needs = elf.Needs(0, 100, (0, 6, 12, 20, 25))
    assert elf.parse_names(needs, b"a/b.c\0..x.*\0libz.so\0..\0\0\0libend") == ["libz.so"]

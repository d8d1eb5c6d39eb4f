"""This module runs plans of imagefs.profile over bytes at hand, and makes the small disks and filesystems that they are tried on."""

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import TypeVar

from imagefs.profile.rounds import Place, Plan
from imagefs.units import KIB, MIB

T = TypeVar("T")


@dataclasses.dataclass
class Course:
    """How a plan went: each round's wanted places, and all that it called likely."""

    rounds: list[tuple[Place, ...]] = dataclasses.field(default_factory=list)
    likely: list[Place] = dataclasses.field(default_factory=list)


def run_plan(plan: Plan[T], disk: bytes, most_rounds: int = 500) -> tuple[T, Course]:
    """Run a plan to its end; places outside the disk are answered with what there is of them."""
    course = Course()
    try:
        asked = next(plan)
        while True:
            course.likely += asked.likely
            course.rounds.append(asked.wanted)
            assert len(course.rounds) <= most_rounds, "a plan must end"
            asked = plan.send([cut(disk, place) for place in asked.wanted])
    except StopIteration as end:
        return end.value, course


def cut(disk: bytes, place: Place) -> bytes:
    """Return what of a place is within the disk."""
    offset, length = place
    return disk[offset : offset + length] if offset >= 0 else b""


def bytes_of(disk: bytes, places: object, size: int) -> bytes:
    """Return the first `size` bytes of a file that lies at these places."""
    assert isinstance(places, list | tuple)
    return b"".join(cut(disk, place) for place in places)[:size]


def plant(tree: Path, files: dict[str, bytes | str]) -> None:
    """Make files below `tree`: bytes are a file's, text is what a symbolic link points to."""
    for name, content in files.items():
        path = tree / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)


def make_ext(tree: Path, image: Path, size: int, *options: str, start: int = 0) -> None:
    """Make an ext filesystem with what is in `tree`, `start` bytes into the image."""
    if not image.exists():
        image.touch()
    if image.stat().st_size < start + size:
        os.truncate(image, start + size)
    extended = [f"offset={start}"] if start else []
    command = [
        "/usr/sbin/mke2fs",
        "-q",
        "-F",
        "-d",
        str(tree),
        *options,
        "-E",
        ",".join([*extended, "nodiscard,root_owner=0:0"]),
        str(image),
        f"{size // KIB}k",
    ]
    subprocess.run(command, check=True, capture_output=True)


def debugfs(image: Path, *request: str) -> str:
    """Return what debugfs answers."""
    return subprocess.run(["/usr/sbin/debugfs", "-R", " ".join(request), str(image)], check=True, capture_output=True, text=True).stdout


def partitioned(image: Path, label: str, script: str, size: int) -> None:
    """Make a partition table with sfdisk, which is the oracle of what is in it."""
    image.touch()
    os.truncate(image, size)
    subprocess.run(["/usr/sbin/sfdisk", "--quiet", "--label", label, str(image)], input=script, text=True, check=True, capture_output=True)


GUEST_SIZE = 48 * MIB
GUEST_ROOT = MIB

GRUB_CFG = b"""set default="0"
menuentry 'Linux' {
\tlinux\t/boot/vmlinuz-6.1.0-9-amd64 root=/dev/vda1 ro
\tinitrd\t/boot/initrd.img-6.1.0-9-amd64
}
menuentry 'old' {
\tlinux\t/boot/vmlinuz-5.10.0-1-amd64 root=/dev/vda1 ro
}
"""


def guest_files() -> dict[str, bytes | str]:
    """Return the files of a small guest: some that a boot reads, and some that none does."""

    def content(name: str, size: int) -> bytes:
        return (name.encode() * (size // len(name) + 1))[:size]

    files: dict[str, bytes | str] = {
        "/boot/grub/grub.cfg": GRUB_CFG,
        "/boot/vmlinuz-6.1.0-9-amd64": content("kernel", 3 * MIB),
        "/boot/initrd.img-6.1.0-9-amd64": content("initrd", 2 * MIB),
        "/boot/vmlinuz-5.10.0-1-amd64": content("old kernel", 3 * MIB),
        "/usr/lib/systemd/systemd": content("systemd", 300 * KIB),
        "/sbin": "usr/sbin",
        "/lib": "usr/lib",
        "/usr/sbin/init": "../lib/systemd/systemd",
        "/usr/lib/systemd/system/web.service": b"[Service]\nExecStartPre=-/bin/false\nExecStart=!/opt/web/server --port 80\n",
        "/etc/systemd/system/multi-user.target.wants/web.service": "/lib/systemd/system/web.service",
        "/opt/web/server": b"#!/usr/bin/python3 -s\n" + content("server", 200 * KIB),
        "/usr/bin/python3": "python3.11",
        "/usr/bin/python3.11": content("python", 1 * MIB),
        "/etc/fstab": b"/dev/vda1 / ext4 defaults 0 1\n",
        "/opt/never/read": content("never", 8 * MIB),
    }
    files |= {f"/usr/lib/systemd/system/unit{number}.service": b"[Unit]\n" for number in range(100)}
    return files


def make_guest(directory: Path) -> bytes:
    """Return the bytes of a small guest's disk: MBR and ext4."""
    tree, image = directory / "tree", directory / "guest.raw"
    plant(tree, guest_files())
    partitioned(image, "dos", f"start={GUEST_ROOT // 512}, type=83, bootable\n", GUEST_SIZE)
    make_ext(tree, image, GUEST_SIZE - GUEST_ROOT, "-t", "ext4", start=GUEST_ROOT)
    return image.read_bytes()

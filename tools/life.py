"""This module is the whole life of an instance: made, run, written to, snapshotted while it runs, made anew from the snapshot, and deleted."""

import concurrent.futures
import contextlib
import dataclasses
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from imagefs.holes import data_ranges
from imagefs.units import MIB
from tools.boot import REPORT
from tools.guests import Runner, Running
from tools.hands import Hands, Place, snapshot_state
from tools.node import Failed

FLAVOR: Final = "demo"
SETTINGS: Final = f'[flavors."{FLAVOR}"]\nvcpus = 1\nram = 512\ndisk = 3\nephemeral = 1\n'
"""What a configuration needs; sizes in MiB and GiB."""
SNAPSHOT_TIMEOUT: Final = 300.0
"""Seconds."""
_TICKS: Final = 3
"""How often the guest has written, and heard that it is on the disk, before the snapshot is asked for."""

_COMMON: Final = r"""
set -eu
say() { printf '\nIMAGEFS-GUEST: %s\n' "$*"; }
mkdir -p /mnt/ephemeral /mnt/volume
mount "$(blkid -L ephemeral0)" /mnt/ephemeral
"""
FIRST: Final = r"""
mke2fs -q -t ext4 -L volume0 /dev/vdc
mount /dev/vdc /mnt/volume
write() {
    for place in /root /mnt/ephemeral /mnt/volume; do echo "$token $1" >"$place/$1"; done
    sync
}
tick() {
    number=0
    while :; do
        number=$((number + 1))
        echo "$number" >>/root/ticks
        sync
        say "tick $number"
    done
}
write before
if [ "$agent" = yes ]; then until pidof qemu-ga >/dev/null; do sleep 1; done; fi
say "wrote before the snapshot"
tick &
ticking=$!
while read -r word; do
    case $word in
        after) write after && say "wrote after the snapshot" ;;
        end) break ;;
    esac
done
kill "$ticking"
umount /mnt/ephemeral /mnt/volume
"""
"""Run in the first guest: it writes to all its disks, goes on writing to vda, and does what it is told on its console."""
AGAIN: Final = r"""
content() { if [ -e "$1" ]; then cat "$1"; else echo nothing; fi; }
mount /dev/vdc /mnt/volume
ticks=0
while read -r number && [ "$number" = $((ticks + 1)) ]; do ticks=$number; done </root/ticks
for place in /root /mnt/ephemeral /mnt/volume; do
    say "$place has $(content "$place/before"), $(content "$place/after")"
done
say "ticks $ticks, errors $(dmesg | grep -c 'EXT4-fs error' || :)"
umount /mnt/ephemeral /mnt/volume
"""
"""Run in the guest that was made of the snapshot: it tells what it finds."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of guest: the firmware, the properties of its image, how it sees its config drive, and whether it has an agent."""

    firmware: str
    properties: tuple[str, ...]
    config_drive: str
    has_agent: bool

    @property
    def image(self) -> str:
        """The name of its image."""
        return f"debian-{self.firmware}"


UEFI: Final = Kind("uefi", ("hw_firmware_type=uefi", "hw_machine_type=q35", "hw_disk_bus=virtio"), "disk", has_agent=False)
BIOS: Final = Kind(
    "bios",
    ("hw_machine_type=pc", "hw_disk_bus=virtio", "hw_cdrom_bus=scsi", "hw_scsi_model=virtio-scsi", "hw_qemu_guest_agent=yes"),
    "cdrom",
    has_agent=True,
)


@dataclasses.dataclass(frozen=True)
class Life:
    """One life: what kind of guest, by whose hands, run how. `show` gets the lines of consoles."""

    place: Place
    kind: Kind
    hands: Hands
    runner: Runner
    show: Callable[[str], None] = lambda line: None
    token: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    """A word that is nowhere else."""

    @property
    def name(self) -> str:
        """The name of the instance, and the beginning of all other names."""
        return f"{self.kind.firmware}-{self.runner.name}"

    def live(self) -> str:
        """Go through it all, and return it in a sentence. Nothing is left but the image it began with. Raises Failed."""
        again, volume, image = f"{self.name}-again", f"{self.name}-data", f"{self.name}-snapshot"
        self.hands.make_volume(volume, "128M")
        self.hands.grow_volume(volume, "256M")
        self._make(self.name, self.kind.image, FIRST)
        self.hands.attach(self.name, volume)
        with self.runner.run(self.name, self._agent(), self._show_console) as guest:
            ticks = self._write_and_snapshot(guest, image)
        self.hands.delete_instance(self.name)
        self._make(again, image, AGAIN)
        self.hands.attach(again, volume)
        with self.runner.run(again, self._agent(), self._show_console) as guest:
            kept = self._read_back(guest, ticks)
        self.hands.detach(again, volume)
        self.hands.delete_instance(again)
        self._read_volume(volume)
        self.hands.delete_volume(volume)
        self.place.command("image", "delete", image)
        return f"{self.name}: the guest wrote on during its snapshot, which has {kept} of its writes and none after"

    def _make(self, name: str, image: str, script: str) -> None:
        agent = "yes" if self._agent() is not None else "no"
        user_data = f"#!/bin/sh\ntoken={self.token} agent={agent}{_COMMON}{script}"
        choices = {"flavor": FLAVOR, "ephemeral_format": "ext4", "user_data": user_data, "config_drive": self.kind.config_drive}
        self.hands.make_instance(name, image, choices)
        found = sorted(path.name for path in self.place.instance(name).iterdir())
        expected = [*(["nvram.fd"] if self.kind.firmware == "uefi" else []), "vda", "vdb", "vdz"]
        if found != expected:
            raise Failed(f"instance {name} should have {expected}, but has {found}")

    def _write_and_snapshot(self, guest: Running, image: str) -> int:
        """Return how many writes were on the disk when the snapshot was asked for."""
        self._expect_boot(guest, 1)
        guest.console.wait(re.compile("IMAGEFS-GUEST: wrote before the snapshot"))
        guest.console.wait(re.compile(f"IMAGEFS-GUEST: tick {_TICKS}$"))
        image_id = self.hands.snapshot(self.name, image, self._agent())
        guest.console.say("after")
        guest.console.wait(re.compile("IMAGEFS-GUEST: wrote after the snapshot"))
        self._wait_for_image(image_id)
        guest.stop()
        return _TICKS

    def _wait_for_image(self, image_id: str) -> None:
        deadline = time.monotonic() + SNAPSHOT_TIMEOUT
        while (state := snapshot_state(self.place, self.name))["status"] in ("queued", "saving"):
            if time.monotonic() > deadline:
                raise Failed(f"the snapshot of {self.name} was not stored within {SNAPSHOT_TIMEOUT:.0f} s: {state}")
            time.sleep(0.2)
        if (state["id"], state["status"]) != (image_id, "active"):
            raise Failed(f"the snapshot of {self.name} was not stored: {state}")
        directory, snapshot = self.place.instance(self.name), self.place.mountpoint / "images" / image_id
        pairs = [("image_type", b"snapshot"), *((key, os.getxattr(directory, f"user.{own}")) for key, own in _SNAPSHOT_ATTRIBUTES.items())]
        for key, expected in pairs:
            if (found := os.getxattr(snapshot, f"user.{key}")) != expected:
                raise Failed(f"the snapshot of {self.name} has the {key} {found!r}, and not {expected!r}")

    def _read_back(self, guest: Running, ticks: int) -> int:
        """Return how many writes are in the snapshot; raises Failed unless it has all that were acknowledged before, and none after."""
        self._expect_boot(guest, 2)
        expected = {"/root": f"{self.token} before, nothing", "/mnt/ephemeral": "nothing, nothing"}
        expected["/mnt/volume"] = f"{self.token} before, {self.token} after"
        for place, content in expected.items():
            found = guest.console.wait(re.compile(f"IMAGEFS-GUEST: {place} has (.*)"))
            if found[1] != content:
                raise Failed(f"{self.name}: {place} of the guest that was made of the snapshot should have '{content}', but has '{found[1]}'")
        found = guest.console.wait(re.compile(r"IMAGEFS-GUEST: ticks (\d+), errors (\d+)"))
        if int(found[1]) < ticks or int(found[2]):
            raise Failed(f"{self.name}: the snapshot should have at least {ticks} ticks and no errors: {found[0]}")
        guest.finish()
        return int(found[1])

    def _expect_boot(self, guest: Running, number: int) -> None:
        found = guest.console.wait(REPORT)
        if (int(found["boot"]), int(found["lines"])) != (number, number):
            raise Failed(f"{self.name}: the guest should have found {number - 1} marker lines and written one more, but reports: {found[0]}")

    def _read_volume(self, name: str) -> None:
        """Raise Failed unless the volume's file system is whole and has what the guest wrote. A guest that was cut off left it in the journal."""
        path = str(self.place.mountpoint / "volumes" / name)
        self.place.plain("debugfs", "-w", "-R", "journal_run", path)
        self.place.plain("e2fsck", "-f", "-n", path)
        for word in ("before", "after"):
            if (content := self.place.plain("debugfs", "-R", f"cat /{word}", path)) != f"{self.token} {word}\n":
                raise Failed(f"the volume {name} should have '{self.token} {word}' in {word}, but has {content!r}")

    def _agent(self) -> Path | None:
        """Return where the agent's socket is; None if there is none, or libvirt has it."""
        return self.place.directory / f"{self.name}.agent" if self.kind.has_agent and self.runner.name == "qemu" else None

    def _show_console(self, line: str) -> None:
        if "IMAGEFS-GUEST: tick " not in line:  # there are many
            self.show(line)


_SNAPSHOT_ATTRIBUTES: Final = {"base_image_ref": "image_id", "instance_uuid": "instance_uuid"}
"""Properties of a snapshot's image, and the attributes of the instance that they come from."""


def import_image(place: Place, kind: Kind, file: Path) -> str:
    """Store a guest's image and return its id. Raises Failed."""
    properties = [word for value in (*kind.properties, "os_distro=debian") for word in ("--property", value)]
    words = ["image", "create", kind.image, "--file", str(file), "--public", "--min-ram", "256", *properties, "-f", "value", "-c", "id"]
    return place.command(*words).strip()


def live_together(lives: Sequence[Life]) -> list[str]:
    """Go through lives at the same time; return what each says. When one fails, or this is interrupted, all guests are ended. Raises Failed."""
    with concurrent.futures.ThreadPoolExecutor(len(lives)) as pool:
        futures = [pool.submit(life.live) for life in lives]
        try:
            done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            for life in lives:
                with contextlib.suppress(Failed):
                    life.runner.kill()
            raise
        return [future.result() for future in futures]


def prove_gone(state: Path, lives: Sequence[Life]) -> None:
    """Raise Failed unless nothing of the lives is in a state directory: no instance, no volume, nothing written after the snapshots."""
    left = [str(path) for name in ("instances", "volumes", "direct") if (state / name).is_dir() for path in (state / name).iterdir()]
    if left:
        raise Failed(f"the state directory still has {', '.join(left)}")
    words = [f"{life.token} after".encode() for life in lives]
    found = [str(path) for path in state.rglob("*") if path.is_file() and _has_any(path, words)]
    if found:
        raise Failed(f"the state directory still has what guests wrote: {', '.join(found)}")


def _has_any(path: Path, words: Sequence[bytes]) -> bool:
    """Tell whether one of the words is in a file, of whose holes nothing is read. A file that is being removed has none."""
    overlap = max(map(len, words)) - 1
    with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
        for start, stop in data_ranges(file.fileno(), 0, path.stat().st_size):
            for offset in range(start, stop, MIB):
                piece = os.pread(file.fileno(), min(stop - offset, MIB + overlap), offset)
                if any(word in piece for word in words):
                    return True
    return False

"""This module records what a guest reads of its disk while it boots, as a trace that tools/bench replays: offsets, lengths and order only.

`python -m tools.trace bios|uefi|server FILE` boots that guest of tools/guest-image once and writes FILE.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from tools.bare_loop import NAME, BareLoop
from tools.boot import boot
from tools.node import Failed, ended, guest_image, image_info, run

GUESTS: Final = {
    "bios": "a small Debian 12 that reports as soon as its root filesystem is writable, GRUB on a BIOS, ext4",
    "uefi": "the same on UEFI: GPT, an EFI system partition, ext4",
    "server": "a Debian 12 server with sshd, dbus, rsyslog and cron up to its login prompt, GRUB on a BIOS, ext4, 1.5 GB of content",
}
SECTOR: Final = 512
OVMF: Final = (Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd"))


class RecordingLoop(BareLoop):
    """The bare loop, which writes down each read that reaches it."""

    def __init__(self, descriptor: int, trace: Path) -> None:
        super().__init__(descriptor)
        self._trace = trace.open("w", encoding="ascii", buffering=1)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        body = await super().read(fh, off, size)
        if body:
            print(off, len(body), file=self._trace)
        return body


@contextlib.contextmanager
def recorded(disk: Path, mountpoint: Path, trace: Path) -> Iterator[Path]:
    """Hold the path under which `disk` is shown, reads being written to `trace`."""
    mountpoint.mkdir()
    with ended(subprocess.Popen([sys.executable, "-m", "tools.trace", "--serve", str(disk), str(mountpoint), str(trace)])) as loop:
        end = time.monotonic() + 30
        while not mountpoint.is_mount():
            if loop.poll() is not None or time.monotonic() > end:
                raise Failed("the recording loop did not mount; what it said is above")
            time.sleep(0.05)
        try:
            yield mountpoint / os.fsdecode(NAME)
        finally:
            subprocess.run(["umount", mountpoint], check=False)
            loop.wait(10)


def serve(disk: Path, mountpoint: Path, trace: Path) -> None:
    """Mount and serve until the mount is gone."""
    pyfuse3.init(RecordingLoop(os.open(disk, os.O_RDONLY), trace), str(mountpoint), {"fsname=recording-loop"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


def command_line(disk: Path, guest: str, place: Path) -> list[str]:
    """Return the command that boots a guest over the disk, which it does not change: writes go to an overlay.

    The overlay's clusters are as small as a guest's blocks, so that QEMU reads nothing but what the guest asks for.
    """
    overlay = place / "overlay.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", "-b", str(disk), "-F", "raw", str(overlay)])
    words = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024", "-nodefaults", "-display", "none"]
    words += ["-machine", "q35", "-serial", "stdio", "-device", "virtio-rng-pci", "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n"]
    words += ["-drive", f"file={overlay},format=qcow2,if=virtio,cache=none"]
    if guest == "uefi":
        variables = place / "nvram.fd"
        variables.write_bytes(OVMF[1].read_bytes())
        words += ["-drive", f"file={OVMF[0]},format=raw,if=pflash,readonly=on", "-drive", f"file={variables},format=raw,if=pflash"]
    return words


def record(guest: str, output: Path) -> None:
    """Boot a guest once and write its trace."""
    image = guest_image(guest)
    with tempfile.TemporaryDirectory(prefix="imagefs-trace-") as temporary:
        place = Path(temporary)
        disk = place / "disk.raw"
        run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(disk)])
        with recorded(disk, place / "mnt", place / "reads") as shown:
            booted = boot(command_line(shown, guest, place), place / "console")
        # QEMU itself reads a byte or two first, to find out what alignment direct reads need.
        reads = "".join(f"{line}\n" for line in (place / "reads").read_text().splitlines() if int(line.split()[1]) >= SECTOR)
    partial = output.with_suffix(".part")
    partial.write_text(f"# {guest}: {image_info(image)['virtual-size']}; {GUESTS[guest]}\n{reads}")
    partial.replace(output)
    print(f"{guest}: {booted.seconds:.1f} s, {reads.count(chr(10))} reads: {output}")


def main() -> int:
    """Record what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="tools.trace", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="be the recording loop: DISK MOUNTPOINT TRACE")
    parser.add_argument("words", nargs="+")
    wanted = parser.parse_args()
    if wanted.serve:
        serve(*(Path(word) for word in wanted.words))
        return 0
    try:
        record(wanted.words[0], Path(wanted.words[1]))
    except Failed as error:
        print(f"tools.trace: FAILED: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

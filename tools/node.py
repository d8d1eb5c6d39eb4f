"""This module is a compute node to try things on: an imagefs in a directory of its own, driven by the real command."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, AnyStr, Final

COMMAND_TIMEOUT: Final = 900.0
"""Seconds that one command may take: storing an image is the longest."""
UMOUNT_TIMEOUT: Final = 60.0
FUSE_CONTROL: Final = Path("/sys/fs/fuse/connections")


class Failed(Exception):
    """Something that should work did not; the message says what."""


class Node:
    """A configuration, a state directory and a mount point below `directory`; the mount is there between `mount` and `umount`."""

    def __init__(self, directory: Path, settings: str, environment: Mapping[str, str] | None = None, *, allow_other: bool = False) -> None:
        """`settings` is TOML that names the store and whatever else; `environment` is added to that of every command.

        With `allow_other` other users may use the mount too.
        """
        self.directory = directory
        self.mountpoint = directory / "mnt"
        self.config = directory / "imagefs.toml"
        self.pid: int | None = None
        self.environment = os.environ | dict(environment or {}) | {"NO_COLOR": "1"}
        self.mountpoint.mkdir(parents=True)
        self.config.write_text(
            f"{settings}\n[state]\ndir = {json.dumps(str(directory / 'state'))}\n"
            f"[mount]\nmountpoint = {json.dumps(str(self.mountpoint))}\nallow_other = {json.dumps(allow_other)}\n"
        )

    def imagefs(self, *words: str) -> str:
        """Run the command with this node's configuration and return what it printed. Raises Failed with what it said."""
        return run(self._command(*words), environment=self.environment)

    def create_image(self, name: str, file: Path, *options: str) -> str:
        """Store a file as an image and return its id."""
        return self.imagefs("image", "create", name, "--file", str(file), *options, "-f", "value", "-c", "id").strip()

    def mount(self) -> None:
        """Mount, and make sure that the mount is imagefs."""
        self.imagefs("mount", str(self.mountpoint))
        self.pid = self.daemon()

    def umount(self) -> None:
        """Unmount; the daemon has ended when this returns."""
        self.imagefs("umount", str(self.mountpoint))

    def daemon(self) -> int:
        """Return the pid of the process that serves the mount. Raises Failed if nobody does."""
        try:
            return int(os.getxattr(self.mountpoint, "user.imagefs.pid"))
        except OSError as error:
            log = self.directory / "state" / "imagefs.log"
            raise Failed(f"{self.mountpoint} is not a working imagefs mount: {error.strerror}; see {log}") from error

    def statistics(self) -> dict[str, float]:
        """Return the metrics of .imagefs/stats by name, without the `imagefs_` before and the `_total` after it."""
        text = (self.mountpoint / ".imagefs" / "stats").read_text()
        rows = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
        return {row[0].removeprefix("imagefs_").removesuffix("_total"): float(row[1]) for row in rows}

    def take_down(self) -> None:
        """Leave nothing mounted and no daemon running, whatever happened before: politely first, then by force.

        It never raises, and never touches the mount itself: a daemon that hangs must not make us hang.
        """
        if self._connection() is None:
            return
        with contextlib.suppress(Failed):
            run(self._command("umount", str(self.mountpoint)), environment=self.environment, timeout=UMOUNT_TIMEOUT)
            return
        connection = self._connection()
        if connection is not None:
            subprocess.run(["mount", "-t", "fusectl", "none", FUSE_CONTROL], capture_output=True, check=False)
            with contextlib.suppress(OSError):
                (FUSE_CONTROL / connection / "abort").write_text("1")
        subprocess.run(["umount", "--lazy", self.mountpoint], capture_output=True, check=False)
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _command(self, *words: str) -> list[str]:
        return [str(Path(sys.executable).with_name("imagefs")), "-c", str(self.config), *words]

    def _connection(self) -> str | None:
        """Return the number of the mount's FUSE connection, which is its device's minor number; None if nothing is mounted."""
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[4] == str(self.mountpoint):
                return fields[2].partition(":")[2]
        return None


def run(command: list[str], *, environment: Mapping[str, str] | None = None, timeout: float = COMMAND_TIMEOUT) -> str:
    """Run a command and return its standard output. Raises Failed with the command and what it said."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, env=environment, timeout=timeout
        )
    except FileNotFoundError:
        raise Failed(f"{command[0]} is not installed: run tools/setup") from None
    except subprocess.TimeoutExpired:
        raise Failed(f"'{' '.join(command)}' did not end within {timeout:.0f} s") from None
    if done.returncode != 0:
        raise Failed(f"'{' '.join(command)}' ended with status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def guest_image(firmware: str = "bios") -> Path:
    """Return the path of the demo's guest image for a firmware, bios or uefi, a compressed qcow2; makes it if it is not in the cache yet."""
    with subprocess.Popen([Path(__file__).with_name("guest-image"), firmware], stdout=subprocess.PIPE, text=True) as making:
        printed, _ = making.communicate()
    if making.returncode != 0:
        raise Failed("the guest image could not be made; its messages are above")
    return Path(printed.strip())


def image_info(path: Path) -> dict[str, Any]:
    """Return what qemu-img says of a qcow2 file."""
    info: dict[str, Any] = json.loads(run(["qemu-img", "info", "-f", "qcow2", "--output=json", str(path)]))
    return info


@contextlib.contextmanager
def ended(process: "subprocess.Popen[AnyStr]") -> Iterator["subprocess.Popen[AnyStr]"]:
    """Hold a process, and end it when the block ends if it has not ended by itself."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()

"""This module is what those have in common that tools/bench compares: what they are to serve, and how they are started and ended."""

import contextlib
import dataclasses
import functools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tools.node import Failed

START_TIMEOUT: Final = 30.0
END_TIMEOUT: Final = 20.0


class Unavailable(Exception):
    """A peer cannot be run here; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What a peer is to serve: an image in a bucket, reached over a link; `directory` is new, and all that the peer keeps goes into it."""

    directory: Path
    endpoint_url: str
    environment: Mapping[str, str]
    """The keys, as the AWS tools want them."""
    bucket: str
    prefix: str
    image_id: str
    form: str
    """Of the stored object: raw or qcow2."""
    size: int
    """Bytes of the disk."""
    local: Path
    """The disk as a raw file on this host, for those that need no store."""
    round_directory: Path
    """For what one peer leaves to a later one in the same round: a node of imagefs to itself, restarted."""
    has_profile: Callable[[], bool]
    """Tells whether the store has a boot profile of the image."""

    @property
    def key(self) -> str:
        """Return the object's key in the bucket."""
        return f"{self.prefix}/{self.image_id}/data"

    @property
    def url(self) -> str:
        """Return where anybody may read the object."""
        return f"{self.endpoint_url}/{self.bucket}/{self.key}"


Want = Callable[[], Path]
"""Makes the disk of an instance and returns its path, to be read as a raw disk: from here on an instance waits."""


class Peer:
    """One way for an instance to get at the disk of an image. This one is the base of all, and none itself."""

    name: str
    is_own: bool = False
    """Whether it is imagefs."""
    copies: bool = False
    """Whether it copies all of the image before the instance starts."""
    fetches: bool = True
    """Whether it needs the store at all."""
    forms: tuple[str, ...] = ("raw", "qcow2")
    """Of objects that it can serve."""
    needs: tuple[str, ...] = ()
    """Programs."""

    def ready(self, task: Task, cleanup: ExitStack) -> Want:
        """Do what a node has done before any instance is wanted, such as mounting a bucket. What is started ends with `cleanup`.

        Raises Failed and Unavailable.
        """
        raise Unavailable(f"{self.name} serves nothing")

    def settle(self, task: Task) -> None:
        """Wait for what goes on after the reads and matters to a later peer; no time or byte of it counts."""

    def leave(self, task: Task) -> None:
        """Keep what a later peer of the same round needs; everything of this one has ended, and its directory goes."""


def check_programs(peer: Peer) -> None:
    """Raise Unavailable if a program is missing."""
    for name in peer.needs:
        program(name)


@functools.cache
def program(name: str) -> str:
    """Return a program's path: of this Python's environment, or of the system. Raises Unavailable."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not installed; tools/setup bench installs it where it is to be had")
    return found


def child(cleanup: ExitStack, words: list[str], log: Path, environment: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start a program that runs until `cleanup`; what it says goes to `log`."""
    with log.open("ab") as file:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True)
    cleanup.callback(_end, process)
    return process


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return when what a child is to do is done. Raises Failed with the end of its log if it ends before, or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            state = "did not start" if process.poll() is None else f"ended with status {process.returncode}"
            raise Failed(f"{Path(str(process.args[0])).name} {state}: {log.read_text(errors='replace')[-500:].strip()}")  # type: ignore[index]
        time.sleep(0.005)


def mounted_child(cleanup: ExitStack, words: list[str], mountpoint: Path, log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Start a program and wait until something is mounted at `mountpoint`; it is unmounted, and the program ended, with `cleanup`."""
    process = child(cleanup, words, log, environment)
    cleanup.callback(_unmount, mountpoint)
    wait_until(lambda: is_mounted(mountpoint), process, log)


def is_mounted(path: Path) -> bool:
    """Tell whether something is mounted at a path, a file or a directory, without touching it."""
    wanted = str(path)
    return any(line.split()[4] == wanted for line in Path("/proc/self/mountinfo").read_text().splitlines())


def _unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT)
    if process.poll() is None:
        process.kill()
        process.wait()

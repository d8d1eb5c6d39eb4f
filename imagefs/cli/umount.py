"""This module is `imagefs umount`: it unmounts, and returns when the daemon has ended and so given up its state directory."""

import contextlib
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from imagefs.cli.invocation import PATH, Invocation, pass_invocation
from imagefs.cli.mount import absolute
from imagefs.cli.mountpoint import imagefs_mounts, read_attribute
from imagefs.errors import Busy, MountFailed, NotFound

PATIENCE: Final = 30.0
"""Seconds that a daemon may take to make everything written durable after its mount is gone."""
_PROCESSES: Final = Path("/proc")
_USERS_SHOWN: Final = 5


@click.command("umount", short_help="Unmount imagefs.")
@click.argument("mountpoint", required=False, type=PATH)
@pass_invocation
def umount(invocation: Invocation, mountpoint: Path | None) -> None:
    """Unmount the imagefs at MOUNTPOINT, by default the configured one, and wait until its daemon has ended.

    A mount in use stays. Instances stay too: they are there again at the next mount.
    """
    target = mountpoint or invocation.mountpoint or invocation.config.mount.mountpoint
    if target is None:
        raise click.UsageError("no MOUNTPOINT is given, and [mount] mountpoint is not configured", click.get_current_context(silent=True))
    target = absolute(target)
    if target not in imagefs_mounts():
        raise NotFound(f"umount {target}: no imagefs is mounted there")
    os.chdir("/")  # our own working directory must not be what keeps the mount busy
    with _daemon(target) as process:
        _unmount(target)
        if process is not None and not _ended(process):
            raise MountFailed(f"umount {target}: it is unmounted, but its daemon still writes after {PATIENCE:.0f} s: wait before mounting again")


@contextlib.contextmanager
def _daemon(mountpoint: Path) -> Iterator[int | None]:
    """Hold a descriptor of the daemon's process, which no other process can take the place of; None if it is gone."""
    process = None
    with contextlib.suppress(OSError, ValueError):
        process = os.pidfd_open(int(read_attribute(mountpoint, "imagefs.pid") or ""))
    try:
        yield process
    finally:
        if process is not None:
            os.close(process)


def _ended(process: int) -> bool:
    """Wait for a process to end, PATIENCE at most."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(PATIENCE * 1000))


def _unmount(mountpoint: Path) -> None:
    """Unmount. Raises Busy, saying who uses it, and MountFailed."""
    environment = {**os.environ, "LC_ALL": "C"}
    command = ["umount", str(mountpoint)] if os.geteuid() == 0 else ["fusermount3", "-u", "--", str(mountpoint)]
    try:
        child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, env=environment)
    except FileNotFoundError:
        raise MountFailed(f"umount {mountpoint}: {command[0]} is not installed: install fuse3") from None
    if child.returncode == 0:
        return
    reason = (child.stderr.strip().splitlines() or [f"{command[0]} ended with status {child.returncode}"])[0]
    if "busy" not in reason:
        raise MountFailed(f"umount {mountpoint}: {reason}")
    users = find_users(mountpoint)
    by = f" by {', '.join(users[:_USERS_SHOWN])}{' and others' if len(users) > _USERS_SHOWN else ''}" if users else ""
    raise Busy(f"umount {mountpoint}: it is in use{by}: stop the guests, and leave the directory, first")


def find_users(mountpoint: Path) -> list[str]:
    """Return the processes that have a file open or a directory in use below `mountpoint`, as far as we may know, as "name (pid N)".

    Links of /proc are read and never followed: nothing is asked of the mount.
    """
    users = []
    for process in sorted(path for path in _PROCESSES.iterdir() if path.name.isdigit()):
        if any(link == str(mountpoint) or link.startswith(f"{mountpoint}/") for link in _links(process)):
            name = ""
            with contextlib.suppress(OSError):
                name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
            users.append(f"{name or 'a process'} (pid {process.name})")
    return users


def _links(process: Path) -> Iterator[str]:
    descriptors: list[Path] = []
    with contextlib.suppress(OSError):
        descriptors = list((process / "fd").iterdir())
    for path in (process / "cwd", process / "root", process / "exe", *descriptors):
        with contextlib.suppress(OSError):
            yield str(path.readlink())

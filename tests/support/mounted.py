"""This module mounts imagefs for tests by the real command, in a process of its own, and takes it down whatever happened."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

IMAGEFS = [sys.executable, "-m", "imagefs.cli.main"]


@dataclasses.dataclass
class Mounted:
    """A mount of imagefs: where it is, and the process that serves it."""

    mountpoint: Path
    config: Path
    state: Path
    process: subprocess.Popen[bytes]
    log: Path

    def alive(self) -> bool:
        """Tell whether the mount point really shows imagefs, served by the process that was started."""
        return self.process.poll() is None and filesystem_type(self.mountpoint) == "fuseblk" and self.pid() == self.process.pid

    def pid(self) -> int:
        """Return the pid of whoever answers."""
        return int(os.getxattr(self.mountpoint, "user.imagefs.pid"))

    def imagefs(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command with this mount's configuration."""
        return run_imagefs(self.config, *arguments, check=check)

    def stats(self) -> dict[str, float]:
        """Return the counters of .imagefs/stats by name, without the `imagefs_` and `_total` around them."""
        text = (self.mountpoint / ".imagefs" / "stats").read_text()
        values = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
        return {name.removeprefix("imagefs_").removesuffix("_total"): float(value) for name, value in values}


def filesystem_type(path: Path) -> str:
    """Return what stat(1) calls the filesystem at `path`."""
    return subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def run_imagefs(config: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command; with `check`, a failure raises with what it printed."""
    done = subprocess.run([*IMAGEFS, "-c", str(config), *arguments], capture_output=True, text=True, timeout=300, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"imagefs {' '.join(arguments)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def write_config(directory: Path, *, store: str | None = None, extra: str = "", cache: str = "2GiB") -> Path:
    """Write a configuration whose store, state and mount point lie in `directory`."""
    (directory / "store").mkdir(exist_ok=True)
    (directory / "mnt").mkdir(exist_ok=True)
    config = directory / "imagefs.toml"
    config.write_text(
        f'[store]\nurl = "{store or (directory / "store").as_uri()}"\n'
        f'[state]\ndir = "{directory / "state"}"\n'
        f'[cache]\nsize = "{cache}"\n'
        f'[mount]\nmountpoint = "{directory / "mnt"}"\n{extra}'
    )
    return config


@contextlib.contextmanager
def mounted(directory: Path, config: Path, *, environment: dict[str, str] | None = None) -> Iterator[Mounted]:
    """Mount in the foreground of a child; the mount is proved to be imagefs before the test has it and after."""
    mount = start_mount(directory, config, environment=environment)
    try:
        yield mount
        assert mount.alive(), f"the mount was lost:\n{mount.log.read_text()}"
    finally:
        take_down(mount)
    complaints = [line for line in mount.log.read_text().splitlines() if " ERROR " in line or "Traceback" in line]
    assert not complaints, "\n".join(complaints)


def start_mount(directory: Path, config: Path, *, environment: dict[str, str] | None = None) -> Mounted:
    """Mount in the foreground of a child and return when the mount answers; `take_down` is for the caller to call."""
    mountpoint = directory / "mnt"
    log = directory / "daemon.log"
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [*IMAGEFS, "-c", str(config), "mount", "--foreground", str(mountpoint)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=os.environ | (environment or {}),
        )
    mount = Mounted(mountpoint, config, directory / "state", process, log)
    try:
        _wait_until_mounted(mount)
    except BaseException:
        take_down(mount)
        raise
    return mount


def _wait_until_mounted(mount: Mounted) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if mount.process.poll() is not None:
            raise AssertionError(f"imagefs ended with {mount.process.returncode} before it was mounted:\n{mount.log.read_text()}")
        with contextlib.suppress(OSError):
            if mount.pid() == mount.process.pid:
                return
        time.sleep(0.05)
    raise AssertionError(f"imagefs did not mount within a minute:\n{mount.log.read_text()}")


def take_down(mount: Mounted) -> None:
    """Unmount, lazily if the daemon is gone; if the daemon does not end, abort the connection so that nobody hangs, and end the process."""
    lazily = ["-l"] if mount.process.poll() is not None else []
    subprocess.run(["umount", *lazily, mount.mountpoint], capture_output=True, check=False, timeout=60)
    try:
        mount.process.wait(20)
    except subprocess.TimeoutExpired:
        _abort(mount.mountpoint)
        subprocess.run(["umount", "-l", mount.mountpoint], capture_output=True, check=False, timeout=60)
        mount.process.kill()
        mount.process.wait()


def _abort(mountpoint: Path) -> None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(mountpoint):
            minor = fields[2].split(":")[1]
            connections = Path("/sys/fs/fuse/connections")
            subprocess.run(["mount", "-t", "fusectl", "none", connections], capture_output=True, check=False)
            with contextlib.suppress(OSError):
                (connections / minor / "abort").write_text("1")

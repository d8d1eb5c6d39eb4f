"""This module is `imagefs mount`: it starts a daemon in the background, or is one, and returns when the mount is usable.

The daemon in the background is a new process that runs `imagefs mount --foreground`. It says `ok` on a pipe when the mount
is usable, and closes it by ending if that never happens; until then its standard error leads to us, from then on to the log.
"""

import contextlib
import errno
import importlib
import logging
import os
import selectors
import subprocess
import sys
from pathlib import Path
from typing import IO, Final, cast

import click

from imagefs import log
from imagefs.cli.errors import print_line
from imagefs.cli.invocation import PATH, Invocation, pass_invocation
from imagefs.cli.mount_options import parse_options
from imagefs.cli.mountpoint import imagefs_mounts
from imagefs.config import Config
from imagefs.errors import Busy, InvalidInput, MountFailed, NotEmpty, NotFound

logger = logging.getLogger(__name__)

READY: Final = b"ok"
LOG_NAME: Final = "imagefs.log"
OUTPUT_LIMIT: Final = 1024 * 1024
"""Bytes kept of what a daemon says before it is ready."""
PATIENCE: Final = 10.0
"""Seconds that a daemon is given to end."""
_FUSE: Final = Path("/dev/fuse")
_FUSE_SETTINGS: Final = Path("/etc/fuse.conf")


@click.command("mount", short_help="Mount imagefs at a directory.")
@click.argument("mountpoint", required=False, type=PATH)
@click.option("--foreground", is_flag=True, help="Stay in the foreground until the mount is gone, and log to standard error.")
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="Options, separated by commas: KEY=VALUE, allow_other, config=FILE.")
@click.option("-c", "--config", "config_path", metavar="FILE", type=PATH, help="The same as imagefs -c FILE.")
@click.option("--ready-descriptor", type=int, hidden=True)
@pass_invocation
def mount(
    invocation: Invocation,
    /,
    *,
    mountpoint: Path | None,
    foreground: bool,
    options: tuple[str, ...],
    config_path: Path | None,
    ready_descriptor: int | None,
) -> None:
    """Mount imagefs at MOUNTPOINT, an empty directory; by default at the one that the configuration names.

    Returns when the mount is usable. The daemon then goes on in the background, and logs to imagefs.log in the state directory.
    """
    parsed = parse_options(options)
    invocation.config_path = config_path or parsed.config_path or invocation.config_path
    invocation.overrides = parsed.overrides
    config = invocation.config
    target = mountpoint or invocation.mountpoint or config.mount.mountpoint
    if target is None:
        raise click.UsageError("no MOUNTPOINT is given, and [mount] mountpoint is not configured", click.get_current_context(silent=True))
    target = check_mountpoint(target)
    check_fuse(config)
    if foreground:
        serve(config, target, ready_descriptor)
    else:
        start(daemon_command(target, options, invocation.config_path), target)


def check_mountpoint(path: Path) -> Path:
    """Return the absolute path of a directory that can be mounted at. Raises NotFound, InvalidInput, NotEmpty, Busy, MountFailed."""
    path = absolute(path)
    what = f"mount {path}"
    if path in imagefs_mounts():
        try:
            path.stat()
        except OSError:
            raise MountFailed(f"{what}: the daemon of an earlier mount is gone: run imagefs umount {path} first") from None
        raise Busy(f"{what}: an imagefs is mounted there already")
    try:
        if not path.is_dir():
            kind = InvalidInput if path.exists() else NotFound
            raise kind(f"{what}: {'it is not a directory' if path.exists() else f'it does not exist: make it with mkdir {path}'}")
        if path.is_mount():
            raise Busy(f"{what}: another filesystem is mounted there: choose another directory")
        if any(path.iterdir()):
            raise NotEmpty(f"{what}: the directory is not empty, and its files would be hidden: choose another one")
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise MountFailed(f"{what}: the daemon of another mount there is gone: unmount it first") from error
        raise InvalidInput(f"{what}: {error.strerror}") from error
    return path


def absolute(path: Path) -> Path:
    """Return the absolute path without symbolic links before its last part: that one may lie in a mount whose daemon is gone."""
    path = Path(os.path.normpath(path.absolute()))
    return path if path == path.parent else Path(os.path.realpath(path.parent)) / path.name


def check_fuse(config: Config) -> None:
    """Raise MountFailed if this host cannot mount: what libfuse says of it is hard to read."""
    if not _FUSE.exists():
        raise MountFailed(f"mount: there is no {_FUSE}: load the kernel module with modprobe fuse, or give the container that device")
    if config.mount.allow_other and os.geteuid() != 0 and not _user_allow_other():
        raise MountFailed(f"mount: allow_other needs a line user_allow_other in {_FUSE_SETTINGS}, which root can add")


def _user_allow_other() -> bool:
    try:
        lines = _FUSE_SETTINGS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def daemon_command(mountpoint: Path, options: tuple[str, ...], config_path: Path | None) -> list[str]:
    """Return the command of the daemon without --ready-descriptor. -P: no module is taken from the directory we happen to be in."""
    command = [sys.executable, "-P", "-m", "imagefs.cli.main"]
    if config_path is not None:
        command += ["-c", str(config_path.absolute())]
    return [*command, "mount", "--foreground", *(f"-o{text}" for text in options), "--", str(mountpoint)]


def serve(config: Config, mountpoint: Path, ready_descriptor: int | None) -> None:
    """Be the daemon, until the mount is gone. Raises ImagefsError if the mount cannot be made."""
    log.set_up()
    # The daemon brings trio, FUSE and the store's client: no other command waits for them to be imported.
    daemon = importlib.import_module("imagefs.daemon")
    if ready_descriptor is None:
        daemon.serve(config, mountpoint, lambda: None)
        return
    os.set_inheritable(ready_descriptor, False)
    handlers = logging.getLogger().handlers
    for handler in handlers:
        handler.setLevel(logging.WARNING)  # until the mount is usable, all of this is for the user's eyes

    def ready() -> None:
        _redirect(config.state.dir / LOG_NAME)
        for handler in handlers:
            handler.setLevel(logging.NOTSET)
        logger.info("serving in the background mountpoint=%s pid=%d", mountpoint, os.getpid())
        with contextlib.suppress(OSError):  # nobody may be waiting any more
            os.write(ready_descriptor, READY)
            os.close(ready_descriptor)

    daemon.serve(config, mountpoint, ready)


def _redirect(log_path: Path) -> None:
    """Lead standard output and error to the log, or nowhere if it cannot be written."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(log_path, flags, 0o600)
    except OSError as error:
        print_line(f"note: the daemon's log {log_path} cannot be written: {error.strerror}")
        descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


def start(command: list[str], mountpoint: Path) -> None:
    """Start a daemon and return when its mount is usable. Raises MountFailed with what it said if it ends before that."""
    ready_read, ready_write = os.pipe()
    with os.fdopen(ready_read, "rb", buffering=0) as ready_pipe:
        try:
            at = command.index("--foreground") + 1
            command = [*command[:at], f"--ready-descriptor={ready_write}", *command[at:]]
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[ready_write],
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(ready_write)
        try:
            said, is_ready = _wait(child, ready_pipe.fileno())
        except BaseException:
            _end(child)
            raise
    lines = [line.removeprefix("imagefs: ") for line in said.decode(errors="replace").splitlines() if line.strip()]
    if not is_ready:
        status = child.wait()
        *before, last = lines or [f"mount {mountpoint}: the daemon ended with status {status} and said nothing: try --foreground"]
        _tell(before)
        raise MountFailed(last)
    _tell(lines)
    _check_usable(mountpoint, child)


def _tell(lines: list[str]) -> None:
    for line in lines:
        print_line(line)


def _wait(child: "subprocess.Popen[bytes]", ready_descriptor: int) -> tuple[bytes, bool]:
    """Return what the daemon wrote to standard error until it was ready or ended, and whether it was ready."""
    error_pipe = cast("IO[bytes]", child.stderr)
    said = bytearray()
    verdict: bytes | None = None
    with error_pipe, selectors.DefaultSelector() as selector:
        for descriptor in (ready_descriptor, error_pipe.fileno()):
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        while verdict is None:
            for key, _ in selector.select():
                body = os.read(key.fd, 65536)
                if key.fd == ready_descriptor:
                    verdict = body
                elif body:
                    said += body[: OUTPUT_LIMIT - len(said)]
                else:
                    selector.unregister(key.fd)
        if verdict != READY:
            child.wait()  # what it said last is in the pipe once it has ended
        _drain(error_pipe.fileno(), said)
    return bytes(said), verdict == READY


def _drain(descriptor: int, said: bytearray) -> None:
    with contextlib.suppress(BlockingIOError):
        while body := os.read(descriptor, 65536):
            said += body[: OUTPUT_LIMIT - len(said)]


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a daemon that is of no use: it may unmount first, but not for ever."""
    child.terminate()
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _check_usable(mountpoint: Path, child: "subprocess.Popen[bytes]") -> None:
    """Raise MountFailed unless the mount answers."""
    try:
        os.statvfs(mountpoint)
        usable = mountpoint.is_mount()
    except OSError:
        usable = False
    if not usable:
        _end(child)
        raise MountFailed(f"mount {mountpoint}: the daemon was ready, but the mount does not answer: see {LOG_NAME} in the state directory")
    child.returncode = 0  # it lives on; without this the interpreter would complain that nobody waits for it

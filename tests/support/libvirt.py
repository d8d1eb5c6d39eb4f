"""This module starts a libvirtd of its own: real, for QEMU, with dynamic ownership, and blind for whatever else libvirt does on this machine."""

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.node import Failed, run

START_TIMEOUT: Final = 120.0
"""Seconds until libvirtd answers; it probes every QEMU that is installed first."""
END_TIMEOUT: Final = 60.0
_DIRECTORIES: Final = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "run": "/run/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
_SETTINGS: Final = {
    "libvirtd.conf": ['auth_unix_rw = "none"', 'unix_sock_rw_perms = "0700"', "log_level = 3"],
    "qemu.conf": [
        "dynamic_ownership = 1",  # the default, and what tests are about
        "namespaces = []",  # needs nothing that a container may lack
        "cgroup_controllers = []",
        'security_driver = "none"',
        'stdio_handler = "file"',  # no virtlogd
    ],
}
# Bash is the first process of a PID namespace, so that whatever libvirtd started ends with it; it reaps, which libvirtd would not do for
# others' children. It ends with libvirtd, and when its standard input does: also if the test is killed.
# Mounts must not come out of the namespace. In a chroot that is no mount point nothing can be said of its root, which is shared or not.
# Other mounts of imagefs are given up: as long as a namespace has one, its daemon does not end, whoever unmounts it.
# /dev/kvm is covered: where it is there and does not work, probing it never returns.
_SCRIPT: Final = """
set -eu
exec 3<&0
shown=$1
shift
mount --make-rslave / 2>/dev/null || true
while [ $# -ge 2 ]; do
    mkdir -p "$2"
    mount --bind "$1" "$2"
    if grep -q " $2 .* shared:" /proc/self/mountinfo; then
        umount "$2"
        echo "$2 would be covered outside the namespace too: run this where / is a mount point" >&2
        exit 1
    fi
    shift 2
done
while read -r _ directory kind _; do
    [ "$kind" != fuse.imagefs ] || [ "$directory" = "$shown" ] || umount --lazy "$directory" || true
done < <(cat /proc/self/mounts)
[ ! -e /dev/kvm ] || mount --bind "$1" /dev/kvm
libvirtd --pid-file /run/libvirt/libvirtd.pid 3<&- &
read -r _ <&3 &
wait -n
"""


class Libvirt:
    """A libvirtd in namespaces of its own: of imagefs it sees one mount, which was there when it was started."""

    def __init__(self, directory: Path) -> None:
        """`directory` holds what lies in libvirt's directories otherwise: configuration, state, sockets and logs."""
        self.directory = directory
        self.uri = f"qemu:///system?socket={directory}/run/libvirt-sock"

    def virsh(self, *words: str) -> str:
        """Run a command of virsh and return what it printed. Raises Failed with what it said."""
        return run(["virsh", "--connect", self.uri, *words])

    def state(self, domain: str) -> str:
        """Return the state of a domain in virsh's words, such as `running` or `shut off`."""
        return self.virsh("domstate", domain).strip()

    def log(self) -> str:
        """Return what libvirtd said."""
        return (self.directory / "libvirtd.log").read_text(errors="replace")


@contextlib.contextmanager
def libvirt(mountpoint: Path) -> Iterator[Libvirt]:
    """Start a libvirtd and end it with all its guests; guests still running are ended as `virsh destroy` does, so that disks get back their owners.

    `mountpoint` is the imagefs that guests are to see: mount it first, and unmount it afterwards. Needs root. Raises Failed.
    """
    # Not below a test's directory: a socket's path has room for 107 bytes, and QEMU runs as a user that may not pass everywhere.
    directory = Path(tempfile.mkdtemp(prefix="imagefs-libvirt-"))
    try:
        directory.chmod(0o711)
        process = _start(directory, mountpoint)
        try:
            daemon = Libvirt(directory)
            _wait_until_ready(daemon, process)
            yield daemon
            _destroy_all(daemon)
        finally:
            _end(process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _start(directory: Path, mountpoint: Path) -> "subprocess.Popen[bytes]":
    words = [str(mountpoint)]
    for name, usual in _DIRECTORIES.items():
        (directory / name).mkdir()
        words += [str(directory / name), usual]
    for name, lines in _SETTINGS.items():
        (directory / "etc" / name).write_text("".join(f"{line}\n" for line in lines))
    cover = directory / "cover"
    cover.touch(mode=0)
    cover.chmod(0)
    unshare = ["unshare", "--mount", "--propagation", "unchanged", "--net", "--pid", "--fork", "--mount-proc"]
    with (directory / "libvirtd.log").open("wb") as log:
        return subprocess.Popen([*unshare, "bash", "-c", _SCRIPT, "libvirt", *words, str(cover)], stdin=subprocess.PIPE, stdout=log, stderr=log)


def _wait_until_ready(daemon: Libvirt, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            daemon.virsh("domcapabilities", "--virttype", "qemu")
        except Failed as error:
            if process.poll() is not None:
                raise Failed(f"libvirtd ended with status {process.returncode}: {daemon.log()}") from error
            if time.monotonic() > deadline:
                raise Failed(f"libvirtd does not answer: {error}; it said: {daemon.log()}") from error
        else:
            return
        time.sleep(0.1)


def _destroy_all(daemon: Libvirt) -> None:
    for domain in daemon.virsh("list", "--name").split():
        daemon.virsh("destroy", domain)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the namespace's first process, which the kernel lets end only when all others in it have."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(END_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

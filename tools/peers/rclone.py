"""This module is rclone: a mount of the bucket with rclone's full cache of files."""

from contextlib import ExitStack
from pathlib import Path

from tools.peers.peer import Peer, Task, Want, mounted_child, program
from tools.peers.storage_daemon import exported, file_node

# Its documentation names these for S3: as many streams as that, of chunks as large as that, and no growing chunks.
TUNED = ("--vfs-read-chunk-streams", "16", "--vfs-read-chunk-size", "4M")


class Rclone(Peer):
    """A mount; the tuned one has what rclone's documentation says of S3."""

    needs: tuple[str, ...] = ("rclone", "fusermount3", "qemu-storage-daemon")

    def __init__(self, *, is_tuned: bool) -> None:
        self.name = "rclone, full cache, tuned for S3" if is_tuned else "rclone, full cache"
        self._options = TUNED if is_tuned else ()

    def ready(self, task: Task, cleanup: ExitStack) -> Want:
        mountpoint = task.directory / "mnt"
        mountpoint.mkdir()
        words = [program("rclone"), "mount", f"bench:{task.bucket}/{task.prefix}/{task.image_id}", str(mountpoint)]
        words += ["--vfs-cache-mode", "full", "--cache-dir", str(task.directory / "cache"), "--read-only", "--config", "/dev/null", *self._options]
        remote = {"TYPE": "s3", "PROVIDER": "SeaweedFS", "ENV_AUTH": "true", "ENDPOINT": task.endpoint_url, "REGION": "us-east-1"}
        environment = dict(task.environment) | {f"RCLONE_CONFIG_BENCH_{key}": value for key, value in remote.items()}
        mounted_child(cleanup, words, mountpoint, task.directory / "rclone.log", environment)
        return lambda: as_disk(task, cleanup, mountpoint / "data")


def as_disk(task: Task, cleanup: ExitStack, file: Path) -> Path:
    """Return the path under which the object, a file of a mount, reads as a raw disk: a raw object's is its own."""
    return file if task.form == "raw" else exported(task, cleanup, file_node(file, task.form))

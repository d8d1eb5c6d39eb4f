"""This module is s3fs: a mount of the bucket with s3fs's cache of files."""

from contextlib import ExitStack

from tools.peers.peer import Peer, Task, Want, mounted_child, program
from tools.peers.rclone import as_disk


class S3fs(Peer):
    """A mount with use_cache."""

    name = "s3fs, use_cache"
    needs: tuple[str, ...] = ("s3fs", "fusermount3", "qemu-storage-daemon")

    def ready(self, task: Task, cleanup: ExitStack) -> Want:
        mountpoint, cache = task.directory / "mnt", task.directory / "cache"
        mountpoint.mkdir()
        cache.mkdir()
        options = f"url={task.endpoint_url},endpoint=us-east-1,use_path_request_style,use_cache={cache},ro,tmpdir={task.directory}"
        words = [program("s3fs"), f"{task.bucket}:/{task.prefix}/{task.image_id}", str(mountpoint), "-f", "-o", options]
        mounted_child(cleanup, words, mountpoint, task.directory / "s3fs.log", task.environment)
        return lambda: as_disk(task, cleanup, mountpoint / "data")

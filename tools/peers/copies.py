"""This module is what OpenStack Nova does by default: the whole image is copied to the node before the guest starts."""

import sys
from contextlib import ExitStack
from pathlib import Path

from tools.node import run
from tools.peers.peer import Peer, Task, Want, program
from tools.peers.storage_daemon import exported, file_node

PART = 8 * 1024 * 1024
STREAMS = 16
# boto3's own transfer, in parallel ranges: what a careful user would write.
_DOWNLOAD = (
    "import boto3, sys, boto3.s3.transfer as t; url, bucket, key, file, part, streams = sys.argv[1:];"
    "c = t.TransferConfig(multipart_chunksize=int(part), multipart_threshold=int(part), max_concurrency=int(streams));"
    "boto3.client('s3', endpoint_url=url).download_file(bucket, key, file, Config=c)"
)


def download(task: Task, target: Path) -> None:
    """Copy the object by ranged GETs in parallel. Raises Failed."""
    words = [sys.executable, "-c", _DOWNLOAD, task.endpoint_url, task.bucket, task.key, str(target), str(PART), str(STREAMS)]
    run(words, environment=task.environment)


class FullCopy(Peer):
    """Download, convert to raw, read the raw file."""

    name = "full copy, converted to raw (Nova)"
    copies = True
    needs: tuple[str, ...] = ("qemu-img",)

    def ready(self, task: Task, cleanup: ExitStack) -> Want:
        def want() -> Path:
            disk = task.directory / "disk.raw"
            if task.form == "raw":
                download(task, disk)
                return disk
            download(task, task.directory / "copy")
            run([program("qemu-img"), "convert", "-f", task.form, "-O", "raw", str(task.directory / "copy"), str(disk)])
            return disk

        return want


class CopyAndOverlay(Peer):
    """Download, and an overlay on the qcow2 file as it is."""

    name = "full copy, qcow2 overlay"
    copies = True
    forms: tuple[str, ...] = ("qcow2",)
    needs: tuple[str, ...] = ("qemu-img", "qemu-storage-daemon")

    def ready(self, task: Task, cleanup: ExitStack) -> Want:
        def want() -> Path:
            download(task, task.directory / "copy")
            return with_overlay(task, cleanup, task.directory / "copy")

        return want


def with_overlay(task: Task, cleanup: ExitStack, base: Path) -> Path:
    """Make an overlay on a local file and show it."""
    overlay = task.directory / "overlay.qcow2"
    run([program("qemu-img"), "create", "-q", "-f", "qcow2", "-u", "-b", str(base), "-F", task.form, str(overlay), str(task.size)])
    nodes = file_node(base, task.form)
    nodes.append({"driver": "file", "node-name": "overlay-file", "filename": str(overlay)})
    nodes.append({"driver": "qcow2", "node-name": "overlay", "file": "overlay-file", "backing": "format"})
    return exported(task, cleanup, nodes, writable=True)


class LocalFile(Peer):
    """The disk as a raw file on the node: what nothing that fetches can beat."""

    name = "local raw file"
    fetches = False

    def ready(self, task: Task, cleanup: ExitStack) -> Want:
        return lambda: task.local

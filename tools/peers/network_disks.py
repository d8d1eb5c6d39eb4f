"""This module is the peers that make a block device of an object behind HTTP: QEMU's own driver, and nbdkit."""

from contextlib import ExitStack
from pathlib import Path

from tools.node import run
from tools.peers.peer import Peer, Task, Want, child, program, wait_until
from tools.peers.storage_daemon import exported, over


class QemuCurl(Peer):
    """QEMU's driver for HTTP below a local qcow2 overlay. It cannot sign requests, so the object is one that anybody may read."""

    name = "QEMU's curl driver, qcow2 overlay"
    needs: tuple[str, ...] = ("qemu-img", "qemu-storage-daemon")

    def ready(self, task: Task, cleanup: ExitStack) -> Want:
        def want() -> Path:
            overlay = task.directory / "overlay.qcow2"
            run([program("qemu-img"), "create", "-q", "-f", "qcow2", str(overlay), str(task.size)])
            nodes = over({"driver": "http", "node-name": "http", "url": task.url, "read-only": True}, task.form)
            nodes.append({"driver": "file", "node-name": "overlay-file", "filename": str(overlay)})
            nodes.append({"driver": "qcow2", "node-name": "overlay", "file": "overlay-file", "backing": "format"})
            return exported(task, cleanup, nodes, writable=True)

        return want


class Nbdkit(Peer):
    """nbdkit's plugin for HTTP below its filters: readahead, a cache that keeps what was read in blocks of a size, and copy-on-write.

    The cache's own size of blocks, 64 KiB, fetches least; larger blocks make fewer requests of it, and so a faster boot.
    """

    needs: tuple[str, ...] = ("nbdkit", "qemu-storage-daemon")

    def __init__(self, block: str) -> None:
        self.name = f"nbdkit curl, readahead, cow, cache of {block}"
        self._block = block

    def ready(self, task: Task, cleanup: ExitStack) -> Want:
        def want() -> Path:
            socket, log = task.directory / "nbd.sock", task.directory / "nbdkit.log"
            words = [program("nbdkit"), "--foreground", "--exit-with-parent", "--unix", str(socket)]
            words += ["--filter=cow", "--filter=readahead", "--filter=cache", "curl", task.url]
            words += ["cache-on-read=true", f"cache-min-block-size={self._block}"]
            environment = dict(task.environment) | {"TMPDIR": str(task.directory)}
            wait_until(socket.exists, child(cleanup, words, log, environment), log)
            protocol = {"driver": "nbd", "node-name": "nbd", "server": {"type": "unix", "path": str(socket)}, "read-only": True}
            return exported(task, cleanup, over(protocol, task.form))

        return want

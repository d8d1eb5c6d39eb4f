"""This module is what tools/bench measures with: nodes with their stores, load, and peers."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final, cast

from tests.support.seaweed import Seaweed
from tools.link import Link
from tools.node import Failed, Node, ended, run

MIB: Final = 1024 * 1024
DELAY: Final = 0.030
"""Seconds to the first byte from the store, as within a region of a cloud."""
RATE: Final = 125_000_000.0
"""1 Gb/s in bytes."""
BUCKET: Final = "images"


def drop_caches() -> None:
    """Write back and forget what the host's page cache has, so that what is read next comes from disks. Raises Failed without the privilege."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
    except OSError as error:
        raise Failed(f"the page cache could not be dropped, and without that nothing is cold: {error.strerror}; run tools/bench as root") from error


@contextlib.contextmanager
def fronted(upstream: str, files: Mapping[str, Path]) -> Iterator[str]:
    """Hold the URL of a server that has these paths in files, and gets the rest from the one at `upstream`; see `tools.front`. Raises Failed."""
    words = [sys.executable, "-m", "tools.front", upstream, *(f"{path}={file}" for path, file in files.items())]
    with (
        ended(subprocess.Popen(words, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE)) as server,
        cast("IO[bytes]", server.stdin),
        cast("IO[bytes]", server.stdout) as said,
    ):
        if not (port := said.readline().strip()):
            raise Failed("the server of images' bytes did not start; what it said is above")
        yield f"http://127.0.0.1:{int(port)}"


@contextlib.contextmanager
def mounted(node: Node) -> Iterator[Node]:
    """Mount a node, and leave nothing mounted."""
    try:
        node.mount()
        yield node
        node.daemon()
    finally:
        node.take_down()


@contextlib.contextmanager
def s3_node(place: Path) -> Iterator[tuple[Node, Link]]:
    """Hold a mounted node whose store is an S3 server behind a link."""
    with contextlib.ExitStack() as cleanup:
        server = Seaweed.start(place / "seaweed")
        cleanup.callback(server.stop)
        server.create_bucket(BUCKET)
        link = cleanup.enter_context(Link(server.endpoint_url, delay=DELAY, rate=RATE))
        settings = f'[store]\nurl = "s3://{BUCKET}/bench"\n[store.s3]\nendpoint_url = "{link.endpoint_url}"'
        yield cleanup.enter_context(mounted(Node(place / "node", settings, server.environment()))), link


def new_instance(node: Node, image_id: str) -> Path:
    """Make an instance and return the path of its vda."""
    node.imagefs("instance", "create", "bench", "--image", image_id)
    return node.mountpoint / "instances" / "bench" / "vda"


def store_noise(node: Node, name: str, path: Path, size: int) -> str:
    """Write `size` bytes that do not compress to `path`, other ones each time; store them as a raw image and return its id."""
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(random.randbytes(MIB))
    return node.create_image(name, path, "--disk-format", "raw", "--public")


def fio(path: Path, *options: str) -> dict[str, dict[str, float]]:
    """Run fio on one file with direct 4 KiB I/O at depth 1 and return its job's results."""
    # fio would else begin by throwing the file out of the page cache, from which FUSE servers read.
    job_options = ("--ioengine=psync", "--direct=1", "--bs=4k", "--allow_file_create=0", "--invalidate=0")
    printed = run(["fio", "--name=bench", f"--filename={path}", *job_options, "--output-format=json", *options])
    job: dict[str, dict[str, float]] = json.loads(printed[printed.index("{") :])["jobs"][0]
    return job


def stream_all(paths: list[Path]) -> None:
    """Read files to their ends, all at once, each in a process of its own. Raises Failed."""
    with contextlib.ExitStack() as running:
        words = [["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"] for path in paths]
        children = [running.enter_context(ended(subprocess.Popen(command))) for command in words]
        if any(child.wait(600) != 0 for child in children):
            raise Failed("a reader of a cold image failed; what it said is above")


def peak_memory(pid: int) -> int:
    """Return the most bytes that were ever resident of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise Failed(f"the kernel does not tell the peak memory of process {pid}")


@contextlib.contextmanager
def bare_loop(file: Path, mountpoint: Path) -> Iterator[Path]:
    """Hold the path under which the bare FUSE loop shows a file."""
    mountpoint.mkdir()
    with ended(subprocess.Popen([sys.executable, str(Path(__file__).with_name("bare_loop.py")), str(file), str(mountpoint)])) as loop:
        end = time.monotonic() + 30
        while not mountpoint.is_mount():
            if loop.poll() is not None or time.monotonic() > end:
                raise Failed("the bare FUSE loop did not mount; what it said is above")
            time.sleep(0.05)
        try:
            yield mountpoint / "file"
        finally:
            subprocess.run(["umount", mountpoint], check=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                loop.wait(10)

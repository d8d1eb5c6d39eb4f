"""This module holds nodes of imagefs over the link for measurements: each new, with its own settings, gone when the block ends."""

import contextlib
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.seaweed import Seaweed
from tools.instruments import BUCKET, DELAY, RATE, drop_caches
from tools.link import Link
from tools.node import Failed, Node, run

MIB: Final = 1024 * 1024
PREFIX: Final = "bench"
QUIET: Final = 'hydrate = "off"\n'
"""For [cache]: what is counted is what was asked for, not what an idle node does."""
FLAVORS: Final = "[flavors.bench]\nvcpus = 1\nram = 512\ndisk = 0\n"


class Store:
    """An S3 server with images in it, and the link to it; images are stored past the link."""

    def __init__(self, directory: Path, server: Seaweed, link: Link) -> None:
        self.directory = directory
        self.server = server
        self.link = link
        self._importing = Node(directory / "importing", self._settings(server.endpoint_url, ""), server.environment())

    def put(self, path: Path, form: str = "raw") -> str:
        """Store a file as an image and return its id."""
        return self._importing.create_image(path.name, path, "--disk-format", form, "--public")

    def put_noise(self, size: int, name: str = "noise", form: str = "raw") -> str:
        """Store an image of bytes that do not compress, other ones for another name, and return its id."""
        path = self.directory / f"{name}.raw"
        chance = random.Random(name)
        with path.open("wb") as file:
            for _ in range(size // MIB):
                file.write(chance.randbytes(MIB))
        stored = path
        if form == "qcow2":
            stored = path.with_suffix(".qcow2")
            run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", str(path), str(stored)])
        image_id = self.put(stored, form)
        path.unlink()
        stored.unlink(missing_ok=True)
        return image_id

    def url(self, image_id: str) -> str:
        """Return where anybody may read an image's data over the link."""
        return f"{self.link.endpoint_url}/{BUCKET}/{PREFIX}/{image_id}/data"

    def forget_profile(self, image_id: str) -> None:
        """Remove what earlier boots left beside an image."""
        self.server.client().delete_object(Bucket=BUCKET, Key=f"{PREFIX}/{image_id}/profile")

    @contextlib.contextmanager
    def node(self, cache: str = QUIET, *, state: Path | None = None) -> Iterator[Node]:
        """Hold a mounted node with a new state directory, or with the one given; the host's page cache is dropped first."""
        with tempfile.TemporaryDirectory(prefix="node-", dir=self.directory) as place:
            node = Node(Path(place) / "node", self._settings(self.link.endpoint_url, cache), self.server.environment())
            if state is not None:
                (node.directory / "state").symlink_to(state)
            try:
                drop_caches()
                node.mount()
                yield node
            except (Failed, OSError):
                complain(node)
                raise
            finally:
                node.take_down()

    def _settings(self, endpoint_url: str, cache: str) -> str:
        return f'[store]\nurl = "s3://{BUCKET}/{PREFIX}"\n[store.s3]\nendpoint_url = "{endpoint_url}"\n[cache]\n{cache}{FLAVORS}'


def limited(size: int) -> str:
    """Return what to say in [cache] for a cache of so many bytes, in whole MiB."""
    return f'{QUIET}size = "{size // MIB}MiB"\n'


def complain(node: Node) -> None:
    """Say what a node's log has of errors: its directory goes, and the log with it."""
    with contextlib.suppress(OSError):
        lines = (node.directory / "state" / "imagefs.log").read_text(errors="replace").splitlines()
        for line in [line for line in lines if " ERROR " in line or " WARNING " in line][-10:]:
            print(f"tools/bench: imagefs's log: {line}", file=sys.stderr)


@contextlib.contextmanager
def store(place: Path) -> Iterator[Store]:
    """Hold a server with an empty bucket and the link to it."""
    with contextlib.ExitStack() as cleanup:
        server = Seaweed.start(place / "seaweed", anonymous_bucket=BUCKET)
        cleanup.callback(server.stop)
        server.create_bucket(BUCKET)
        yield Store(place, server, cleanup.enter_context(Link(server.endpoint_url, delay=DELAY, rate=RATE)))


def make_instance(node: Node, name: str, image_id: str) -> Path:
    """Make an instance by plain file operations and return the path of its vda."""
    path = node.mountpoint / "instances" / name
    path.mkdir()
    os.setxattr(path, "user.flavor", b"bench")
    os.setxattr(path, "user.image", image_id.encode())
    return path / "vda"

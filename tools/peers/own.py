"""This module is imagefs itself, in the three states in which a node may meet an image: unknown, known to others, and cached here."""

import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tools.node import Node
from tools.peers.peer import Peer, Task, Unavailable, Want

FLAVOR: Final = "bench"
KEPT: Final = "kept-state"
PROFILE_TIMEOUT: Final = 40.0
"""Seconds that a recorded boot may take until it is in the store: a recording ends when nothing was read for 15 s."""


def settings(task: Task, extra: str = "") -> str:
    """Return the configuration of a node for the task's store."""
    return (
        f'[store]\nurl = "s3://{task.bucket}/{task.prefix}"\n[store.s3]\nendpoint_url = "{task.endpoint_url}"\n'
        f"[flavors.{FLAVOR}]\nvcpus = 1\nram = 512\ndisk = 0\n{extra}"
    )


def make_instance(node: Node, name: str, image_id: str) -> Path:
    """Make an instance by plain file operations and return the path of its vda."""
    path = node.mountpoint / "instances" / name
    path.mkdir()
    os.setxattr(path, "user.flavor", FLAVOR.encode())
    os.setxattr(path, "user.image", image_id.encode())
    return path / "vda"


class FreshNode(Peer):
    """A node that has nothing, neither of the image nor of its boots; and if nobody has booted the image before, nor has the store."""

    name = "imagefs, first boot"
    is_own = True

    def ready(self, task: Task, cleanup: ExitStack) -> Want:
        node = Node(task.directory / "node", settings(task), task.environment)
        cleanup.callback(node.take_down)
        node.mount()
        return lambda: make_instance(node, "bench", task.image_id)

    def settle(self, task: Task) -> None:
        """Wait for the boot's profile in the store. It may be that there is none: then the next peer shows it."""
        deadline = time.monotonic() + PROFILE_TIMEOUT
        while time.monotonic() < deadline and not task.has_profile():
            time.sleep(0.5)


class SecondNode(FreshNode):
    """Another node that has nothing, but the store has the profile that the first boot left."""

    name = "imagefs, boot with profile"

    def settle(self, task: Task) -> None:
        """Nothing that goes on matters."""

    def leave(self, task: Task) -> None:
        shutil.move(task.directory / "node" / "state", task.round_directory / KEPT)


class RestartedNode(Peer):
    """The second node with its daemon started anew."""

    name = "imagefs, cached, daemon restarted"
    is_own = True

    def ready(self, task: Task, cleanup: ExitStack) -> Want:
        kept = task.round_directory / KEPT
        if not kept.exists():
            raise Unavailable("the boot with a profile left nothing in its cache")
        node = Node(task.directory / "node", settings(task), task.environment)
        shutil.move(kept, node.directory / "state")
        cleanup.callback(node.take_down)
        node.mount()
        return lambda: make_instance(node, "again", task.image_id)

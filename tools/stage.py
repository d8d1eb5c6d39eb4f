"""This module is what demonstrations have in common: what they say, the commands that they show, and the proof that an image is unchanged."""

import hashlib
import shlex
from pathlib import Path

from tools.node import Failed, Node, run


def prove_unchanged(node: Node, image_id: str, guest: Path) -> None:
    """Raise Failed unless the image is still what was put in, in both of its forms."""
    stored, source = sha256(node.mountpoint / "images" / image_id), sha256(guest)
    print(f"SHA-256 of images/{image_id}: {stored}\nSHA-256 of {guest.name}: {source}")
    if stored != source:
        raise Failed("the image in the store is no longer the file that was put in")
    command(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(node.mountpoint / "raw" / image_id), str(guest)])


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def command(words: list[str]) -> None:
    """Show a command and what it prints. Raises Failed."""
    shown(shlex.join(words))
    print(run(words), end="")


def step(title: str) -> None:
    """Say what comes next."""
    print(f"\n==> {title}", flush=True)


def shown(line: str) -> None:
    """Show a command as a user would type it."""
    print(f"$ {line}", flush=True)


def mib(size: int) -> str:
    """Return bytes in words."""
    return f"{size / 1048576:.1f} MiB"

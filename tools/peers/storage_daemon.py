"""This module is QEMU's block layer without QEMU: qemu-storage-daemon shows a tree of block nodes as a file, which reads like a raw disk.

It stands for the guest's QEMU wherever a peer serves something that only QEMU understands: a qcow2 file, NBD, an overlay.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tools.peers.peer import Task, mounted_child, program

NAME = "qemu-storage-daemon"


def exported(task: Task, cleanup: ExitStack, nodes: list[dict[str, Any]], *, writable: bool = False) -> Path:
    """Show the last of the nodes as a file, and return the file's path. Raises Failed, Unavailable."""
    shown = task.directory / "disk"
    shown.touch()
    words = [program(NAME)]
    for node in nodes:
        words += ["--blockdev", json.dumps(node)]
    allowed = "on" if writable else "off"
    words += ["--export", f"type=fuse,id=disk,node-name={nodes[-1]['node-name']},mountpoint={shown},writable={allowed},growable=off"]
    mounted_child(cleanup, words, shown, task.directory / "qemu-storage-daemon.log")
    return shown


def file_node(path: Path, form: str) -> list[dict[str, Any]]:
    """Return the nodes of a local file."""
    return over({"driver": "file", "node-name": "file", "filename": str(path), "read-only": True}, form)


def over(protocol: dict[str, Any], form: str) -> list[dict[str, Any]]:
    """Return a protocol's node and that of the format above it."""
    return [protocol, {"driver": form, "node-name": "format", "file": protocol["node-name"], "read-only": True}]

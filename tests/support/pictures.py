"""This module makes small disk images for tests: known bytes, in the formats that stores hold."""

import hashlib
import random
import subprocess
from pathlib import Path

MIB = 1024 * 1024


def noise(length: int, seed: int) -> bytes:
    """Return `length` bytes that do not compress, always the same for a seed."""
    return random.Random(seed).randbytes(length)


def disk_bytes(size: int, seed: int = 1) -> bytes:
    """Return a disk like a guest's: text that compresses, noise, and long runs of zeros."""
    text = hashlib.sha256(str(seed).encode()).hexdigest().encode() * 1024
    parts = [noise(192 * 1024, seed), text * 2, bytes(300 * 1024), noise(70_001, seed + 1), text, bytes(64 * 1024)]
    body = b"".join(parts)
    return (body * (size // len(body) + 1))[:size]


def write_raw(path: Path, body: bytes) -> Path:
    """Write a raw image."""
    path.write_bytes(body)
    return path


def write_qcow2(path: Path, raw: Path, *options: str) -> Path:
    """Convert a raw image to qcow2; `options` are further words of qemu-img convert."""
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, path], check=True, timeout=120)
    return path

"""This module asks qemu-img, the authority on image formats, whether an image is sound; in a child with limits.

The format is always named and never probed, and only images that passed `image.inspect` get here: qemu-img follows
references to other files.
"""

import subprocess
from pathlib import Path
from typing import Final

from imagefs.errors import ImageRefused, Unsupported
from imagefs.units import GIB

MEMORY_LIMIT: Final = GIB
"""Bytes of address space; checking an image of 16 TiB takes less."""
CPU_LIMIT: Final = 30
"""Seconds of CPU for each begun GiB of the file; a check takes about one, but a hostile table can make it take for ever."""
WALL_LIMIT: Final = 10 * CPU_LIMIT
"""Seconds that may pass for each begun GiB: a cold disk is slow, and that is not the image's fault."""
_LEAKS: Final = 3
"""The exit status for clusters that nothing uses: a waste of space, and no harm."""


def check(path: Path, image_format: str, name: str) -> None:
    """Return if `qemu-img check` finds no error in the image at `path`, called `name` in messages. Blocks.

    Raises ImageRefused with the reason, Unsupported if there is no qemu-img.
    """
    gib = 1 + path.stat().st_size // GIB
    limits = ["prlimit", f"--as={MEMORY_LIMIT}", f"--cpu={CPU_LIMIT * gib}", "--core=0"]
    # an absolute path cannot be taken for a protocol ("nbd:...") or for an option
    command = [*limits, "qemu-img", "check", "-q", "-f", image_format, str(path.absolute())]
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=WALL_LIMIT * gib,
            check=False,
            env=_environment(),
        )
    except FileNotFoundError:
        raise Unsupported(f"image {name}: prlimit is not installed, and images are checked under its limits: install util-linux") from None
    except subprocess.TimeoutExpired:
        raise ImageRefused(f"image {name}: qemu-img check did not end within {WALL_LIMIT * gib} s: look at the image with qemu-img check") from None
    if child.returncode == 127:
        raise Unsupported(f"image {name}: qemu-img is not installed, and {image_format} images are checked with it: install qemu-utils")
    if child.returncode not in (0, _LEAKS):
        raise ImageRefused(f"image {name}: qemu-img check -f {image_format} finds it unsound: {_reason(child)}")


def _reason(child: subprocess.CompletedProcess[str]) -> str:
    if child.returncode < 0 or child.returncode > 128:
        return "it took more time or memory than a sound image does"
    lines = [line.strip() for line in (child.stdout + child.stderr).splitlines() if line.strip()]
    first = next((line for line in lines if not line.startswith("qemu-img: warning")), "no reason given")
    return (
        f"{first.removeprefix('qemu-img: ')}{f' (and {len(lines) - 1} lines more)' if len(lines) > 1 else ''}: repair it with qemu-img check -r all"
    )


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

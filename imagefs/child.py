"""This module runs tools of the host as children: where they are looked for, how long they may take, and what their failure means.

A tool gets no input, speaks English, and is looked for in PATH as below, /sbin included, whatever the environment of the daemon.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

from imagefs.errors import ImagefsError, InvalidInput, NoSpace

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": PATH, "LC_ALL": "C", "MALLOC_ARENA_MAX": "1"}
"""What a child's environment is, all of it: nothing of the daemon's, where credentials may be, is passed on.

glibc reserves 64 MiB of address space for each of 8 arenas a CPU; under a limit of it, QEMU's threads would find no room and abort.
"""
_FULL: Final = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


def find_tool(names: Sequence[str], package: str, what: str) -> str:
    """Return the path of the first of the tools that is installed. Raises InvalidInput that says what `what` needs."""
    for name in names:
        if (found := shutil.which(name, path=PATH)) is not None:
            return found
    raise InvalidInput(f"{what}: {' or '.join(names)} is not installed: install the package {package}")


def run_tool(command: Sequence[str], what: str, seconds: float, environment: Mapping[str, str] | None = None) -> None:
    """Run a command for at most `seconds`, with `environment` added to its own; `what` begins the messages. Blocks.

    Raises NoSpace if the tool found the disk full, ImagefsError with its last words if it failed otherwise or took too long. It is dead by then.
    """
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            env={**ENVIRONMENT, **(environment or {})},
        )
    except OSError as error:
        raise ImagefsError(f"{what}: {command[0]} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise ImagefsError(f"{what}: {command[0]} did not end within {seconds:.0f} s: look at the disk that the state directory is on") from None
    if child.returncode == 0:
        return
    if any(words in child.stdout for words in _FULL):
        raise NoSpace(f"{what}: {os.strerror(errno.ENOSPC)}: free some room in the state directory")
    raise ImagefsError(f"{what}: {command[0]} failed with status {child.returncode}: {last_words(child.stdout)}")


def last_words(output: str) -> str:
    """Return the last line of a tool's output that is not empty, cut to what fits a message."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it gave no reason"

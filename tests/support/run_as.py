"""This module runs the command as another user: in a forked process, since the packages may lie where only root may read."""

import importlib
import os
import pkgutil
import sys
import tempfile
from pathlib import Path

import imagefs.cli
from imagefs.cli import errors
from imagefs.cli.main import imagefs as command
from tests.support.commands import Outcome


def run_as(uid: int, config: Path, *arguments: str) -> Outcome:
    """Run `imagefs -c CONFIG` with arguments as the user `uid`, in the group of that number and no other, and tell how it ended."""
    for module in pkgutil.iter_modules(imagefs.cli.__path__):
        importlib.import_module(f"imagefs.cli.{module.name}")
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            status = 99
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                sys.stdout, sys.stderr = out, err
                status = errors.run(command, "imagefs", ["-c", str(config), *arguments])
                out.flush()
                err.flush()
            finally:
                os._exit(status)
        _, state = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return Outcome(os.waitstatus_to_exitcode(state), out.read(), err.read())

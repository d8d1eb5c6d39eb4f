"""The README's tour does what it says when it is typed in."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounted import write_config

README = Path(__file__).parents[2] / "README.md"


def tour() -> str:
    """Return the commands of the tour, in order."""
    section = re.search(r"^## Five minutes.*?(?=^## )", README.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    return "\n".join(line[4:] for line in section[0].splitlines() if line.startswith("    "))


@pytest.mark.mount
@pytest.mark.qemu
def test_tour_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Every command of the tour succeeds, with the store, the state and the mount point in a directory of the test."""
    config = write_config(tmp_path)
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "imagefs").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m imagefs.cli.main "$@"\n')
    (commands / "imagefs").chmod(0o755)
    typed = tour().replace("/mnt/imagefs", str(tmp_path / "mnt"))
    assert "imagefs mount" in typed
    assert "setfattr" in typed
    script = f"set -e\ncleanup() {{ umount {tmp_path / 'mnt'} 2>/dev/null || true; }}\ntrap cleanup EXIT\n{typed}\n"
    environment = os.environ | {"IMAGEFS_CONFIG": str(config), "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(README.parent)}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'user.hw_disk_bus="virtio"' in done.stdout
    assert "qemu-system-x86_64" in done.stdout
    assert "verification failed" not in done.stdout
    assert os.listdir(tmp_path / "mnt") == []

"""Fixtures of the command line's tests: a fake mount, a store in a directory, and the command itself in this process."""

from pathlib import Path

import pytest

from imagefs.cli import errors, mountpoint
from imagefs.cli.main import imagefs
from tests.support.commands import Outcome, Run
from tests.support.fake_mount import FakeMount


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration in the test's own directory, and a host on which nothing is mounted."""
    config = tmp_path / "imagefs.toml"
    config.write_text(f'[store]\nurl = "file://{tmp_path}/store"\n[state]\ndir = "{tmp_path}/state"\n')
    (tmp_path / "store").mkdir()
    table = tmp_path / "mounts"
    table.write_bytes(b"proc /proc proc rw 0 0\n")
    monkeypatch.setattr(mountpoint, "MOUNT_TABLE", table)
    monkeypatch.setenv("IMAGEFS_CONFIG", str(config))
    monkeypatch.delenv("IMAGEFS_DEBUG", raising=False)


@pytest.fixture
def mount(tmp_path: Path) -> FakeMount:
    """A fake mount that the mount table has."""
    found = FakeMount(tmp_path / "mnt")
    (tmp_path / "mounts").write_bytes(f"imagefs {found.path} fuse.imagefs rw 0 0\n".encode())
    return found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `imagefs` with arguments, and tell how it ended."""

    def run_imagefs(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = errors.run(imagefs, "imagefs", [str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return run_imagefs

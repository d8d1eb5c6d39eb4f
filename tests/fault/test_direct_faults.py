"""Direct disks when the host's tools and disk fail: nothing half-made is left, and no child goes on."""

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from imagefs import child
from imagefs.errors import ImagefsError, InvalidInput, NoSpace
from imagefs.instances import direct
from imagefs.instances.direct import convert, create, make_target
from imagefs.units import MIB
from tests.support.user import open_the_way

OWNER = 4001
UUID = "0d6e5b1a-5f0c-4d3e-9a58-6f6a1c1f0f10"
SIZE = 4 * MIB


def install(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> None:
    """Put a shell script in the place of qemu-img."""
    directory.mkdir(mode=0o755)
    tool = directory / "qemu-img"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    path = f"{directory}:{child.PATH}"
    monkeypatch.setattr(child, "PATH", path)
    for module in (child, direct):
        monkeypatch.setattr(module, "ENVIRONMENT", {**child.ENVIRONMENT, "PATH": path})


def make(state: Path) -> Path:
    return create(state / "direct", UUID, SIZE, state.parent / "image", OWNER, OWNER, 0o700, 0o600)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory, and an image beside it."""
    open_the_way(tmp_path)
    (tmp_path / "image").write_bytes(bytes(SIZE))
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.mark.parametrize(
    ("script", "error", "reason"),
    [
        ("echo 'qemu-img: /x: No space left on device'; exit 1", NoSpace, "free some room"),
        ("echo 'qemu-img: cannot'; exit 1", ImagefsError, "failed with status 1: qemu-img: cannot"),
        ("exec sleep 100", ImagefsError, "did not end within"),
    ],
)
def test_a_disk_that_cannot_be_made_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, state: Path, tmp_path: Path, script: str, error: type[ImagefsError], reason: str
) -> None:
    """The tool's reason is told, and the directory is gone."""
    monkeypatch.setattr(direct, "CREATE_SECONDS", 0.4 if "sleep" in script else 60)
    install(monkeypatch, tmp_path / "bin", script)
    with pytest.raises(error, match=reason):
        make(state)
    assert os.listdir(state / "direct") == []


@pytest.mark.parametrize("call", ["fchown", "fchmod", "fsync", "chown"])
def test_a_disk_that_cannot_be_completed_leaves_nothing(monkeypatch: pytest.MonkeyPatch, state: Path, call: str) -> None:
    """At whichever step the host's disk fails; the next attempt works."""
    real = getattr(os, call)
    failed: list[str] = []

    def fail(*arguments: Any, **options: Any) -> Any:
        if not failed:
            failed.append(call)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output"):
        make(state)
    assert failed == [call]
    assert os.listdir(state / "direct") == []
    assert make(state).exists()


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    """Without qemu-img the message says what to install."""
    monkeypatch.setattr(child, "PATH", str(state))
    with pytest.raises(InvalidInput, match="qemu-img is not installed: install the package qemu-utils"):
        make(state)
    assert os.listdir(state / "direct") == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo first >&2; echo 'qemu-img: error while reading: Input/output error' >&2; exit 1", "status 1: error while reading: Input/output error"),
        ("exit 1", "no reason"),
        ("kill -KILL $$", "status -9"),
    ],
)
async def test_a_copy_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, state: Path, tmp_path: Path, script: str, reason: str) -> None:
    """The tool's last words come out, or that it was killed by its limits."""
    disk = make(state)
    target = make_target(disk, SIZE, OWNER, OWNER)
    install(monkeypatch, tmp_path / "bin", script)
    with pytest.raises(ImagefsError, match=reason):
        await convert(disk, target, "qcow2", OWNER, OWNER, backing=tmp_path / "image", size=SIZE)


async def sleeping(state: Path, target: Path) -> None:
    await convert(state / "direct" / UUID / direct.DISK, target, "qcow2", OWNER, OWNER, backing=state.parent / "image", size=SIZE)


def sleeper(tmp_path: Path) -> str:
    """A script that tells its process id in a file and goes on for long, whatever it is asked."""
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o777)
    return f"trap '' TERM; echo $$ > {place}/new; mv {place}/new {place}/pid; while :; do sleep 0.1; done"


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


def has_ended(tmp_path: Path) -> bool:
    number = int((tmp_path / "place" / "pid").read_text())
    try:
        os.kill(number, signal.SIGCONT)
    except ProcessLookupError:
        return True
    return False


async def test_a_cancelled_copy_is_killed(monkeypatch: pytest.MonkeyPatch, state: Path, tmp_path: Path) -> None:
    """The child is dead when the cancellation comes out, even one that does not mind to be asked."""
    target = make_target(make(state), SIZE, OWNER, OWNER)
    install(monkeypatch, tmp_path / "bin", sleeper(tmp_path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeping, state, target)
        await trio.to_thread.run_sync(wait_for, tmp_path / "place" / "pid")
        nursery.cancel_scope.cancel()
    assert has_ended(tmp_path)


async def test_a_copy_that_takes_too_long_is_killed(monkeypatch: pytest.MonkeyPatch, state: Path, tmp_path: Path) -> None:
    """The time limit ends it with a reason."""
    target = make_target(make(state), SIZE, OWNER, OWNER)
    install(monkeypatch, tmp_path / "bin", sleeper(tmp_path))
    monkeypatch.setattr(direct, "WALL_LIMIT", 2)
    with pytest.raises(ImagefsError, match="did not end within 2 s"):
        await sleeping(state, target)
    assert has_ended(tmp_path)


async def test_a_copy_has_its_owners_rights_and_nothing_of_the_daemons(monkeypatch: pytest.MonkeyPatch, state: Path, tmp_path: Path) -> None:
    """The child has the owner's ids and no other group, limits, no credentials in its environment, and two descriptors."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    target = make_target(make(state), SIZE, OWNER, OWNER)
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o777)
    install(
        monkeypatch,
        tmp_path / "bin",
        f"id -u; id -G >{place}/groups; id -u >{place}/uid; env >{place}/env; ulimit -a >{place}/limits; ls /proc/$$/fd >{place}/fds",
    )
    await sleeping(state, target)
    assert (place / "uid").read_text().split() == [str(OWNER)]
    assert (place / "groups").read_text().split() == [str(OWNER)]
    assert "secret" not in (place / "env").read_text()
    limits = (place / "limits").read_text()
    assert str(direct.MEMORY_LIMIT // 1024) in limits
    assert str(direct.CPU_LIMIT) in limits
    assert len((place / "fds").read_text().split()) <= 3 + 2 + 2  # standard ones, the two, and the shell's own

"""instance snapshot, over a mount whose daemon is played by the test."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import Run
from tests.support.fake_mount import FakeMount, set_attributes

Tell = Callable[..., None]
REAL_SETXATTR = os.setxattr


@pytest.fixture
def requests(mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """An instance web1; what is asked of its daemon, which answers that image `i` is queued."""
    mount.add_instance("web1")
    found: list[dict[str, object]] = []

    def answer(path: Path, name: str, value: bytes) -> None:
        if name == "user.imagefs.snapshot":
            found.append(json.loads(value))
            value = json.dumps({"id": "i", "status": "queued", "done": 0, "total": 0, "error": None}).encode()
        REAL_SETXATTR(path, name, value)

    monkeypatch.setattr("os.setxattr", answer)
    return found


@pytest.fixture
def tell(mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Have the daemon say one thing more at each look of --wait."""

    def say(*progress: dict[str, object]) -> None:
        left = list(progress)

        def sleep(_: float) -> None:
            value = {"id": "i", "status": "saving", "done": 0, "total": 0, "error": None} | left.pop(0)
            REAL_SETXATTR(mount.path / "instances" / "web1", "user.imagefs.snapshot", json.dumps(value).encode())

        monkeypatch.setattr("time.sleep", sleep)

    return say


def test_a_snapshot_is_one_attribute(run: Run, requests: list[dict[str, object]]) -> None:
    """Only what is asked for is said, and the image's id is printed at once."""
    found = run("instance", "snapshot", "web1", "--name", "before")
    assert (found.status, found.out, found.err) == (0, "i\n", "")
    assert requests == [{"name": "before"}]


def test_all_options_are_keys_of_the_request(run: Run, requests: list[dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are absolute: the daemon is elsewhere."""
    monkeypatch.chdir(tmp_path)
    options = ["--disk-format", "raw", "--shared", "--property", "a=b", "--property", "c=d=e", "--qmp", "q", "--agent", "/run/a", "--allow-plain"]
    assert run("instance", "snapshot", "web1", "--name", "x", *options).status == 0
    assert requests == [
        {
            "name": "x", "disk_format": "raw", "visibility": "shared", "properties": {"a": "b", "c": "d=e"}, "qmp": f"{tmp_path}/q",
            "agent": "/run/a", "allow_plain": True,
        }
    ]  # fmt: skip


@pytest.mark.parametrize("options", [["--public", "--private"], ["--disk-format", "vmdk"], []])
def test_a_wrong_command_line_asks_for_nothing(run: Run, requests: list[dict[str, object]], options: list[str]) -> None:
    """Two visibilities, a format that is none, no name."""
    name = ["--name", "x"] if options else []
    assert run("instance", "snapshot", "web1", *name, *options).status == 2
    assert run("instance", "snapshot", "web1", "--name", "x", "--property", "a").status == 1
    assert requests == []


def test_a_refusal_tells_the_mounts_reason(run: Run, mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance that is not there is told of as well."""
    set_attributes(mount.add_instance("web1"), {"imagefs.error": "its disk is encrypted: say allow_plain"})

    def refuse(path: Path, *_: object) -> None:
        path.stat()
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.setxattr", refuse)
    found = run("instance", "snapshot", "web1", "--name", "x")
    assert (found.status, found.err) == (1, "imagefs: instance snapshot web1: its disk is encrypted: say allow_plain\n")
    assert "there is no such instance" in run("instance", "snapshot", "nosuch", "--name", "x").err


def test_wait_returns_when_the_image_is_active(run: Run, requests: list[dict[str, object]], tell: Tell) -> None:
    """Whatever it goes through."""
    tell({"status": "queued"}, {"done": 1, "total": 2}, {"done": 2, "total": 2}, {"status": "active"})
    found = run("instance", "snapshot", "web1", "--name", "x", "--wait")
    assert (found.status, found.out, found.err) == (0, "i\n", "")
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ({"status": "error", "error": "the store is full"}, "image i was not stored: the store is full"),
        ({"status": "killed"}, "image i was not stored: killed"),
        ({"id": "other"}, "another snapshot was begun"),
    ],
)
@pytest.mark.usefixtures("requests")
def test_wait_fails_with_the_reason(run: Run, tell: Tell, last: dict[str, object], reason: str) -> None:
    """Exit status 1, and the id was printed all the same."""
    tell({"done": 1}, last)
    found = run("instance", "snapshot", "web1", "--name", "x", "--wait")
    assert (found.status, found.out) == (1, "i\n")
    assert reason in found.err


@pytest.mark.usefixtures("requests")
def test_what_is_tried_again_is_told_once_and_is_no_failure(run: Run, tell: Tell) -> None:
    """A store that does not answer for a while."""
    again = {"status": "queued", "error": "tried again in 2 s: no answer"}
    tell(again, again, {"status": "saving"}, {"status": "active"})
    found = run("instance", "snapshot", "web1", "--name", "x", "--wait")
    assert (found.status, found.err) == (0, "imagefs: note: instance snapshot web1: tried again in 2 s: no answer\n")


@pytest.mark.usefixtures("requests")
def test_wait_for_a_daemon_that_forgot(run: Run, mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart there may be nothing to wait for."""
    monkeypatch.setattr("time.sleep", lambda _: os.removexattr(mount.path / "instances" / "web1", "user.imagefs.snapshot"))
    found = run("instance", "snapshot", "web1", "--name", "x", "--wait")
    assert found.status == 1
    assert "the mount tells of no snapshot" in found.err


@pytest.mark.usefixtures("requests")
def test_an_interrupted_wait_ends_the_waiting_only(run: Run, mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C leaves the snapshot alone."""

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    assert run("instance", "snapshot", "web1", "--name", "x", "--wait").status == 130
    assert b'"queued"' in os.getxattr(mount.path / "instances" / "web1", "user.imagefs.snapshot")

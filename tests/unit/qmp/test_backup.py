"""Copies that QEMU makes: which disk, in which order, and what is left after errors. A stand-in for QEMU answers."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from imagefs.errors import ImagefsError, InvalidInput
from imagefs.qmp import backup as module
from imagefs.qmp.backup import backup, files_of, plain_name
from tests.support.peer import Peer, listening


class Machine:
    """A QEMU with one disk: what it was asked, the jobs and nodes that it has, and what it answers instead of the truth."""

    def __init__(self, disk: Path, **instead: Any) -> None:
        self.disk = disk
        self.instead = instead
        self.commands: list[str] = []
        self.nodes: list[str] = []
        self.jobs: list[dict[str, Any]] = []
        self.polls_to_end = 2

    async def serve(self, peer: Peer) -> None:
        await peer.greet()
        while True:
            request = await peer.request()
            command, arguments = request["execute"], request["arguments"]
            self.commands.append(command)
            if command in self.instead:
                answer = self.instead[command]
                answer = answer.pop(0) if isinstance(answer, list) and answer and isinstance(answer[0], dict) and "error" in answer[0] else answer
            else:
                answer = {"return": self.obey(command, arguments)}
            if answer is not None:
                await peer.send({**answer, "id": request["id"]})

    def obey(self, command: str, arguments: dict[str, Any]) -> Any:
        match command:
            case "query-block":
                return [{"device": "cd", "inserted": None}, {"inserted": {"file": str(self.disk), "drv": "qcow2", "node-name": "#block1"}}]
            case "blockdev-add":
                self.nodes.append(arguments["node-name"])
            case "blockdev-backup":
                assert arguments["device"] == "#block1"
                assert arguments["target"] in self.nodes
                self.jobs.append({"id": arguments["job-id"], "status": "running", "current-progress": 0, "total-progress": 10})
            case "query-jobs":
                for job in self.jobs:
                    self.polls_to_end -= 1
                    if self.polls_to_end <= 0:
                        job |= {"status": "concluded", "current-progress": 10}
                return self.jobs
            case "job-cancel":
                self.polls_to_end = 1
            case "job-dismiss":
                assert self.jobs[0]["status"] == "concluded"
                self.jobs.clear()
            case "query-named-block-nodes":
                return [{"node-name": node} for node in ["#block1", *self.nodes]]
            case "blockdev-del":
                self.nodes.remove(arguments["node-name"])
        return {}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jobs be asked for often, and given up soon."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "END_SECONDS", 0.5)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The file of a disk."""
    path = tmp_path / "vda.qcow2"
    path.touch()
    return path


@contextlib.asynccontextmanager
async def running(tmp_path: Path, machine: Machine, disk: Path) -> AsyncIterator[module.Backup]:
    """Have the machine copy a disk."""
    async with listening(tmp_path / "qmp", machine.serve), backup(tmp_path / "qmp", 0, disk, tmp_path / "target") as found:
        yield found


async def test_a_copy_goes_its_way(tmp_path: Path, disk: Path) -> None:
    """The target is opened, the copy made, polled and forgotten, and the target closed before it is called complete."""
    machine = Machine(disk)
    seen: list[tuple[int, int]] = []
    async with running(tmp_path, machine, disk) as copy:
        assert machine.commands == ["query-block", "blockdev-add", "blockdev-backup"]
        await copy.completed(lambda done, total: seen.append((done, total)))
        assert (machine.nodes, machine.jobs) == ([], [])
    assert seen == [(0, 10), (10, 10)]
    assert machine.commands[3:] == ["query-jobs", "query-jobs", "job-dismiss", "blockdev-del"]


async def test_a_disk_is_found_through_symlinks(tmp_path: Path, disk: Path) -> None:
    """QEMU was given the name on the mount, which is a symlink."""
    (tmp_path / "vda").symlink_to("vda.qcow2")
    machine = Machine(tmp_path / "vda")
    async with running(tmp_path, machine, disk) as copy:
        await copy.completed(lambda *_: None)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([], "does not have .*vda.qcow2 as a disk"),
        ([{"inserted": {"file": "/dev/null", "drv": "qcow2", "node-name": "x"}}], "does not have"),
        ([{"inserted": {"file": "/nul\0", "drv": "qcow2", "node-name": "x"}}], "does not have"),
        ([{"inserted": {"file": "DISK", "drv": "raw", "node-name": "x"}}], "opened .* as raw"),
        ({"not": "a list"}, "does not have"),
        (["text", {"inserted": 5}, {"inserted": {"file": 5}}, {}], "does not have"),
    ],
)
async def test_a_qemu_without_the_disk_is_refused(tmp_path: Path, disk: Path, answer: Any, reason: str) -> None:
    """Nothing is opened then, whatever the answer looks like."""
    machine = Machine(disk, **{"query-block": {"return": json.loads(json.dumps(answer).replace("DISK", str(disk)))}})
    with pytest.raises(InvalidInput, match=reason):
        async with running(tmp_path, machine, disk):
            pytest.fail("it started")
    assert machine.commands == ["query-block"]


async def test_a_target_that_cannot_be_opened_is_told(tmp_path: Path, disk: Path) -> None:
    """QEMU's reason comes out, and there is nothing to close."""
    machine = Machine(disk, **{"blockdev-add": {"error": {"desc": "Could not open 'target': Permission denied"}}})
    with pytest.raises(ImagefsError, match="blockdev-add failed: Could not open 'target': Permission denied"):
        async with running(tmp_path, machine, disk):
            pytest.fail("it started")
    assert "blockdev-del" not in machine.commands


async def test_a_copy_that_cannot_begin_leaves_no_node(tmp_path: Path, disk: Path) -> None:
    """The target is closed again."""
    machine = Machine(disk, **{"blockdev-backup": {"error": {"desc": "Node is in use"}}})
    with pytest.raises(ImagefsError, match="blockdev-backup failed: Node is in use"):
        async with running(tmp_path, machine, disk):
            pytest.fail("it started")
    assert machine.nodes == []


async def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, disk: Path) -> None:
    """What QEMU says of the job is told; job and node are gone."""
    machine = Machine(disk)
    async with running(tmp_path, machine, disk) as copy:
        machine.jobs[0]["error"] = "No space left on device"
        with pytest.raises(ImagefsError, match="failed in QEMU: No space left"):
            await copy.completed(lambda *_: None)
    assert (machine.nodes, machine.jobs) == ([], [])


async def test_a_copy_that_is_left_is_broken_off(tmp_path: Path, disk: Path) -> None:
    """Leaving the body early cancels the job and closes the target: by an error, by cancellation, or by itself."""
    for how in ("error", "cancel", "return"):
        machine = Machine(disk)
        machine.polls_to_end = 1000
        (tmp_path / "qmp").unlink(missing_ok=True)
        async with listening(tmp_path / "qmp", machine.serve):
            with trio.CancelScope() as scope, contextlib.suppress(ZeroDivisionError):
                async with backup(tmp_path / "qmp", 0, disk, tmp_path / "target") as copy:
                    if how == "error":
                        await copy.completed(lambda done, _: 1 // done)
                    elif how == "cancel":
                        scope.cancel()
                        await copy.completed(lambda *_: None)
        assert "job-cancel" in machine.commands
        assert (machine.nodes, machine.jobs) == ([], [])


async def test_a_job_that_vanished_is_an_error(tmp_path: Path, disk: Path) -> None:
    """Somebody else dismissed it: nobody knows whether the target is whole."""
    machine = Machine(disk)
    async with running(tmp_path, machine, disk) as copy:
        machine.jobs.clear()
        with pytest.raises(ImagefsError, match="QEMU does not know of it any more"):
            await copy.completed(lambda *_: None)
    assert machine.nodes == []


async def test_nonsense_for_jobs_is_an_error(tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An answer that is no list ends the copy, and what cannot be cleaned up is told."""
    machine = Machine(disk, **{"query-jobs": {"return": 5}})
    with pytest.raises(ImagefsError, match="list of jobs is none"):
        async with running(tmp_path, machine, disk) as copy:
            await copy.completed(lambda *_: None)
    assert "may still have the target of a snapshot open" in caplog.text


async def test_a_qemu_that_falls_silent_is_given_up(tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Breaking off does not wait for ever for a QEMU that hangs."""
    machine = Machine(disk, **{"query-jobs": None})
    async with listening(tmp_path / "qmp", machine.serve):
        with trio.CancelScope() as scope:
            async with backup(tmp_path / "qmp", 0, disk, tmp_path / "target"):
                scope.cancel()
                await trio.sleep_forever()
    assert "did not end a copy in time" in caplog.text


def test_files_that_need_options_are_found() -> None:
    """QEMU's names for them lead to the path at the bottom; what is no file of the host has none."""
    assert plain_name("/a/b") == "/a/b"
    assert plain_name('json:{"driver": "qcow2", "file": {"driver": "file", "filename": "/a/b"}}') == "/a/b"
    assert plain_name('json:{"driver": "qcow2", "file.filename": "/a/b"}') == "/a/b"
    for name in (
        "relative",
        "nbd://host/x",
        "json:",
        "json:[1]",
        "json:{}",
        'json:{"file": "node"}',
        'json:{"filename": "relative"}',
        "json:" + "[" * 100_000,
    ):
        assert plain_name(name) is None


def test_only_whole_entries_are_taken() -> None:
    """Anything may come from a socket of a user's."""
    whole = {"inserted": {"file": "/a", "drv": "qcow2", "node-name": "n"}}
    assert files_of([whole, {"inserted": {"file": "/a", "drv": "qcow2"}}, None]) == [("/a", "qcow2", "n")]
    assert len(files_of([whole] * 10_000)) == 256

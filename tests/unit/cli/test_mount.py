"""imagefs mount, umount and mount.imagefs, with daemons that are a few lines of Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagefs.cli import errors, mount, mount_helper, umount
from imagefs.cli.mount import check_fuse, check_mountpoint, daemon_command, start
from imagefs.cli.umount import find_users
from imagefs.config import parse
from imagefs.errors import Busy, InvalidInput, MountFailed, NotEmpty, NotFound
from tests.support.commands import Run

DESCRIPTOR = "fd = int([word for word in sys.argv if word.startswith('--ready-descriptor=')][0].partition('=')[2])"


def daemon(script: str) -> list[str]:
    """Return the command of a daemon that runs `script` with `fd` as the descriptor to say ok on."""
    return [sys.executable, "-c", f"import os, sys, time\n{DESCRIPTOR}\n{script}", "--foreground", "--", "/mountpoint"]


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every directory is a mount that answers."""
    monkeypatch.setattr(Path, "is_mount", lambda _: True)


@pytest.mark.usefixtures("usable")
def test_start_returns_when_the_daemon_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The daemon lives on in a session of its own, and what it said before it was ready is passed on."""
    pid_file = tmp_path / "pid"
    script = (
        f"print('imagefs: the store is down', file=sys.stderr, flush=True)\nopen({str(pid_file)!r}, 'w').write(f'{{os.getpid()}} {{os.getsid(0)}}')\n"
        "os.write(fd, b'ok'); os.close(fd); os.close(2); time.sleep(600)"
    )
    start(daemon(script), tmp_path)
    pid, session = map(int, pid_file.read_text().split())
    try:
        assert session == pid
        assert capsys.readouterr().err == "imagefs: the store is down\n"
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("print('imagefs: mount: no such bucket', file=sys.stderr); sys.exit(1)", "^mount: no such bucket$"),
        ("sys.exit(3)", "ended with status 3 and said nothing"),
        ("os.kill(os.getpid(), 9)", "ended with status -9"),
        ("os.close(fd); time.sleep(0.2); print('imagefs: later', file=sys.stderr); sys.exit(1)", "^later$"),
        ("os.write(fd, b'no'); sys.exit(1)", "ended with status 1"),
        ("sys.stderr.write('imagefs: x' * 200000); sys.exit(1)", "x"),
    ],
)
def test_a_daemon_that_ends_early_is_no_wait(tmp_path: Path, script: str, message: str) -> None:
    """Whatever it does instead of being ready, the caller gets its last line and does not hang."""
    with pytest.raises(MountFailed, match=message):
        start(daemon(script), tmp_path)


def test_all_lines_of_a_failed_daemon_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several mistakes in a configuration are several lines."""
    with pytest.raises(MountFailed, match=r"^second$"):
        start(daemon("print('imagefs: first\\nimagefs: second', file=sys.stderr); sys.exit(1)"), tmp_path)
    assert capsys.readouterr().err == "imagefs: first\n"


def test_a_daemon_that_says_ok_without_a_mount_is_found_out(tmp_path: Path) -> None:
    """Success means a mount that answers."""
    with pytest.raises(MountFailed, match="the mount does not answer"):
        start(daemon("os.write(fd, b'ok')"), tmp_path)


def test_an_interrupt_ends_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the daemon is starting leaves none behind."""
    children: list[subprocess.Popen[bytes]] = []

    def interrupted(child: subprocess.Popen[bytes], _: int) -> None:
        children.append(child)
        raise KeyboardInterrupt

    monkeypatch.setattr(mount, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(daemon("time.sleep(600)"), tmp_path)
    assert children[0].returncode == -15
    assert children[0].stderr is not None
    children[0].stderr.close()


def test_the_daemon_is_the_command_itself() -> None:
    """It takes no module from the working directory, and its file by an absolute path."""
    command = daemon_command(Path("/mnt/x"), ("allow_other", "state.dir=/x"), Path("x.toml"))
    assert command == [
        sys.executable, "-P", "-m", "imagefs.cli.main", "-c", str(Path.cwd() / "x.toml"),
        "mount", "--foreground", "-oallow_other", "-ostate.dir=/x", "--", "/mnt/x",
    ]  # fmt: skip


def test_mount_points_are_checked_first(tmp_path: Path) -> None:
    """Missing, a file, not empty, a mount already: each has its own line."""
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for path, kind, reason in (
        (tmp_path / "nosuch", NotFound, "does not exist: make it with mkdir"),
        (tmp_path / "file", InvalidInput, "not a directory"),
        (tmp_path / "full", NotEmpty, "not empty"),
        (Path("/proc"), Busy, "another filesystem"),
    ):
        with pytest.raises(kind, match=reason):
            check_mountpoint(path)
    assert check_mountpoint(tmp_path / "empty" / "." / "") == tmp_path / "empty"


def test_an_imagefs_is_not_mounted_over(tmp_path: Path) -> None:
    """A mount point in the mount table is busy."""
    (tmp_path / "mounts").write_bytes(f"imagefs {tmp_path}/mnt fuse.imagefs rw 0 0\n".encode())
    (tmp_path / "mnt").mkdir()
    with pytest.raises(Busy, match="an imagefs is mounted there already"):
        check_mountpoint(tmp_path / "mnt")


def test_what_the_host_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No /dev/fuse, and allow_other for a user without root's consent."""
    config = parse({"mount": {"allow_other": True}}, {}, "x", tmp_path)
    monkeypatch.setattr(mount, "_FUSE_SETTINGS", tmp_path / "fuse.conf")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(mount, "_FUSE", tmp_path)
    with pytest.raises(MountFailed, match="user_allow_other"):
        check_fuse(config)
    (tmp_path / "fuse.conf").write_text("# user_allow_other\n")
    with pytest.raises(MountFailed, match="user_allow_other"):
        check_fuse(config)
    (tmp_path / "fuse.conf").write_text("user_allow_other\n")
    check_fuse(config)
    monkeypatch.setattr(mount, "_FUSE", tmp_path / "nosuch")
    with pytest.raises(MountFailed, match="modprobe fuse"):
        check_fuse(config)


def test_the_command_puts_options_together(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """-o values override the file, config= names another, and mistakes of both are told before anything starts."""
    started: list[list[str]] = []
    monkeypatch.setattr(mount, "start", lambda command, _: started.append(command))
    monkeypatch.setattr(mount, "_FUSE", tmp_path)
    target = tmp_path / "mnt"
    target.mkdir()
    assert run("mount", target, "-o", "rw,state.dir=/x", "-c", tmp_path / "imagefs.toml").status == 0
    assert started[0][3:] == [
        "imagefs.cli.main",
        "-c",
        str(tmp_path / "imagefs.toml"),
        "mount",
        "--foreground",
        "-orw,state.dir=/x",
        "--",
        str(target),
    ]
    found = run("mount", target, "-o", "state.dir=x,cache.siez=1G")
    assert (found.status, found.err.count("\n")) == (1, 2)
    assert "-o state.dir: 'x' is not an absolute path" in found.err
    assert "did you mean cache.size?" in found.err
    assert "cannot be read" in run("mount", target, "-o", "config=/nosuch.toml").err
    assert len(started) == 1


def test_the_configured_mount_point_is_the_default(run: Run, tmp_path: Path) -> None:
    """Without an argument the configuration says where; without that, the command line is wrong."""
    assert run("mount").status == run("umount").status == 2
    with (tmp_path / "imagefs.toml").open("a") as config:
        config.write(f'[mount]\nmountpoint = "{tmp_path}/nosuch"\n')
    assert "nosuch: it does not exist" in run("mount").err
    assert "nosuch: no imagefs is mounted there" in run("umount").err


def test_umount_of_something_else_is_refused(run: Run, tmp_path: Path) -> None:
    """Only an imagefs is unmounted."""
    found = run("umount", tmp_path)
    assert (found.status, found.err) == (1, f"imagefs: umount {tmp_path}: no imagefs is mounted there\n")


def test_umount_waits_for_the_daemon(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns when the process that served the mount has ended, so that the next mount finds the state directory free."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        (tmp_path / "mounts").write_bytes(f"imagefs {tmp_path} fuse.imagefs rw 0 0\n".encode())
        monkeypatch.setattr(umount, "read_attribute", lambda *_: str(process.pid))

        def unmount(_: Path) -> None:
            assert process.stdin is not None
            process.stdin.close()

        monkeypatch.setattr(umount, "_unmount", unmount)
        assert run("umount", tmp_path).status == 0
        assert process.poll() is not None


def test_a_daemon_that_does_not_end_is_told_of(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the patience is over the line says what to do."""
    (tmp_path / "mounts").write_bytes(f"imagefs {tmp_path} fuse.imagefs rw 0 0\n".encode())
    monkeypatch.setattr(umount, "read_attribute", lambda *_: str(os.getpid()))
    monkeypatch.setattr(umount, "_unmount", lambda _: None)
    monkeypatch.setattr(umount, "PATIENCE", 0.0)
    found = run("umount", tmp_path)
    assert found.status == 1
    assert "its daemon still writes" in found.err


def test_a_busy_mount_names_who_uses_it(tmp_path: Path) -> None:
    """An open file and a working directory below the mount are found, without asking the mount."""
    (tmp_path / "instances").mkdir()
    with (tmp_path / "instances" / "vda").open("wb"):
        assert any(f"(pid {os.getpid()})" in user for user in find_users(tmp_path / "instances"))
    assert find_users(tmp_path / "nosuch") == []


def test_a_failed_umount_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool's own line is passed on, and "busy" becomes advice."""
    for said, kind, reason in (
        ("umount: /x: target is busy.", Busy, "stop the guests"),
        ("umount: /x: not permitted.", MountFailed, "not permitted"),
    ):
        child = subprocess.CompletedProcess([], 32, "", said)
        monkeypatch.setattr("subprocess.run", lambda *_, child=child, **__: child)
        with pytest.raises(kind, match=reason):
            umount._unmount(tmp_path)


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands of daemons that mount.imagefs starts."""
    started: list[list[str]] = []
    monkeypatch.setattr(mount, "start", lambda command, _: started.append(command))
    monkeypatch.setattr(mount, "_FUSE", tmp_path)
    (tmp_path / "mnt").mkdir()
    return started


def run_helper(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["mount.imagefs", *arguments])
    monkeypatch.setattr(mount_helper, "end_on_sigterm", lambda: None)
    with pytest.raises(SystemExit) as caught:
        mount_helper.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_mount_imagefs_takes_what_mount_passes(helper: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is a store, or the word for the configured one; flags of mount(8) are accepted."""
    target = str(tmp_path / "mnt")
    assert run_helper(monkeypatch, "s3://images/prod", target, "-sn", "-o", "rw,allow_other,nofail", "-t", "fuse.imagefs") == 0
    assert helper[0][-4:] == ["-orw,allow_other,nofail", "-ostore.url=s3://images/prod", "--", target]
    assert run_helper(monkeypatch, "imagefs", target, "-v") == 0
    assert helper[1][-2:] == ["--", target]
    assert not any(word.startswith("-o") for word in helper[1])
    assert run_helper(monkeypatch, "imagefs", target, "-f") == 0
    assert len(helper) == 2


def test_mount_imagefs_ends_as_mount_expects(helper: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 for a wrong command line, 32 for a mount that failed."""
    assert run_helper(monkeypatch, "imagefs") == 1
    assert run_helper(monkeypatch, "imagefs", str(tmp_path / "nosuch")) == 32
    assert run_helper(monkeypatch, "ftp://x", str(tmp_path / "mnt")) == 32
    assert helper == []


def test_foreground_is_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """It says ok when the mount is usable, and from then on its output is in the log of the state directory."""
    code = (
        "import sys, types, logging\n"
        "fake = types.ModuleType('imagefs.daemon')\n"
        "def serve(config, mountpoint, ready):\n"
        "    logging.getLogger('x').info('hidden'); logging.getLogger('x').warning('early')\n"
        "    config.state.dir.mkdir(exist_ok=True); ready()\n"
        "    logging.getLogger('x').info('served'); print('printed', flush=True)\n"
        "fake.serve = serve\n"
        "sys.modules['imagefs.daemon'] = fake\n"
        "from imagefs.cli.main import main\n"
        "main()\n"
    )
    (tmp_path / "mnt").mkdir()
    reading, writing = os.pipe()
    arguments = ["mount", "--foreground", f"--ready-descriptor={writing}", str(tmp_path / "mnt")]
    root = Path(errors.__file__).parents[2]
    child = subprocess.run(
        [sys.executable, "-c", code, *arguments], pass_fds=[writing], cwd=root, capture_output=True, text=True, check=False, timeout=60
    )
    os.close(writing)
    assert os.read(reading, 10) == b"ok"
    os.close(reading)
    assert child.returncode == 0
    assert "early" in child.stderr
    assert "hidden" not in child.stderr
    logged = (tmp_path / "state" / "imagefs.log").read_text()
    assert "served" in logged
    assert "printed" in logged
    assert (tmp_path / "state" / "imagefs.log").stat().st_mode & 0o777 == 0o600

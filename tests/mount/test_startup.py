"""Tests of what keeps a mount from being made: one clear line, exit status 1 or 2, and nothing left behind."""

import os
import pwd
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import IMAGEFS, filesystem_type, mounted, run_imagefs, start_mount, take_down, write_config

pytestmark = pytest.mark.mount


def refused(config: Path, mountpoint: Path, *, lines: int = 1, **environment: str) -> str:
    """Try to mount, in the background; assert that it fails with status 1 and so many lines, and return them."""
    done = subprocess.run(
        [*IMAGEFS, "-c", str(config), "mount", str(mountpoint)], capture_output=True, text=True, timeout=90, check=False, env=os.environ | environment
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == lines, done.stderr
    if mountpoint.exists():
        assert filesystem_type(mountpoint) != "fuseblk"
    return done.stderr


def has_ended(pid: int) -> bool:
    """Tell whether a process is gone, or only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_mount_in_the_background_is_usable_when_it_returns(tmp_path: Path) -> None:
    """Mount returns once the tree can be read, umount once the daemon is gone; then both can be done again."""
    config = write_config(tmp_path)
    for _ in range(2):
        run_imagefs(config, "mount", str(tmp_path / "mnt"))
        assert "images" in os.listdir(tmp_path / "mnt")
        assert filesystem_type(tmp_path / "mnt") == "fuseblk"
        pid = int(os.getxattr(tmp_path / "mnt", "user.imagefs.pid"))
        run_imagefs(config, "umount", str(tmp_path / "mnt"))
        assert os.listdir(tmp_path / "mnt") == []
        assert has_ended(pid)


def test_mount_without_standard_descriptors(tmp_path: Path) -> None:
    """Whoever starts the command with standard input, output and error closed, as some daemons do, gets a usable mount and status 0 as well."""
    config = write_config(tmp_path)
    closing = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    try:
        done = subprocess.run([*closing, *IMAGEFS, "-c", str(config), "mount"], timeout=90, check=False)
        assert done.returncode == 0
        assert filesystem_type(tmp_path / "mnt") == "fuseblk"
        assert "ok" not in (tmp_path / "state" / "imagefs.log").read_text().split()
        assert subprocess.run([*closing, *IMAGEFS, "-c", str(config), "image", "list"], timeout=90, check=False).returncode == 0
    finally:
        run_imagefs(config, "umount", check=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_unmounts(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM and SIGINT end the daemon and its mount, with exit status 0."""
    config = write_config(tmp_path)
    process = subprocess.Popen([*IMAGEFS, "-c", str(config), "mount", "--foreground", str(tmp_path / "mnt")], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        while filesystem_type(tmp_path / "mnt") != "fuseblk" and time.monotonic() < deadline:
            time.sleep(0.05)
        while not os.path.isdir(tmp_path / "mnt" / "images"):
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(20) == 0
        assert filesystem_type(tmp_path / "mnt") != "fuseblk"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_mount_point_must_be_an_empty_directory(tmp_path: Path) -> None:
    """A mount point that is missing, a file, not empty or mounted already is named in the refusal."""
    config = write_config(tmp_path)
    assert "missing" in refused(config, tmp_path / "missing")
    (tmp_path / "file").write_text("")
    assert "not a directory" in refused(config, tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    assert "not empty" in refused(config, tmp_path / "full")
    with mounted(tmp_path, config):
        done = subprocess.run([*IMAGEFS, "-c", str(config), "mount", str(tmp_path / "mnt")], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "mounted" in done.stderr


def test_state_directory_belongs_to_one_mount(tmp_path: Path) -> None:
    """A second mount on the same state directory is refused, and says who has it."""
    config = write_config(tmp_path)
    (tmp_path / "other").mkdir()
    with mounted(tmp_path, config) as mount:
        line = refused(config, tmp_path / "other")
        assert str(tmp_path / "state") in line
        assert str(mount.process.pid) in line


def test_missing_store_directory_is_refused(tmp_path: Path) -> None:
    """A store directory that is not there is named."""
    config = write_config(tmp_path, store=(tmp_path / "nowhere").as_uri())
    assert str(tmp_path / "nowhere") in refused(config, tmp_path / "mnt")


def test_store_url_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    """A URL that no store understands is a mistake in the configuration."""
    config = write_config(tmp_path, store="ftp://example/store")
    assert "ftp" in refused(config, tmp_path / "mnt")


def test_unknown_keys_are_all_named(tmp_path: Path) -> None:
    """All mistakes of a configuration are reported at once, each with its key."""
    config = write_config(tmp_path, extra='[nonsense]\nx = 1\n[flavors."f"]\nvcpu = 1\nvcpus = 1\nram = 1\ndisk = "x"\n')
    line = refused(config, tmp_path / "mnt", lines=3)
    assert "nonsense" in line
    assert "vcpu" in line
    assert str(config) in line


def test_endpoint_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    """An S3 endpoint that refuses connections is named, and no credential is."""
    config = write_config(tmp_path, store="s3://bucket/images", extra='[store.s3]\nendpoint_url = "http://127.0.0.1:9"\nregion = "us-east-1"\n')
    line = refused(config, tmp_path / "mnt", AWS_ACCESS_KEY_ID="AKIAEXAMPLE", AWS_SECRET_ACCESS_KEY="s3cr3t-canary", AWS_EC2_METADATA_DISABLED="true")
    assert "127.0.0.1:9" in line
    assert "s3cr3t-canary" not in line


def test_missing_credentials_are_named(tmp_path: Path) -> None:
    """An S3 store without credentials says that there are none."""
    config = write_config(tmp_path, store="s3://bucket/images", extra='[store.s3]\nendpoint_url = "http://127.0.0.1:9"\nregion = "us-east-1"\n')
    line = refused(
        config,
        tmp_path / "mnt",
        AWS_EC2_METADATA_DISABLED="true",
        AWS_SHARED_CREDENTIALS_FILE="/nonexistent",
        AWS_CONFIG_FILE="/nonexistent",
        HOME=str(tmp_path),
    )
    assert "credential" in line.lower()


def test_instances_survive_a_remount_and_a_killed_daemon(tmp_path: Path) -> None:
    """Instances, what was written to them, their owners and modes are there after a remount, and after kill -9."""
    config = write_config(tmp_path)
    source = tmp_path / "disk.raw"
    source.write_bytes(os.urandom(2 * 1024 * 1024))
    run_imagefs(config, "image", "create", "--disk-format", "raw", "--file", str(source), "disk")
    with mounted(tmp_path, config) as mount:
        mount.imagefs("instance", "create", "web1", "--image", "disk", "--flavor", "m1.tiny")
        vda = mount.mountpoint / "instances" / "web1" / "vda"
        vda.chmod(0o640)
        with vda.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"one" * 5000, 777)
        uuid = os.getxattr(vda.parent, "user.instance_uuid")
    doomed = start_mount(tmp_path, config)
    try:
        assert os.getxattr(vda.parent, "user.instance_uuid") == uuid
        assert vda.stat().st_mode & 0o777 == 0o640
        descriptor = os.open(vda, os.O_RDWR)
        assert os.pread(descriptor, 15000, 777) == b"one" * 5000
        os.pwrite(descriptor, b"two" * 5000, 1_000_777)
        doomed.process.kill()  # acknowledged, never flushed
        doomed.process.wait()
        with pytest.raises(OSError):
            os.close(descriptor)
    finally:
        take_down(doomed)
    with mounted(tmp_path, config), vda.open("rb", buffering=0) as again:
        assert os.pread(again.fileno(), 15000, 777) == b"one" * 5000
        assert os.pread(again.fileno(), 15000, 1_000_777) == b"two" * 5000


@pytest.fixture
def fuse_for_everybody() -> Iterator[None]:
    """/dev/fuse as udev makes it: open to every user. A machine without udev may have it for root only."""
    device = Path("/dev/fuse")
    mode = stat.S_IMODE(device.stat().st_mode)
    device.chmod(0o666)
    yield
    device.chmod(mode)


@pytest.mark.usefixtures("fuse_for_everybody")
def test_unprivileged_user_mounts_through_fusermount(tmp_path: Path) -> None:
    """An ordinary user mounts, makes an instance, writes and unmounts, with the state in a directory of his own."""
    home, user = tmp_path / "home", pwd.getpwnam("games")  # fusermount3 wants to know a name
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == 0 and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o711)
        if directory.name.startswith("pytest-of"):
            break
    home.mkdir()
    (home / "mnt").mkdir()
    source = home / "disk.raw"
    source.write_bytes(b"B" * 1_000_000)
    for path in (home, home / "mnt", source):
        os.chown(path, user.pw_uid, user.pw_gid)
    script = (
        'set -e; cd "$HOME"\n'
        'imagefs() { "$PYTHON" -m imagefs.cli.main "$@"; }\n'
        "imagefs image create --disk-format raw --file disk.raw disk\n"
        "imagefs mount mnt\n"
        "trap 'imagefs umount mnt' EXIT\n"
        "imagefs instance create mine --image disk --flavor m1.tiny\n"
        "stat -c '%U %a' mnt/instances/mine/vda >/dev/null\n"
        "printf hello | dd of=mnt/instances/mine/vda bs=5 seek=1 conv=notrunc,fsync status=none\n"
        "head -c 15 mnt/instances/mine/vda; echo\n"
        "stat -f -c %T mnt\n"
        "rmdir mnt/instances/mine\n"
    )
    as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    may_reach_the_interpreter = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    done = subprocess.run(
        [*as_user, *may_reach_the_interpreter, "bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "PYTHON": sys.executable, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=home,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BBBBBhelloBBBBB" in done.stdout
    assert "fuseblk" in done.stdout

"""Finding the mount that is meant."""

import errno
import os
from pathlib import Path

import pytest

from imagefs.cli.mountpoint import check_part, explained, parse_mounts, read_attributes
from imagefs.errors import Busy, ImagefsError, InvalidInput, MountFailed
from tests.support.commands import Run
from tests.support.fake_mount import FakeMount, set_attributes


def test_only_imagefs_counts_and_names_are_decoded() -> None:
    """The kernel writes blanks, tabs and backslashes as octal numbers."""
    table = b"/dev/sda / ext4 rw 0 0\nimagefs /mnt/a\\040b\\134c fuse.imagefs rw 0 0\nx /mnt/s fuse.sshfs rw 0 0\n"
    table += b"imagefs /mnt/\xc3\xa9 fuse.imagefs rw 0 0\n\n"
    assert parse_mounts(table) == [Path("/mnt/a b\\c"), Path("/mnt/é")]


def test_the_only_mount_is_meant(run: Run, mount: FakeMount) -> None:
    """With one mount nothing need be said."""
    assert run("status", "-f", "value", "-c", "mountpoint").out == f"{mount.path}\n"


def test_no_mount_is_an_error(run: Run) -> None:
    """Without any mount the line says how to get one."""
    found = run("image", "list")
    assert (found.status, found.err) == (1, "imagefs: no imagefs is mounted: mount one with imagefs mount MOUNTPOINT\n")


def test_of_several_mounts_one_must_be_chosen(run: Run, mount: FakeMount, tmp_path: Path) -> None:
    """The line names them all; -m chooses, and so does the configuration."""
    other = FakeMount(tmp_path / "other")
    (tmp_path / "mounts").write_bytes(f"imagefs {mount.path} fuse.imagefs rw 0 0\nimagefs {other.path} fuse.imagefs rw 0 0\n".encode())
    found = run("image", "list")
    assert found.status == 1
    assert f"{mount.path}, {other.path}" in found.err
    assert run("-m", other.path, "status", "-f", "value", "-c", "mountpoint").out == f"{other.path}\n"
    with (tmp_path / "imagefs.toml").open("a") as config:
        config.write(f'[mount]\nmountpoint = "{other.path}"\n')
    assert run("status", "-f", "value", "-c", "mountpoint").out == f"{other.path}\n"


def test_a_mount_of_another_user_is_not_meant(run: Run, mount: FakeMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a mount that the kernel does not let the user into, the user's own is the only one."""
    foreign = tmp_path / "foreign"
    (tmp_path / "mounts").write_bytes(f"imagefs {foreign} fuse.imagefs rw 0 0\nimagefs {mount.path} fuse.imagefs rw 0 0\n".encode())
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if path == foreign:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert run("status", "-f", "value", "-c", "mountpoint").out == f"{mount.path}\n"


def test_a_directory_that_is_no_mount_is_refused(run: Run, tmp_path: Path) -> None:
    """-m with something else says so."""
    assert run("-m", tmp_path, "image", "list").err == f"imagefs: no imagefs is mounted at {tmp_path}: mount it with imagefs mount {tmp_path}\n"


@pytest.mark.parametrize(("number", "kind", "text"), [(errno.EBUSY, Busy, "what: no"), (errno.ENOTCONN, MountFailed, "daemon behind /m is gone")])
def test_failures_of_a_mount_are_explained(number: int, kind: type[ImagefsError], text: str) -> None:
    """An errno becomes the error that it stands for."""
    with pytest.raises(kind, match=text), explained("what", Path("/m")):
        raise OSError(number, "no")


def test_the_mounts_own_reason_wins(tmp_path: Path) -> None:
    """user.imagefs.error says more than an errno."""
    set_attributes(tmp_path, {"imagefs.error": "the flavor is too small"})
    with pytest.raises(ImagefsError, match=r"^what: the flavor is too small$"), explained("what", Path("/m"), tmp_path):
        raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0b"])
def test_a_name_never_leads_elsewhere(name: str) -> None:
    """What would be another path is refused before any file operation."""
    with pytest.raises(InvalidInput):
        check_part(name, "an instance")


def test_imagefs_own_attributes_are_no_properties(tmp_path: Path) -> None:
    """user.imagefs.* is left out; values that are not UTF-8 survive."""
    path = tmp_path / "x"
    path.touch()
    set_attributes(path, {"name": "n", "imagefs.cached": "0/1"})
    assert read_attributes(path) == {"name": "n"}

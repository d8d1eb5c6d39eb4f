"""qemu-img's verdict on images."""

import subprocess
from pathlib import Path

import pytest

from imagefs.errors import ImageRefused, Unsupported
from imagefs.image import qemu_img
from imagefs.image.qemu_img import check
from imagefs.units import MIB

pytestmark = pytest.mark.qemu


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sound qcow2 with 1 MiB written."""
    path = tmp_path / "x.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 5 0 1M", path], check=True, capture_output=True)
    return path


def test_a_sound_image_passes(image: Path) -> None:
    """No error, no exception."""
    check(image, "qcow2", "x")


def test_leaked_clusters_are_harmless(image: Path) -> None:
    """Clusters that nothing refers to waste space only."""
    with image.open("ab") as file:
        file.write(bytes(MIB))
    table = int.from_bytes(image.read_bytes()[48:56], "big")
    block = int.from_bytes(image.read_bytes()[table : table + 8], "big")
    with image.open("r+b") as file:
        file.seek(block + 2 * 30)
        file.write(b"\x00\x01")
    assert subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image], check=False, capture_output=True).returncode == 3
    check(image, "qcow2", "x")


def test_a_corrupt_image_is_refused_with_the_reason(image: Path) -> None:
    """An entry that points outside clusters is an error, and the first of qemu-img's lines is passed on."""
    with image.open("r+b") as file:
        file.seek(4 * 65536 + 6)
        file.write(b"\xff\xff")
    with pytest.raises(ImageRefused, match=r"^image x: qemu-img check -f qcow2 finds it unsound: .*: repair it with qemu-img check -r all$"):
        check(image, "qcow2", "x")


def test_the_format_is_never_probed(image: Path, tmp_path: Path) -> None:
    """A file of another format is not checked as what it looks like."""
    other = tmp_path / "x.raw"
    other.write_bytes(bytes(MIB))
    with pytest.raises(ImageRefused, match="not in qcow2 format"):
        check(other, "qcow2", "x")


def test_limits_hold(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that takes too long, or that its limits have ended, refuses the image."""
    monkeypatch.setattr(qemu_img, "WALL_LIMIT", 0.001)
    with pytest.raises(ImageRefused, match=r"did not end within 0\.001 s"):
        check(image, "qcow2", "x")
    monkeypatch.undo()
    (tmp_path / "prlimit").write_text("#!/bin/sh\nkill -XCPU $$\n")
    (tmp_path / "prlimit").chmod(0o755)
    monkeypatch.setattr(qemu_img, "_environment", lambda: {"PATH": str(tmp_path)})
    with pytest.raises(ImageRefused, match="more time or memory"):
        check(image, "qcow2", "x")


def test_missing_tools_are_told(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without qemu-img, and without prlimit, the line says what to install."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(qemu_img, "_environment", lambda: {"PATH": str(tmp_path / "bin")})
    with pytest.raises(Unsupported, match="install util-linux"):
        check(image, "qcow2", "x")
    (tmp_path / "bin" / "prlimit").symlink_to("/usr/bin/prlimit")
    with pytest.raises(Unsupported, match="install qemu-utils"):
        check(image, "qcow2", "x")

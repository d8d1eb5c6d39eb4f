"""Tests of a mount whose store holds images that must not be used: refused with a reason, and the mount lives on."""

import errno
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.store.file import Directory
from imagefs.store.layout import ImagefsLayout
from imagefs.store.record import ImageRecord
from tests.mount.test_images import expect
from tests.support.mounted import Mounted, run_imagefs, start_mount, take_down, write_config
from tests.support.sources import given

pytestmark = pytest.mark.mount
CANARY = b"a secret of the host that no guest may read\n"


def craft(directory: Path) -> dict[str, tuple[Path, str, str]]:
    """Make hostile files; return for each its path, the format that is claimed, and a word that the refusal must have."""
    secret = directory / "secret"
    secret.write_bytes(CANARY * 4000)
    crafted: dict[str, tuple[Path, str, str]] = {}

    def qcow2(name: str, *options: str, size: str = "1M") -> Path:
        path = directory / name
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, size], check=True)
        return path

    crafted["backing"] = (qcow2("backing", "-u", "-b", str(secret), "-F", "raw"), "qcow2", "backing")
    crafted["backing-json"] = (
        qcow2("backing-json", "-u", "-b", 'json:{"driver":"raw","file":{"filename":"/etc/passwd"}}', "-F", "raw"),
        "qcow2",
        "backing",
    )
    crafted["data-file"] = (qcow2("data-file", "-o", f"data_file={directory / 'external'},data_file_raw=on"), "qcow2", "data")
    crafted["hidden"] = (qcow2("hidden"), "raw", "qcow2")
    text = directory / "text"
    text.write_text('# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 8 FLAT "/etc/passwd" 0\n')
    crafted["vmdk"] = (text, "raw", "vmdk")
    cut = directory / "cut"
    cut.write_bytes(qcow2("whole").read_bytes()[:60])
    crafted["cut"] = (cut, "qcow2", "")
    large = bytearray(qcow2("large").read_bytes())
    large[24:32] = (2**63 - 1).to_bytes(8, "big")
    (directory / "large").write_bytes(large)
    crafted["large"] = (directory / "large", "qcow2", "")
    return crafted


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mounted, dict[str, tuple[Path, str, str]]]]:
    """A mount over a store that somebody else filled with hostile images, past every check of `image create`."""
    directory = tmp_path_factory.mktemp("hostile")
    config = write_config(directory)
    crafted = craft(directory)
    bucket = Directory(directory / "store", create=True)
    for name, (path, claimed, _) in crafted.items():
        now = "2026-01-01T00:00:00Z"
        record = ImageRecord(
            id=str(uuid.uuid4()), created_at=now, updated_at=now, name=name, disk_format=claimed, container_format="bare", virtual_size=2**20
        )
        with path.open("rb") as source:
            ImagefsLayout(bucket).create(record, given(source, path.stat().st_size), lambda moved: None)
    mount = start_mount(directory, config)
    try:
        yield mount, crafted
        assert mount.alive()
    finally:
        take_down(mount)


@pytest.mark.parametrize("name", ["backing", "backing-json", "data-file", "hidden", "vmdk", "cut", "large"])
def test_hostile_image_is_refused_at_open(hostile: tuple[Mounted, dict[str, tuple[Path, str, str]]], name: str) -> None:
    """Both views of a hostile image are EIO with the reason, an instance of it is EINVAL, and nothing of the host is shown."""
    mount, crafted = hostile
    word = crafted[name][2]
    image_id = Path(os.readlink(mount.mountpoint / "names" / name)).name
    for part in ("images", "raw"):
        path = mount.mountpoint / part / image_id
        expect(errno.EIO, path.read_bytes)
        reason = os.getxattr(path, "user.imagefs.error").decode()
        assert word in reason
        assert CANARY.decode().strip() not in reason
    instance = mount.mountpoint / "instances" / name
    instance.mkdir()
    expect(errno.EINVAL, os.setxattr, instance, "user.image", name.encode())
    assert word in os.getxattr(instance, "user.imagefs.error").decode()
    assert os.listdir(instance) == []
    instance.rmdir()


def test_hostile_file_is_refused_at_import(hostile: tuple[Mounted, dict[str, tuple[Path, str, str]]]) -> None:
    """`image create` refuses each of them in one line with status 1, and stores nothing."""
    mount, crafted = hostile
    before = sorted(os.listdir(mount.config.parent / "store"))
    for path, claimed, word in crafted.values():
        done = run_imagefs(mount.config, "image", "create", "x", "--disk-format", claimed, "--file", str(path), check=False)
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        assert word in line
        assert done.stdout == ""
    assert sorted(os.listdir(mount.config.parent / "store")) == before


def test_damaged_record_hides_one_image_only(tmp_path: Path) -> None:
    """An image.json that fails its checksum is left out with a warning; the other image is there."""
    config = write_config(tmp_path)
    source = tmp_path / "disk"
    source.write_bytes(b"x" * 100_000)
    for name in ("good", "bad"):
        run_imagefs(config, "image", "create", name, "--disk-format", "raw", "--file", str(source))
    for record in (tmp_path / "store").rglob("image.json"):
        body = record.read_bytes()
        if b'"bad"' in body:
            record.write_bytes(body.replace(b'"bad"', b'"wow"'))
    mount = start_mount(tmp_path, config)
    try:
        assert os.listdir(mount.mountpoint / "names") == ["good"]
        assert "SHA-256" in mount.log.read_text()
    finally:
        take_down(mount)

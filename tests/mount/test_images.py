"""Tests of images/, raw/ and names/ on a real mount."""

import errno
import mmap
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.conftest import QCOW2_ID, RAW_ID, World

pytestmark = pytest.mark.mount


def expect(number: int, operation: object, *arguments: object) -> None:
    """Assert that an operation fails with this errno."""
    assert callable(operation)
    with pytest.raises(OSError) as caught:
        operation(*arguments)
    assert caught.value.errno == number, caught.value


def test_tree_has_the_contracts_directories(world: World) -> None:
    """The root shows what the contract names, and images are listed by id and by name."""
    assert sorted(os.listdir(world.root)) == [".imagefs", "flavors", "images", "instances", "names", "raw", "volumes"]
    assert sorted(os.listdir(world.root / "images")) == [RAW_ID, QCOW2_ID]
    assert sorted(os.listdir(world.root / "raw")) == [RAW_ID, QCOW2_ID]
    assert sorted(os.listdir(world.root / "names")) == ["packed", "plain"]
    assert os.readlink(world.root / "names" / "packed") == f"../images/{QCOW2_ID}"


def test_images_are_the_bytes_as_stored(world: World) -> None:
    """images/<id> is the file that was imported, whole."""
    assert (world.root / "images" / RAW_ID).read_bytes() == world.disk
    assert (world.root / "images" / QCOW2_ID).read_bytes() == world.qcow2_file.read_bytes()
    assert (world.root / "names" / "packed").stat().st_size == world.qcow2_file.stat().st_size


@pytest.mark.parametrize("image_id", [RAW_ID, QCOW2_ID])
def test_raw_is_the_disk_at_every_offset(world: World, image_id: str) -> None:
    """raw/<id> decodes the format: random reads of all alignments, buffered and direct, give the disk's bytes."""
    path = world.root / "raw" / image_id
    assert path.stat().st_size == len(world.disk)
    chance = random.Random(5)
    with path.open("rb", buffering=0) as file:
        for _ in range(200):
            offset = chance.randrange(len(world.disk) + 10)
            length = chance.choice([1, 511, 4096, 65536, 65537, 300_000])
            assert os.pread(file.fileno(), length, offset) == world.disk[offset : offset + length]
    direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        room = mmap.mmap(-1, 65536)
        for _ in range(50):
            offset = chance.randrange(len(world.disk) // 4096) * 4096
            count = os.preadv(direct, [room], offset)
            assert room[:count] == world.disk[offset : offset + 65536]
    finally:
        os.close(direct)


def test_reading_past_the_end_returns_nothing(world: World) -> None:
    """At and past the end there is nothing; across it, what is left."""
    with (world.root / "raw" / QCOW2_ID).open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 100, len(world.disk)) == b""
        assert os.pread(file.fileno(), 100, len(world.disk) + 10**9) == b""
        assert os.pread(file.fileno(), 100, len(world.disk) - 10) == world.disk[-10:]


def test_image_can_be_mapped(world: World) -> None:
    """Mmap of an image shows its bytes."""
    with (world.root / "raw" / QCOW2_ID).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[5_000_000:5_100_000] == world.disk[5_000_000:5_100_000]


def test_parallel_readers_all_get_the_bytes(world: World) -> None:
    """32 readers of the same image at once read the same bytes."""

    def read(number: int) -> bool:
        with (world.root / "raw" / QCOW2_ID).open("rb", buffering=0) as file:
            offset = number % 4 * 1_000_000
            return os.pread(file.fileno(), 200_000, offset) == world.disk[offset : offset + 200_000]

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(read, range(32)))


def test_qemu_img_sees_the_same_disk(world: World) -> None:
    """qemu-img compare finds raw/<id> identical to the file that was imported."""
    for image_id, source, source_format in ((RAW_ID, world.raw_file, "raw"), (QCOW2_ID, world.qcow2_file, "qcow2")):
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", source_format, world.root / "raw" / image_id, source], check=True, timeout=60)


def test_properties_are_xattrs(world: World) -> None:
    """Core attributes and properties are user.* attributes; what the image does not have is absent."""
    path = world.root / "images" / RAW_ID
    shown = {name: os.getxattr(path, name).decode() for name in os.listxattr(path)}
    assert shown["user.id"] == RAW_ID
    assert shown["user.name"] == "plain"
    assert shown["user.status"] == "active"
    assert shown["user.visibility"] == "public"
    assert shown["user.disk_format"] == "raw"
    assert shown["user.container_format"] == "bare"
    assert shown["user.size"] == shown["user.virtual_size"] == str(len(world.disk))
    assert shown["user.hw_disk_bus"] == "virtio"
    assert shown["user.tags"] == '["t1"]'
    assert shown["user.protected"] == "false"
    assert shown["user.os_hash_algo"] == "sha512"
    assert len(shown["user.os_hash_value"]) == 128
    assert "user.owner" not in shown
    expect(errno.ENODATA, os.getxattr, path, "user.nothing")
    assert os.getxattr(world.root / "raw" / RAW_ID, "user.name") == b"plain"


def test_cached_attribute_counts_what_was_fetched(world: World) -> None:
    """user.imagefs.cached is "<bytes cached>/<bytes>": units that were decoded, zeros among them; what lies in the file as it is does not count."""
    path = world.root / "raw" / QCOW2_ID
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 4096, 250_000) == world.disk[250_000:254_096]
    cached, size = os.getxattr(world.root / "raw" / QCOW2_ID, "user.imagefs.cached").split(b"/")
    assert int(size) == len(world.disk)
    assert 0 < int(cached) < len(world.disk)


@pytest.mark.parametrize("part", ["images", "raw", "names", "flavors", "."])
def test_writes_to_the_read_only_parts_fail_with_erofs(world: World, part: str) -> None:
    """Nothing can be made, changed or removed in images/, raw/, names/, flavors/ and the root."""
    directory = world.root / part
    expect(errno.EROFS, os.mkdir, directory / "new")
    expect(errno.EROFS, os.open, directory / "new", os.O_CREAT | os.O_WRONLY)
    expect(errno.EROFS, os.symlink, "target", directory / "new")
    assert os.access(directory, os.R_OK | os.X_OK)
    assert not os.access(directory, os.W_OK)
    for name in os.listdir(directory):
        path = directory / name
        if path.is_dir():
            continue
        expect(errno.EROFS, os.unlink, path)
        if not path.is_symlink():
            expect(errno.EROFS, os.open, path, os.O_WRONLY)
            expect(errno.EROFS, os.open, path, os.O_RDWR)
            assert os.access(path, os.R_OK)
            assert not os.access(path, os.W_OK)
            expect(errno.EROFS, os.truncate, path, 0)
            expect(errno.EROFS, os.chmod, path, 0o600)
            expect(errno.EROFS, os.rename, path, directory / "other")


def test_image_modes_and_sizes(world: World) -> None:
    """Images are 0444; an unknown image is not there."""
    assert (world.root / "images" / RAW_ID).stat().st_mode & 0o7777 == 0o444
    expect(errno.ENOENT, os.stat, world.root / "images" / "33333333-3333-4333-8333-333333333333")
    expect(errno.ENOENT, os.stat, world.root / "images" / "nothing")


def test_flavors_are_json_files(world: World) -> None:
    """flavors/ has the built-in flavors and the configured ones, in the contract's form."""
    import json

    assert {"m1.tiny", "m1.small", "m1.medium", "m1.large", "m1.xlarge", "small", "same"} <= set(os.listdir(world.root / "flavors"))
    shown = json.loads((world.root / "flavors" / "m1.small").read_text())
    assert {key: shown[key] for key in ("name", "vcpus", "ram", "disk", "ephemeral", "swap", "is_public")} == {
        "name": "m1.small",
        "vcpus": 1,
        "ram": 2048,
        "disk": 20,
        "ephemeral": 0,
        "swap": 0,
        "is_public": True,
    }
    assert "id" in shown


def test_status_files(world: World) -> None:
    """.imagefs/ shows the version, and statistics that count reads."""
    assert (world.root / ".imagefs" / "version").read_text().strip() == os.getxattr(world.root, "user.imagefs.version").decode()
    before = world.mount.stats()["reads"]
    with (world.root / "raw" / RAW_ID).open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.read(4096)
    assert world.mount.stats()["reads"] > before


def test_other_users_are_kept_out(world: World) -> None:
    """Another user's process does not get in: not even a stat of the root."""
    done = subprocess.run(
        ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "ls", world.root], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Permission denied" in done.stderr


def test_image_appears_and_goes_without_a_remount(world: World, tmp_path: Path) -> None:
    """An image that is created is there at once, and gone at once when deleted."""
    source = tmp_path / "extra.raw"
    source.write_bytes(b"extra" * 1000)
    image_id = "44444444-4444-4444-8444-444444444444"
    world.mount.imagefs("image", "create", "--id", image_id, "--disk-format", "raw", "--file", str(source), "extra")
    assert (world.root / "names" / "extra").read_bytes() == source.read_bytes()
    world.mount.imagefs("image", "delete", "extra")
    assert "extra" not in os.listdir(world.root / "names")
    expect(errno.ENOENT, os.stat, world.root / "images" / image_id)

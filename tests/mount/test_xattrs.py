"""Tests of properties as extended attributes on a real mount, through the tools that users have."""

import errno
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.config import load
from imagefs.store.configured import open_configured
from imagefs.store.record import ImageRecord
from tests.mount.conftest import RAW_ID, World
from tests.support.mounted import mounted, run_imagefs, write_config

pytestmark = pytest.mark.mount


@pytest.fixture
def image(world: World) -> Iterator[Path]:
    """An image of its own for each test."""
    source = world.raw_file.parent / "small.raw"
    source.write_bytes(b"small" * 1000)
    world.mount.imagefs("image", "create", "--disk-format", "raw", "--file", str(source), "--property", "os_distro=debian", "changing")
    path = world.root / "images" / os.path.basename(os.readlink(world.root / "names" / "changing"))
    yield path
    world.mount.imagefs("image", "delete", "--", path.name)


def stored(world: World, path: Path) -> ImageRecord:
    """Return the record as the store has it."""
    return open_configured(load(world.mount.config).store).find(path.name).record


def fails(number: int, operation: object, *arguments: object) -> None:
    """Assert that a call fails with this errno."""
    assert callable(operation)
    with pytest.raises(OSError) as caught:
        operation(*arguments)
    assert caught.value.errno == number, caught.value


def tool(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a tool; it must succeed."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True, timeout=60)


def test_a_property_is_set_shown_and_removed_by_the_tools(world: World, image: Path) -> None:
    """setfattr, getfattr -d and setfattr -x add, show and remove a property, at once on both faces and durably in the store."""
    tool("setfattr", "-n", "user.hw_disk_bus", "-v", "scsi", image)
    shown = tool("getfattr", "-d", "--absolute-names", world.root / "raw" / image.name).stdout
    assert 'user.hw_disk_bus="scsi"' in shown
    assert 'user.os_distro="debian"' in shown
    assert 'user.status="active"' in shown
    assert stored(world, image).properties == {"os_distro": "debian", "hw_disk_bus": "scsi"}
    tool("setfattr", "-x", "user.hw_disk_bus", world.root / "raw" / image.name)
    fails(errno.ENODATA, os.getxattr, image, "user.hw_disk_bus")
    assert stored(world, image).properties == {"os_distro": "debian"}


def test_flags_of_setxattr(image: Path) -> None:
    """XATTR_CREATE and XATTR_REPLACE fail as xattr(7) says, for properties and for core attributes."""
    fails(errno.EEXIST, os.setxattr, image, "user.os_distro", b"x", os.XATTR_CREATE)
    fails(errno.ENODATA, os.setxattr, image, "user.new", b"x", os.XATTR_REPLACE)
    os.setxattr(image, "user.new", b"one", os.XATTR_CREATE)
    os.setxattr(image, "user.new", b"two", os.XATTR_REPLACE)
    assert os.getxattr(image, "user.new") == b"two"
    os.setxattr(image, "user.new", b"")
    assert os.getxattr(image, "user.new") == b""
    fails(errno.EEXIST, os.setxattr, image, "user.name", b"x", os.XATTR_CREATE)
    fails(errno.ENODATA, os.removexattr, image, "user.never")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("name", "another name", "another name"),
        ("visibility", "community", "community"),
        ("protected", "true", "true"),
        ("os_hidden", "TRUE", "true"),
        ("min_disk", "7", "7"),
        ("min_ram", "1024\n", "1024"),
        ("tags", '["b", "a"]', '["b", "a"]'),
    ],
)
def test_writable_core_attributes(world: World, image: Path, name: str, value: str, shown: str) -> None:
    """The writable core attributes take text, are typed in the store, and show their canonical form."""
    os.setxattr(image, f"user.{name}", value.encode())
    got = os.getxattr(image, f"user.{name}").decode()
    assert (json.loads(got), sorted(json.loads(got))) == (json.loads(got), ["a", "b"]) if name == "tags" else got == shown
    kept = getattr(stored(world, image), name)
    assert isinstance(kept, {"protected": bool, "os_hidden": bool, "min_disk": int, "min_ram": int, "tags": tuple}.get(name, str))
    if name == "protected":
        os.setxattr(image, "user.protected", b"false")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("visibility", b"secret"),
        ("protected", b"maybe"),
        ("min_disk", b"-1"),
        ("min_disk", b"1.5"),
        ("min_ram", b"99999999999999"),
        ("tags", b"not json"),
        ("tags", b'{"a": 1}'),
        ("tags", b"[1]"),
        ("tags", json.dumps(["x" * 256]).encode()),
        ("name", b"n" * 256),
        ("name", b"\xff\xfe"),
        ("hw_disk_bus", b"\xff\xfe binary"),
    ],
)
def test_values_that_cannot_be_are_refused_with_a_reason(world: World, image: Path, name: str, value: bytes) -> None:
    """A bad value gives EINVAL, the reason in user.imagefs.error, and changes nothing."""
    before = stored(world, image)
    fails(errno.EINVAL, os.setxattr, image, f"user.{name}", value)
    assert name.removesuffix("s") in os.getxattr(image, "user.imagefs.error").decode()
    assert stored(world, image) == before


@pytest.mark.parametrize(
    "name", ["id", "status", "size", "checksum", "os_hash_value", "owner", "disk_format", "created_at", "deleted", "location", "os_glance_x", "self"]
)
def test_what_is_read_only_or_reserved_is_refused(world: World, image: Path, name: str) -> None:
    """Read-only core attributes and reserved names cannot be written or removed."""
    before = stored(world, image)
    fails(errno.EPERM, os.setxattr, image, f"user.{name}", b"1")
    with pytest.raises(OSError, match=r"not permitted|No data"):
        os.removexattr(image, f"user.{name}")
    assert stored(world, image) == before
    fails(errno.EPERM, os.removexattr, image, "user.name")


def test_names_of_all_kinds(world: World, image: Path) -> None:
    """Names with slashes, blanks, other scripts and up to 250 bytes are properties; bytes that are not UTF-8 are not."""
    for name in ("a/b", "with blank", "ключ", "x" * 250, "trailing\n", "..", "=", "имя/" * 10):
        os.setxattr(image, f"user.{name}", b"v")
        assert os.getxattr(image, f"user.{name}") == b"v"
        assert f"user.{name}" in os.listxattr(image)
        assert stored(world, image).properties[name] == "v"
        os.removexattr(image, f"user.{name}")
    fails(errno.EINVAL, os.setxattr, image, b"user.\xff\xfe", b"v")
    fails(errno.ENODATA, os.getxattr, image, b"user.\xff\xfe")
    fails(errno.EOPNOTSUPP, os.setxattr, image, "trusted.x", b"v")
    fails(errno.ERANGE, os.setxattr, image, "user." + "x" * 251, b"v")


def test_the_limits_of_linux(world: World, image: Path) -> None:
    """Values of 64 KiB fit; what does not fit an attribute is left out, counted, and shown by `image show`."""
    os.setxattr(image, "user.long", b"v" * 65536)
    assert len(os.getxattr(image, "user.long")) == 65536
    fails(errno.E2BIG, os.setxattr, image, "user.long", b"v" * 65537)
    store = open_configured(load(world.mount.config).store)
    huge = {"y" * 300: "name", "value": "x" * 65537, **{f"{number:03d}" + "z" * 240: "v" for number in range(300)}}

    def enlarged(record: ImageRecord) -> ImageRecord:
        import msgspec

        return msgspec.structs.replace(record, properties=huge)

    store.update(image.name, enlarged)
    os.setxattr(world.root, "user.imagefs.refresh", b"")
    names = os.listxattr(image)
    assert sum(len(name.encode()) + 1 for name in names) <= 65536
    omitted = int(os.getxattr(image, "user.imagefs.omitted"))
    assert omitted >= 2
    assert len([name for name in names if "zzz" in name]) == len(huge) - omitted
    shown = json.loads(world.mount.imagefs("image", "show", "-f", "json", image.name).stdout)
    assert shown["y" * 300] == "name"
    assert huge.items() <= shown.items()


def test_quotas(world: World, image: Path) -> None:
    """The 129th property is refused with EDQUOT, one that is there can still be changed; so with 129 tags."""
    for number in range(127):
        os.setxattr(image, f"user.p{number}", b"v")
    fails(errno.EDQUOT, os.setxattr, image, "user.one_more", b"v")
    os.setxattr(image, "user.p5", b"w")
    fails(errno.EDQUOT, os.setxattr, image, "user.tags", json.dumps([f"t{number}" for number in range(129)]).encode())
    os.setxattr(image, "user.tags", json.dumps([f"t{number}" for number in range(128)]).encode())
    assert len(stored(world, image).properties) == 128


@pytest.mark.parametrize("copy", [("cp", "-a"), ("rsync", "-aX")], ids=["cp", "rsync"])
def test_copies_carry_the_properties(world: World, tmp_path: Path, copy: tuple[str, ...]) -> None:
    """Copying an image with its attributes to a filesystem that has them carries bytes and properties."""
    target = tmp_path / "copy"
    tool(*copy, world.root / "images" / RAW_ID, target)
    assert target.read_bytes() == world.disk
    for name in ("hw_disk_bus", "name", "tags", "status", "os_hash_value"):
        assert os.getxattr(target, f"user.{name}") == os.getxattr(world.root / "images" / RAW_ID, f"user.{name}")


def test_writers_on_two_nodes_lose_no_key(world: World, image: Path, tmp_path: Path) -> None:
    """Two mounts of one store, with two writers each, set keys of one image at once: all are there afterwards."""
    url = load(world.mount.config).store.url
    config = write_config(tmp_path, store=url)
    with mounted(tmp_path, config) as other:
        paths = [image, other.mountpoint / "images" / image.name] * 2

        def write(writer: int) -> None:
            for number in range(15):
                os.setxattr(paths[writer], f"user.w{writer}_{number}", str(number).encode())
                if number % 5 == 4:
                    os.removexattr(paths[writer], f"user.w{writer}_{number - 1}")

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = {f"w{writer}_{number}": str(number) for writer in range(4) for number in range(15) if number % 5 != 3}
        assert stored(world, image).properties == {"os_distro": "debian", **expected}
        for mount in (world.mount, other):
            os.setxattr(mount.mountpoint, "user.imagefs.refresh", b"")
            assert os.getxattr(mount.mountpoint / "images" / image.name, "user.w3_14") == b"14"


def test_a_key_is_created_once_by_one_of_many(world: World, image: Path, tmp_path: Path) -> None:
    """XATTR_CREATE of one name from two nodes at once succeeds for exactly one: the store decides, not what a node remembers."""
    config = write_config(tmp_path, store=load(world.mount.config).store.url)
    with mounted(tmp_path, config) as other:
        paths = [image, other.mountpoint / "images" / image.name]
        wins: list[tuple[int, int]] = []
        gate = threading.Barrier(2)

        def create(writer: int) -> None:
            for number in range(10):
                gate.wait()
                try:
                    os.setxattr(paths[writer], f"user.lock{number}", str(writer).encode(), os.XATTR_CREATE)
                except FileExistsError:
                    continue
                wins.append((number, writer))

        threads = [threading.Thread(target=create, args=(writer,)) for writer in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(number for number, _ in wins) == list(range(10))
        assert stored(world, image).properties == {"os_distro": "debian", **{f"lock{number}": str(writer) for number, writer in wins}}


def test_a_store_that_is_only_read_says_so(tmp_path: Path) -> None:
    """Properties of a flat store cannot be written: EROFS, with the reason."""
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "disk.raw").write_bytes(b"flat" * 1000)
    config = write_config(tmp_path, store=(tmp_path / "flat").as_uri())
    config.write_text(config.read_text().replace("[state]", 'layout = "flat"\n[state]', 1))
    with mounted(tmp_path, config) as mount:
        (path,) = (mount.mountpoint / "images").iterdir()
        fails(errno.EROFS, os.setxattr, path, "user.x", b"1")
        assert os.getxattr(path, "user.imagefs.error")
    assert run_imagefs(config, "--version").returncode == 0

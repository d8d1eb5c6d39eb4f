"""The disk cache on a real mount: prefetched, pinned, shown, pruned and verified, by the real command and by plain file operations."""

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import QCOW2_ID, RAW_ID, World
from tests.support.mounted import Mounted, mounted, run_imagefs, start_mount, take_down, write_config
from tests.support.pictures import MIB, disk_bytes, write_qcow2, write_raw
from tests.support.user import open_the_way, user

pytestmark = pytest.mark.mount

READER, CURATOR = 62002, 62007
MISSING = "99999999-9999-4999-8999-999999999999"


def caches(mount: Mounted) -> dict[tuple[str, str], dict[str, object]]:
    """Return what .imagefs/cache says, by image and space."""
    lines = (mount.mountpoint / ".imagefs" / "cache").read_text().splitlines()
    return {(line["image"], line["space"]): line for line in map(json.loads, lines)}


def refused(number: int, operation: object, *arguments: object) -> None:
    """Assert that an operation fails with this errno."""
    assert callable(operation)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        operation(*arguments)
    assert caught.value.errno == number


def settled_state(path: Path) -> str:
    """Return what becomes of a prefetch."""
    deadline = time.monotonic() + 60
    while (state := os.getxattr(path, "user.imagefs.prefetch").decode()).startswith(("boot", "all")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return state


def test_prefetch(world: World) -> None:
    """Setting the attribute begins it in the background; images of a local store, which are read where they lie, need no bringing."""
    path = world.root / "raw" / QCOW2_ID
    assert os.getxattr(path, "user.imagefs.prefetch") == b"none"
    os.setxattr(path, "user.imagefs.prefetch", b"all")
    assert settled_state(path) == "done"
    assert path.read_bytes() == world.disk
    line = caches(world.mount)[QCOW2_ID, "guest"]
    assert line["name"] == "packed"
    assert 0 < int(str(line["cached"])) <= int(str(line["size"])) == len(world.disk)
    done = world.mount.imagefs("image", "prefetch", "--all", "--wait", "packed", "plain")
    assert done.stdout == done.stderr == ""


def test_prefetch_that_is_wrong(world: World) -> None:
    """Other words are EINVAL with a reason, and an image that is not there is one line and status 1."""
    path = world.root / "images" / RAW_ID
    refused(errno.EINVAL, os.setxattr, path, "user.imagefs.prefetch", b"some")
    assert b"boot, all or none" in os.getxattr(path, "user.imagefs.error")
    os.setxattr(path, "user.imagefs.prefetch", b"none")
    refused(errno.EEXIST, os.setxattr, path, "user.imagefs.prefetch", b"boot", os.XATTR_CREATE)
    done = world.mount.imagefs("image", "prefetch", "nothing", "plain", check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "nothing" in done.stderr


def test_pin(world: World) -> None:
    """A pin is true or false, on both faces at once; other words are EINVAL; the list says which images are pinned."""
    path, other = world.root / "images" / QCOW2_ID, world.root / "raw" / QCOW2_ID
    (world.root / "raw" / QCOW2_ID).read_bytes()
    assert os.getxattr(path, "user.imagefs.pin") == b"false"
    os.setxattr(path, "user.imagefs.pin", b"true")
    assert os.getxattr(other, "user.imagefs.pin") == b"true"
    assert all(line["pinned"] == (image == QCOW2_ID) for (image, _), line in caches(world.mount).items())
    refused(errno.EINVAL, os.setxattr, path, "user.imagefs.pin", b"maybe")
    refused(errno.EPERM, os.removexattr, path, "user.imagefs.pin")
    os.setxattr(other, "user.imagefs.pin", b"false")
    assert os.getxattr(path, "user.imagefs.pin") == b"false"


def test_show(world: World) -> None:
    """The table has sizes for people and the sum of them; JSON has bytes; one column can be chosen."""
    (world.root / "raw" / QCOW2_ID).read_bytes()
    table = world.mount.imagefs("cache", "show").stdout
    assert "packed" in table
    assert "MiB of 2.0 GiB in" in table
    rows = json.loads(world.mount.imagefs("cache", "show", "-f", "json").stdout)
    assert {row["Size"] for row in rows if row["Image"] == QCOW2_ID and row["Space"] == "guest"} == {len(world.disk)}
    assert QCOW2_ID in world.mount.imagefs("cache", "show", "-f", "value", "-c", "image").stdout.split()


def test_verify(world: World) -> None:
    """All is sound, of one image too; one that is not there is refused, by id or name."""
    (world.root / "raw" / QCOW2_ID).read_bytes()
    found = json.loads(world.mount.imagefs("cache", "verify", "-f", "json").stdout)
    assert found["damaged"] == 0
    assert found["checked"] > 0
    assert json.loads(world.mount.imagefs("cache", "verify", "-f", "json", "packed").stdout)["damaged"] == 0
    assert world.mount.imagefs("cache", "verify", "nothing", check=False).returncode == 1
    assert json.loads(os.getxattr(world.root, "user.imagefs.cache"))["state"] == "done"


def test_prune(world: World) -> None:
    """Pruning is told by what it freed, and loses nothing."""
    (world.root / "raw" / QCOW2_ID).read_bytes()
    assert int(world.mount.imagefs("cache", "prune", "--all", "-f", "value").stdout) >= 0
    assert int(world.mount.imagefs("cache", "prune", "packed", "-f", "value").stdout) >= 0
    assert int(world.mount.imagefs("cache", "prune", MISSING, "-f", "value").stdout) == 0
    assert (world.root / "raw" / QCOW2_ID).read_bytes() == world.disk


@pytest.mark.parametrize(
    "order", [b"", b"clean", b"prune everything", b"prune all " + RAW_ID.encode() + b" x", b"verify all", b"prune ../..", b"\xff"]
)
def test_orders_that_are_wrong(world: World, order: bytes) -> None:
    """What is no order is EINVAL, with words."""
    refused(errno.EINVAL, os.setxattr, world.root, "user.imagefs.cache", order)
    assert b"user.imagefs.cache" in os.getxattr(world.root, "user.imagefs.error")


def test_top(world: World) -> None:
    """In a pipe one interval is shown, in any format."""
    once = world.mount.imagefs("top", "--once", "--interval", "0.2", "-f", "json").stdout
    fields = json.loads(once)
    assert fields["cache_limit"] == 2 << 30
    assert fields["hit_percent"] is None or 0 <= fields["hit_percent"] <= 100
    assert isinstance(fields["images"], list)
    assert "reads" in world.mount.imagefs("top", "--interval", "0.2").stdout


def test_verify_of_the_store(world: World) -> None:
    """Images in the store are compared with all that is known of them, and one that was changed there is found."""
    rows = json.loads(world.mount.imagefs("image", "verify", "plain", "packed", "-f", "json").stdout)
    assert [row["ID"] for row in rows] == [RAW_ID, QCOW2_ID]
    assert rows[0]["Compared"] == "size, unit digests, sha512, md5"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Mounted]:
    """A mount with a public and a private image, for a reader and for a curator whom the policies let work on the cache."""
    (tmp_path / "policy.yaml").write_text("".join(f'"{name}": "role:admin or role:curator"\n' for name in POLICIES))
    identities = "".join(
        f'[[identity.map]]\nuid = {uid}\nroles = ["reader", "member", "{role}"]\nproject_id = "p{uid}"\n'
        for uid, role in ((READER, "none"), (CURATOR, "curator"))
    )
    config = write_config(tmp_path, extra=f'allow_other = true\n[policy]\npolicy_file = "{tmp_path / "policy.yaml"}"\n{identities}')
    disk = write_qcow2(tmp_path / "disk.qcow2", write_raw(tmp_path / "disk.raw", disk_bytes(2 * MIB)), "-c")
    for image_id, name, how in ((QCOW2_ID, "open", "--public"), (RAW_ID, "secret", "--private")):
        run_imagefs(config, "image", "create", "--id", image_id, how, "--owner", "other", "--file", str(disk), name)
    open_the_way(tmp_path)
    with mounted(tmp_path, config) as mount:
        for image_id in (QCOW2_ID, RAW_ID):
            (mount.mountpoint / "raw" / image_id).read_bytes()
        yield mount


POLICIES = ("cache_image", "cache_list", "cache_delete", "manage_image_cache")


def test_who_may_not(guarded: Mounted) -> None:
    """A caller whom the policies do not name neither sees nor sets anything; images that it does not see are not there for it."""
    root = guarded.mountpoint
    public, private = str(root / "images" / QCOW2_ID), str(root / "images" / RAW_ID)
    with user(READER, READER) as reader:
        assert {"user.imagefs.pin", "user.imagefs.prefetch"}.isdisjoint(reader.call("listxattr", public))
        for name, value in (("user.imagefs.pin", b"true"), ("user.imagefs.prefetch", b"boot")):
            assert reader.errno("getxattr", public, name) == errno.ENODATA
            assert reader.errno("setxattr", public, name, value) == errno.EPERM
            assert reader.errno("setxattr", private, name, value) == errno.ENOENT
        assert reader.errno("read", str(root / ".imagefs" / "cache")) == errno.EACCES
        for order, number in ORDERS:
            assert reader.errno("setxattr", str(root), "user.imagefs.cache", order.encode()) == number
        assert reader.errno("getxattr", str(root), "user.imagefs.cache") == errno.ENODATA


ORDERS = [("prune", errno.EPERM), ("verify", errno.EPERM), (f"prune {QCOW2_ID}", errno.EPERM), (f"verify {QCOW2_ID}", errno.EPERM)]
ORDERS += [(f"prune {RAW_ID}", errno.ENOENT), (f"verify {MISSING}", errno.ENOENT)]


def test_who_may(guarded: Mounted) -> None:
    """A caller whom the policies name sees and does it for the images that it sees, and nothing tells it of others."""
    root = guarded.mountpoint
    public, private = str(root / "images" / QCOW2_ID), str(root / "images" / RAW_ID)
    with user(CURATOR, CURATOR) as curator:
        assert {"user.imagefs.pin", "user.imagefs.prefetch"} <= set(curator.call("listxattr", public))
        curator.call("setxattr", public, "user.imagefs.pin", b"true")
        assert curator.call("getxattr", public, "user.imagefs.pin") == b"true"
        assert curator.errno("setxattr", private, "user.imagefs.pin", b"true") == errno.ENOENT
        text = curator.call("read_all", str(root / ".imagefs" / "cache")).decode()
        assert QCOW2_ID in text
        assert RAW_ID not in text
        assert curator.errno("setxattr", str(root), "user.imagefs.cache", f"verify {RAW_ID}".encode()) == errno.ENOENT
        curator.call("setxattr", str(root), "user.imagefs.cache", f"verify {QCOW2_ID}".encode())
        while b"running" in curator.call("getxattr", str(root), "user.imagefs.cache"):
            time.sleep(0.05)
        assert "user.imagefs.cache" not in os.listxattr(root)  # it was not root's
    assert {image for image, _ in caches(guarded)} == {QCOW2_ID, RAW_ID}


def test_pins_and_caches_survive_a_restart(tmp_path: Path) -> None:
    """A pinned image is pinned after the daemon was killed, also while nobody has it open, and its cache outlives a prune and a full disk."""
    config = write_config(tmp_path, cache="6MiB")
    for image_id, name in ((QCOW2_ID, "kept"), (RAW_ID, "other")):
        disk = write_qcow2(tmp_path / f"{name}.qcow2", write_raw(tmp_path / f"{name}.raw", disk_bytes(4 * MIB)), "-c")
        run_imagefs(config, "image", "create", "--id", image_id, "--file", str(disk), name)
    mount = start_mount(tmp_path, config)
    try:
        assert (mount.mountpoint / "raw" / QCOW2_ID).read_bytes() == disk_bytes(4 * MIB)
        os.setxattr(mount.mountpoint / "raw" / QCOW2_ID, "user.imagefs.pin", b"true")
        mount.process.kill()
        mount.process.wait()
    finally:
        take_down(mount)
    with mounted(tmp_path, config) as again:
        assert os.getxattr(again.mountpoint / "images" / QCOW2_ID, "user.imagefs.pin") == b"true"
        line = caches(again)[QCOW2_ID, "guest"]
        assert line["pinned"]
        assert not line["open"]
        again.imagefs("cache", "prune")
        assert (again.mountpoint / "raw" / RAW_ID).read_bytes() == disk_bytes(4 * MIB)
        assert caches(again)[QCOW2_ID, "guest"]["cached"] == line["cached"]

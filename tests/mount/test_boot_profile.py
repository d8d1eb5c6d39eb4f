"""What one node's guest reads while it boots, another node fetches before its own guest asks: real mounts over a real S3 server."""

import contextlib
import dataclasses
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagefs.profile.record import decode
from imagefs.units import MIB, UNIT
from tests.mount.conftest import RAW_ID
from tests.support.mounted import Mounted, mounted, run_imagefs, write_config
from tests.support.pictures import noise, write_qcow2, write_raw
from tests.support.s3proxy import Fault, FaultProxy
from tests.support.seaweed import Seaweed

pytestmark = [pytest.mark.mount, pytest.mark.s3]

SIZE = 40 * MIB
BOOT = [number * 37 % 639 for number in range(96)]
"""Units in the order in which a guest comes to them: 6 MiB here and there."""


@dataclasses.dataclass
class Nodes:
    """Two nodes, each with a state directory and a mount point of its own, and the store that they share."""

    directory: Path
    prefix: str
    disk: bytes
    proxy: FaultProxy
    server: Seaweed

    @contextlib.contextmanager
    def mounted(self, node: str, *, reader: bool = False, extra: str = "") -> Iterator[Mounted]:
        """Mount on a node; `reader` has keys that may only read."""
        directory = self.directory / node
        directory.mkdir(exist_ok=True)
        with mounted(directory, self.config(node, extra), environment=self.server.environment(reader)) as mount:
            yield mount

    def config(self, node: str, extra: str = "") -> Path:
        """Write a node's configuration. Nothing but boots is to fetch anything."""
        config = write_config(
            self.directory / node,
            store=f"s3://images/{self.prefix}",
            extra=f'[store.s3]\nendpoint_url = "{self.proxy.endpoint_url}"\nregion = "us-east-1"\n',
        )
        config.write_text(config.read_text().replace("[cache]\n", f'[cache]\nhydrate = "off"\n{extra}'))
        return config

    def stored_profile(self, image: str = RAW_ID) -> bytes | None:
        """Return the profile as it lies in the bucket."""
        client = self.server.client()
        try:
            body: bytes = client.get_object(Bucket="images", Key=f"{self.prefix}/{image}/profile")["Body"].read()
        except client.exceptions.NoSuchKey:
            return None
        return body


@pytest.fixture
def nodes(tmp_path: Path, s3_proxy: FaultProxy, seaweed: Seaweed) -> Nodes:
    """A store with one raw image, not mounted yet."""
    found = Nodes(tmp_path, f"boots-{uuid.uuid4()}", noise(SIZE, 7), s3_proxy, seaweed)
    (tmp_path / "one").mkdir()
    raw = write_raw(tmp_path / "disk.raw", found.disk)
    run_imagefs(found.config("one"), "image", "create", "--public", "--id", RAW_ID, "--disk-format", "raw", "--file", str(raw), "plain")
    return found


def instance(mount: Mounted, name: str = "web1", image: str = RAW_ID) -> Path:
    """Make an instance and return the path of its vda."""
    path = mount.mountpoint / "instances" / name
    path.mkdir()
    os.setxattr(path, "user.image", image.encode())
    return path / "vda"


def boot(vda: Path, disk: bytes, units: list[int] = BOOT, *, write: bool = True) -> None:
    """Boot a guest of which the reads are known: 4 KiB of each unit; it writes to its disk, too."""
    descriptor = os.open(vda, os.O_RDWR if write else os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for unit in units:
            assert os.pread(descriptor, 4096, unit * UNIT + 8192) == disk[unit * UNIT + 8192 : unit * UNIT + 12288]
        if write:
            os.pwrite(descriptor, b"mounted" + bytes(4089), 0)
    finally:
        os.close(descriptor)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"after a minute: not {what}"
        time.sleep(0.05)


def test_the_second_node_fetches_ahead_what_the_first_has_read(nodes: Nodes) -> None:
    """The first boot's reads wait for the store one by one; the second's find all of them here, and no more than those were fetched."""
    with nodes.mounted("one") as mount:
        boot(instance(mount), nodes.disk)
        until(lambda: mount.stats()["profile_recorded"] == 1, "recorded")
        first = mount.stats()
    assert first["demand_fills"] > 10
    profile = nodes.stored_profile()
    assert profile is not None
    assert list(decode(profile, "").boots[0].units) == BOOT
    assert (nodes.directory / "one" / "state" / "profiles" / RAW_ID).read_bytes() == profile
    assert nodes.disk[BOOT[5] * UNIT :][:64] not in profile
    with nodes.mounted("other") as mount:
        vda = instance(mount)
        until(lambda: mount.stats()["cache_units_filled"] >= len(BOOT), "fetched ahead")
        before = mount.stats()
        boot(vda, nodes.disk)
        until(lambda: mount.stats()["profile_recorded"] == 1, "recorded")
        after = mount.stats()
    assert before["profile_replays"] == 1
    assert (len(BOOT) - 8) * UNIT <= before["profile_bytes"] < len(BOOT) * UNIT  # the first ones were looked at when the image was opened
    assert after["demand_fills"] == before["demand_fills"] < first["demand_fills"] / 4
    assert after["store_bytes"] <= len(BOOT) * UNIT * 1.1 + 5 * 4096
    assert (after["profile_boot_units"], after["profile_covered_units"], after["profile_wasted_units"]) == (len(BOOT), len(BOOT), 0)
    profile = nodes.stored_profile()
    assert profile is not None
    assert len(decode(profile, "").boots) == 2


def test_a_node_uses_its_own_profile_where_the_store_takes_none(nodes: Nodes) -> None:
    """With an account that may only read, that is said once; after a remount with an empty cache the local profile serves."""
    with nodes.mounted("one", reader=True) as mount:
        for name in ("web1", "web2"):
            boot(instance(mount, name), nodes.disk)
        until(lambda: mount.stats()["profile_recorded"] == 2, "recorded")
        # the second may still be on its way to the file
        until(lambda: len(decode((mount.state / "profiles" / RAW_ID).read_bytes(), "").boots) == 2, "written")
    log = (nodes.directory / "one" / "daemon.log").read_text()
    assert log.count("boot profiles stay on this node") == 1
    assert nodes.stored_profile() is None
    for path in sorted((nodes.directory / "one" / "state" / "cache").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with nodes.mounted("one", reader=True) as mount:
        instance(mount, "web3")
        until(lambda: mount.stats()["cache_units_filled"] >= len(BOOT), "fetched ahead")
        assert mount.stats()["profile_replays"] == 1


def test_boots_of_raw_and_of_packed_images_are_recorded(nodes: Nodes) -> None:
    """Who opens raw/<id> may be a guest, too; and of a qcow2 the units are those of the disk that it shows."""
    packed = str(uuid.uuid4())
    qcow2 = write_qcow2(nodes.directory / "disk.qcow2", nodes.directory / "disk.raw", "-c")
    run_imagefs(nodes.config("one"), "image", "create", "--public", "--id", packed, "--file", str(qcow2), "packed")
    with nodes.mounted("one") as mount:
        boot(mount.mountpoint / "raw" / packed, nodes.disk, write=False)
        until(lambda: nodes.stored_profile(packed) is not None, "stored")
        boot(mount.mountpoint / "raw" / packed, nodes.disk, BOOT[::-1], write=False)  # what it reads is in the kernel's memory in part
    profile = nodes.stored_profile(packed)
    assert profile is not None
    (found,) = decode(profile, "").boots
    assert list(found.units) == BOOT
    with nodes.mounted("other") as mount:
        with (mount.mountpoint / "raw" / packed).open("rb"):
            until(lambda: mount.stats()["cache_units_filled"] >= len(BOOT), "fetched ahead")
        assert mount.stats()["profile_replays"] == 1


def test_what_is_no_boot_leaves_no_profile(nodes: Nodes) -> None:
    """A copy of the disk, a look at its first sectors, and a guest that boots for the second time."""
    with nodes.mounted("one") as mount:
        assert (mount.mountpoint / "raw" / RAW_ID).read_bytes() == nodes.disk
        vda = instance(mount)
        boot(vda, nodes.disk, [0, 1, 638], write=False)
        assert mount.stats()["profile_recorded"] == 0
        boot(vda, nodes.disk)
        until(lambda: mount.stats()["profile_recorded"] == 1, "recorded")
        boot(vda, nodes.disk, BOOT[::-1])
    profile = nodes.stored_profile()
    assert profile is not None
    assert len(decode(profile, "").boots) == 1


def test_a_garbage_profile_is_ignored_and_replaced(nodes: Nodes) -> None:
    """It is a line of the log, the guest boots as from an image without one, and its boot takes the place."""
    nodes.server.client().put_object(Bucket="images", Key=f"{nodes.prefix}/{RAW_ID}/profile", Body=noise(100_000, 5))
    with nodes.mounted("one") as mount:
        boot(instance(mount), nodes.disk)
        until(lambda: nodes.stored_profile() != noise(100_000, 5), "replaced")
        assert mount.stats()["profile_replays"] == 0
    profile = nodes.stored_profile()
    assert profile is not None
    assert list(decode(profile, "").boots[0].units) == BOOT
    assert "a boot profile is not used" in (nodes.directory / "one" / "daemon.log").read_text()


def test_a_store_that_hangs_on_the_profile_does_not_hold_up_a_guest(nodes: Nodes) -> None:
    """The first byte does not wait for it."""
    nodes.proxy.add(Fault.STALL, method="GET", contains="/profile", times=None)
    with nodes.mounted("one") as mount:
        boot(instance(mount), nodes.disk)
        assert mount.stats()["profile_replays"] == 0


def test_a_deleted_image_leaves_no_profile_in_the_store(nodes: Nodes) -> None:
    """It goes with the image."""
    with nodes.mounted("one") as mount:
        boot(instance(mount), nodes.disk)
        until(lambda: nodes.stored_profile() is not None, "stored")
        mount.imagefs("instance", "delete", "web1")
        mount.imagefs("image", "delete", RAW_ID)
        assert nodes.stored_profile() is None


def test_switched_off_nothing_is_recorded_or_brought(nodes: Nodes) -> None:
    """`boot_profiles = false`: only what the guest reads is fetched."""
    with nodes.mounted("one", extra="boot_profiles = false\n") as mount:
        boot(instance(mount), nodes.disk)
        stats = mount.stats()
    assert (stats["profile_recorded"], stats["profile_replays"]) == (0, 0)
    assert nodes.stored_profile() is None
    assert not [request for request in nodes.proxy.requests if "/profile" in request.path]

"""Tests of a mount over a real S3 server, with a fault proxy between the two."""

import dataclasses
import errno
import json
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.conftest import QCOW2_ID, RAW_ID
from tests.mount.test_images import expect
from tests.mount.test_snapshots import finished, patch, request, state
from tests.support.mounted import Mounted, mounted, run_imagefs, start_mount, take_down, write_config
from tests.support.pictures import MIB, disk_bytes, noise, write_qcow2, write_raw
from tests.support.s3proxy import Fault, FaultProxy
from tests.support.seaweed import Seaweed

pytestmark = [pytest.mark.mount, pytest.mark.s3]


@dataclasses.dataclass
class Cloud:
    """A directory with a configuration for a prefix of its own, and what its two images hold."""

    directory: Path
    config: Path
    prefix: str
    disk: bytes
    qcow2: bytes
    proxy: FaultProxy
    server: Seaweed

    @property
    def root(self) -> Path:
        """The mount point."""
        return self.directory / "mnt"

    def data_requests(self) -> int:
        """Return how many GETs of image data the store has seen."""
        return sum(request.method == "GET" and request.path.split("?")[0].endswith("/data") for request in self.proxy.requests)


@pytest.fixture
def cloud(tmp_path: Path, s3_proxy: FaultProxy, seaweed: Seaweed) -> Cloud:
    """An S3 store with a raw and a compressed qcow2 image of one disk, not mounted yet."""
    prefix = f"mount-{uuid.uuid4()}"
    extra = f'[store.s3]\nendpoint_url = "{s3_proxy.endpoint_url}"\nregion = "us-east-1"\n'
    config = write_config(tmp_path, store=f"s3://images/{prefix}", extra=extra)
    # these tests count requests; boot profiles have their own
    config.write_text(config.read_text().replace("[cache]\n", "[cache]\nboot_profiles = false\n"))
    disk = disk_bytes(6 * MIB)
    raw = write_raw(tmp_path / "disk.raw", disk)
    qcow2 = write_qcow2(tmp_path / "disk.qcow2", raw, "-c")
    run_imagefs(config, "image", "create", "--public", "--id", RAW_ID, "--disk-format", "raw", "--file", str(raw), "plain")
    run_imagefs(config, "image", "create", "--public", "--id", QCOW2_ID, "--file", str(qcow2), "packed")
    s3_proxy.requests.clear()
    return Cloud(tmp_path, config, prefix, disk, qcow2.read_bytes(), s3_proxy, seaweed)


@pytest.fixture
def mount(cloud: Cloud) -> Iterator[Mounted]:
    """The store of `cloud`, mounted."""
    with mounted(cloud.directory, cloud.config) as found:
        yield found


def drop_pages(path: Path) -> None:
    """Make the kernel forget a file's pages, so that the next read comes to the daemon."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def instance(root: Path, image: str) -> Path:
    """Make an instance without a flavor and return the path of its vda."""
    path = root / "instances" / f"i-{image}"
    path.mkdir()
    os.setxattr(path, "user.image", image.encode())
    return path / "vda"


def test_images_and_disks_are_whole(cloud: Cloud, mount: Mounted) -> None:
    """images/, raw/ and vda show the right bytes of a raw and of a compressed image."""
    assert (cloud.root / "images" / RAW_ID).read_bytes() == cloud.disk
    assert (cloud.root / "images" / QCOW2_ID).read_bytes() == cloud.qcow2
    for image_id in (RAW_ID, QCOW2_ID):
        assert (cloud.root / "raw" / image_id).read_bytes() == cloud.disk
        assert instance(cloud.root, image_id).read_bytes() == cloud.disk


def test_small_read_fetches_a_window_and_not_the_image(cloud: Cloud, mount: Mounted) -> None:
    """Reading a little of a cold image fetches no more than a window or two."""
    with (cloud.root / "raw" / RAW_ID).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 4096, 3 * MIB) == cloud.disk[3 * MIB : 3 * MIB + 4096]
    assert 0 < mount.stats()["store_bytes"] <= 1.5 * MIB


def test_cold_unit_is_fetched_once_for_all_readers(cloud: Cloud, mount: Mounted) -> None:
    """64 readers of one cold unit cause one GET of it."""
    vdas = instance(cloud.root, RAW_ID)
    first = cloud.data_requests()

    def read(_: int) -> bytes:
        descriptor = os.open(vdas, os.O_RDONLY)
        try:
            return os.pread(descriptor, 512, 4 * MIB + 1000)
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(64) as pool:
        assert set(pool.map(read, range(64))) == {cloud.disk[4 * MIB + 1000 : 4 * MIB + 1512]}
    assert cloud.data_requests() - first <= 2  # the unit, and what the kernel reads ahead of it


def test_write_to_absent_whole_blocks_asks_the_store_for_nothing(cloud: Cloud, mount: Mounted) -> None:
    """Whole-block writes to a cold disk cause no request; a part of a block causes a fetch of what is around it."""
    vda = instance(cloud.root, RAW_ID)
    descriptor = os.open(vda, os.O_RDWR)
    try:
        os.fsync(descriptor)
        before = len(cloud.proxy.requests)
        for number in range(16):
            os.pwrite(descriptor, noise(4096, number), 2 * MIB + number * 8192)
        os.pwrite(descriptor, noise(512 * 1024, 99), 5 * MIB)
        os.fsync(descriptor)
        assert len(cloud.proxy.requests) == before
        assert os.pread(descriptor, 4096, 2 * MIB) == noise(4096, 0)
    finally:
        os.close(descriptor)


def test_cache_survives_a_remount(cloud: Cloud) -> None:
    """What one mount has read, the next reads without the store."""
    with mounted(cloud.directory, cloud.config):
        assert (cloud.root / "raw" / QCOW2_ID).read_bytes() == cloud.disk
        cached, size = os.getxattr(cloud.root / "raw" / QCOW2_ID, "user.imagefs.cached").split(b"/")
        assert int(cached) == int(size) == len(cloud.disk)
    fetched = cloud.data_requests()
    with mounted(cloud.directory, cloud.config):
        # told by the map, before anybody has opened the image
        assert os.getxattr(cloud.root / "raw" / QCOW2_ID, "user.imagefs.cached") == cached + b"/" + size
        assert (cloud.root / "raw" / QCOW2_ID).read_bytes() == cloud.disk
    assert cloud.data_requests() == fetched


def test_second_mount_reads_no_record_again(cloud: Cloud) -> None:
    """Records are kept by version: a remount lists the store and reads no image.json."""
    for _ in range(2):
        cloud.proxy.requests.clear()
        with mounted(cloud.directory, cloud.config):
            assert len(os.listdir(cloud.root / "images")) == 2
    assert not [request for request in cloud.proxy.requests if request.method == "GET" and "image.json" in request.path.split("?")[0]]


def test_cache_never_exceeds_its_budget(cloud: Cloud) -> None:
    """With a budget smaller than the image everything is served, and the cache directory stays below the budget."""
    limit = 3 * MIB
    config = cloud.directory / "small.toml"
    config.write_text(cloud.config.read_text().replace('size = "2GiB"', f'size = "{limit}"'))
    with mounted(cloud.directory, config) as small:
        for _ in range(2):
            for image_id in (RAW_ID, QCOW2_ID):
                path = cloud.root / "raw" / image_id
                drop_pages(path)
                with path.open("rb", buffering=0) as file:
                    for offset in range(0, len(cloud.disk), 300_000):
                        assert os.pread(file.fileno(), 300_000, offset) == cloud.disk[offset : offset + 300_000]
                        assert disk_usage(small.state / "cache") <= limit
        assert small.stats()["cache_units_evicted"] > 0


def disk_usage(directory: Path) -> int:
    """Return the bytes that a directory and all in it take on the disk, as du counts them."""
    return sum(path.lstat().st_blocks * 512 for path in (directory, *directory.rglob("*")))


def test_transfer_that_breaks_goes_on(cloud: Cloud, mount: Mounted) -> None:
    """Resets, short bodies, 503 and flipped bits heal by themselves: the reader sees the right bytes and no error."""
    for fault, after in ((Fault.RESET, 100_000), (Fault.TRUNCATE, 30_000), (Fault.UNAVAILABLE, 0), (Fault.FLIP, 70_000)):
        cloud.proxy.add(fault, method="GET", contains="/data", after=after)
    assert (cloud.root / "raw" / RAW_ID).read_bytes() == cloud.disk
    assert cloud.proxy.injected == 4
    assert mount.stats()["store_retries"] >= 3


def test_store_that_is_down_hurts_only_what_is_not_cached(cloud: Cloud, mount: Mounted) -> None:
    """While the store is down cached bytes, names and properties are served; afterwards the rest comes too."""
    with (cloud.root / "raw" / RAW_ID).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 65536, 0) == cloud.disk[:65536]
        cloud.proxy.add(Fault.UNAVAILABLE, times=None)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), 65536, 0) == cloud.disk[:65536]
        assert sorted(os.listdir(cloud.root / "names")) == ["packed", "plain"]
        assert os.getxattr(cloud.root / "images" / RAW_ID, "user.name") == b"plain"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(os.pread, file.fileno(), 4096, 5 * MIB)
            assert os.pread(file.fileno(), 100, 50) == cloud.disk[50:150]
            cloud.proxy.clear()
            assert waiting.result(60) == cloud.disk[5 * MIB : 5 * MIB + 4096]


def test_mount_starts_while_the_store_is_down_and_heals(cloud: Cloud) -> None:
    """With a catalog of an earlier mount, a mount is made though the store is down; what is cached reads, the rest heals."""
    with mounted(cloud.directory, cloud.config):
        assert (cloud.root / "raw" / RAW_ID).read_bytes() == cloud.disk
    cloud.proxy.add(Fault.UNAVAILABLE, times=None)
    with mounted(cloud.directory, cloud.config) as lonely:
        assert "the store is down" in lonely.log.read_text()
        assert sorted(os.listdir(cloud.root / "names")) == ["packed", "plain"]
        cloud.proxy.clear()
        assert (cloud.root / "raw" / QCOW2_ID).read_bytes() == cloud.disk


def test_mount_without_a_catalog_needs_the_store(cloud: Cloud) -> None:
    """A store that is down at the very first mount is named in the refusal, and the next mount works."""
    cloud.proxy.add(Fault.UNAVAILABLE, times=None)
    done = run_imagefs(cloud.config, "mount", str(cloud.root), check=False)
    assert done.returncode == 1
    assert cloud.proxy.endpoint_url in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    cloud.proxy.clear()
    with mounted(cloud.directory, cloud.config):
        assert len(os.listdir(cloud.root / "images")) == 2


def test_corrupt_object_is_an_io_error(cloud: Cloud) -> None:
    """Bytes that do not match the hash tree are EIO, never served, and the reason is on the image; the rest still reads."""
    body = bytearray(cloud.disk)
    body[4 * MIB + 5] ^= 1
    cloud.server.client().put_object(Bucket="images", Key=f"{cloud.prefix}/{RAW_ID}/data", Body=bytes(body))
    mount = start_mount(cloud.directory, cloud.config)
    try:
        path = cloud.root / "raw" / RAW_ID
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(file.fileno(), 4096, 0) == cloud.disk[:4096]
            expect(errno.EIO, os.pread, file.fileno(), 4096, 4 * MIB)
            assert os.pread(file.fileno(), 4096, 5 * MIB) == cloud.disk[5 * MIB : 5 * MIB + 4096]
        assert "SHA-256" in os.getxattr(path, "user.imagefs.error").decode()
        assert mount.alive()
    finally:
        take_down(mount)


def test_overwritten_object_is_an_io_error_for_old_opens(cloud: Cloud) -> None:
    """An object that is replaced under an open file gives EIO where it is not cached, never bytes of two versions."""
    mount = start_mount(cloud.directory, cloud.config)
    try:
        with (cloud.root / "raw" / RAW_ID).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(file.fileno(), 4096, 0) == cloud.disk[:4096]
            cloud.server.client().put_object(Bucket="images", Key=f"{cloud.prefix}/{RAW_ID}/data", Body=noise(len(cloud.disk), 9))
            expect(errno.EIO, os.pread, file.fileno(), 4096, 5 * MIB)
            assert os.pread(file.fileno(), 4096, 0) == cloud.disk[:4096]
        assert mount.alive()
    finally:
        take_down(mount)


def test_wrong_credentials_bucket_and_endpoint(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing bucket and a wrong secret are refused in one line each that says which, without the secret."""
    missing = cloud.directory / "missing.toml"
    missing.write_text(cloud.config.read_text().replace("s3://images/", "s3://no-such-bucket/"))
    done = run_imagefs(missing, "mount", str(cloud.root), check=False)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1)
    assert "no-such-bucket" in done.stderr
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-canary")
    done = run_imagefs(cloud.config, "mount", str(cloud.root), check=False)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1)
    assert "credential" in done.stderr.lower() or "key" in done.stderr.lower()
    assert "canary" not in done.stderr


def test_flat_layout_shows_objects_as_they_are(cloud: Cloud) -> None:
    """In the flat layout each object is an image, its format found by its content, and instances are made of it."""
    client = cloud.server.client()
    for key, body in (("disk.img", cloud.qcow2), ("other.raw", cloud.disk)):
        client.put_object(Bucket="images", Key=f"{cloud.prefix}-flat/{key}", Body=body)
    config = cloud.directory / "flat.toml"
    config.write_text(cloud.config.read_text().replace(cloud.prefix, f"{cloud.prefix}-flat").replace("[store]\n", '[store]\nlayout = "flat"\n'))
    with mounted(cloud.directory, config) as flat:
        assert sorted(os.listdir(cloud.root / "names")) == ["disk.img", "other.raw"]
        link = cloud.root / "names" / "disk.img"
        assert link.read_bytes() == cloud.qcow2
        assert os.getxattr(link, "user.disk_format") == b"qcow2"
        assert (cloud.root / "raw" / Path(os.readlink(link)).name).read_bytes() == cloud.disk
        assert instance(cloud.root, "disk.img").read_bytes() == cloud.disk
        done = flat.imagefs("image", "delete", "other.raw", check=False)
        assert done.returncode == 1
        assert "flat" in done.stderr


def test_a_snapshot_survives_a_store_that_breaks_off(cloud: Cloud) -> None:
    """An upload that fails is tried again: in the end there is one whole image with what was written, and nothing of the others in the bucket."""
    mount = start_mount(cloud.directory, cloud.config)
    try:
        vda = instance(cloud.root, "packed")
        patch(vda, 4096, b"before")
        cloud.proxy.add(Fault.UNAVAILABLE, method="PUT", contains="/data", times=None)
        request(vda.parent, "shot")
        patch(vda, 4096, b"after!")
        deadline = time.monotonic() + 120
        while "tried again" not in (state(vda.parent)["error"] or ""):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert cloud.proxy.injected > 0
        expect(errno.EBUSY, os.rmdir, vda.parent)
        expect(errno.EBUSY, request, vda.parent, "another")
        cloud.proxy.clear()
        found = finished(vda.parent)
        assert (cloud.root / "raw" / found["id"]).read_bytes() == cloud.disk[:4096] + b"before" + cloud.disk[4102:]
        listed = cloud.server.client().list_objects_v2(Bucket="images", Prefix=f"{cloud.prefix}/")["Contents"]
        assert {item["Key"].split("/")[1] for item in listed} == {RAW_ID, QCOW2_ID, found["id"]}
        assert mount.alive()
    finally:
        take_down(mount)


def test_the_daemon_ends_soon_while_a_store_hangs_in_an_upload(cloud: Cloud) -> None:
    """A store that takes a snapshot's bytes and never answers does not keep the mount from ending; the next daemon stores it, and leaves no half."""
    mount = start_mount(cloud.directory, cloud.config)
    try:
        vda = instance(cloud.root, "packed")
        patch(vda, 4096, b"before")
        cloud.proxy.add(Fault.STALL, method="PUT", contains="/data", times=None)
        request(vda.parent, "shot")
        deadline = time.monotonic() + 60
        while cloud.proxy.injected == 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        mount.imagefs("umount", str(cloud.root))
        mount.process.wait(30)
    finally:
        take_down(mount)
    cloud.proxy.clear()
    with mounted(cloud.directory, cloud.config) as again:
        found = finished(vda.parent)
        assert (cloud.root / "raw" / found["id"]).read_bytes() == cloud.disk[:4096] + b"before" + cloud.disk[4102:]
        listed = cloud.server.client().list_objects_v2(Bucket="images", Prefix=f"{cloud.prefix}/")["Contents"]
        assert {item["Key"].split("/")[1] for item in listed} == {RAW_ID, QCOW2_ID, found["id"]}
        assert again.alive()


def test_prefetched_image_asks_the_store_for_nothing_more(cloud: Cloud, mount: Mounted) -> None:
    """After a prefetch of all of it what is not known to be zeros is cached, and reading it fetches nothing."""
    mount.imagefs("image", "prefetch", "--all", "--wait", "packed", "plain")
    lines = {(line["name"], line["space"]): line for line in map(json.loads, (cloud.root / ".imagefs" / "cache").read_text().splitlines())}
    assert len(cloud.disk) // 2 < lines["plain", "stored"]["cached"] == lines["packed", "guest"]["cached"] <= len(cloud.disk)
    before = cloud.data_requests()
    for image_id in (RAW_ID, QCOW2_ID):
        assert os.getxattr(cloud.root / "images" / image_id, "user.imagefs.prefetch") == b"done"
        assert (cloud.root / "raw" / image_id).read_bytes() == cloud.disk
    assert cloud.data_requests() == before


def test_prefetch_that_the_store_fails(cloud: Cloud, mount: Mounted) -> None:
    """The attribute says that it failed, the error why, the command both; it can be asked for again."""
    cloud.proxy.add(Fault.FORBIDDEN, contains="/data", times=None)
    done = mount.imagefs("image", "prefetch", "--all", "--wait", "plain", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("imagefs: image prefetch plain: ")
    path = cloud.root / "raw" / RAW_ID
    assert os.getxattr(cloud.root / "images" / RAW_ID, "user.imagefs.prefetch") == b"failed"
    cloud.proxy.clear()
    mount.imagefs("image", "prefetch", "--all", "--wait", "plain")
    assert path.read_bytes() == cloud.disk


def test_verify_finds_what_was_changed_in_the_store(cloud: Cloud) -> None:
    """The command reads all bytes in the store: right ones are listed with what they were compared with, wrong ones are an error."""
    client, key = cloud.server.client(), f"{cloud.prefix}/{RAW_ID}/data"
    bad = bytearray(cloud.disk)
    bad[MIB] ^= 1
    client.put_object(Bucket="images", Key=key, Body=bytes(bad))
    done = run_imagefs(cloud.config, "image", "verify", "plain", "packed", "-f", "value", "-c", "Name", check=False)
    assert done.returncode == 1
    assert done.stdout.split() == ["packed"]
    assert RAW_ID in done.stderr

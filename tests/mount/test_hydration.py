"""Images that are in use become complete and verified on a real mount over a real S3 server."""

import errno
import hashlib
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.conftest import QCOW2_ID, RAW_ID
from tests.mount.test_images import expect
from tests.support.glance import Glance
from tests.support.mounted import Mounted, mounted, run_imagefs, start_mount, take_down, write_config
from tests.support.pictures import MIB, noise, write_qcow2, write_raw
from tests.support.s3proxy import Fault, FaultProxy

pytestmark = [pytest.mark.mount, pytest.mark.s3]

DISK = noise(5 * MIB, seed=5) + bytes(3 * MIB) + noise(MIB, seed=6) + bytes(100 * 512)


@pytest.fixture
def config(tmp_path: Path, s3_proxy: FaultProxy) -> Path:
    """A configuration in mode full, and an S3 store with a raw and a compressed qcow2 image of one disk."""
    extra = f'[store.s3]\nendpoint_url = "{s3_proxy.endpoint_url}"\nregion = "us-east-1"\n'
    found = write_config(tmp_path, store=f"s3://images/hydration-{uuid.uuid4()}", extra=extra)
    found.write_text(found.read_text().replace("[cache]\n", '[cache]\nhydrate = "full"\n'))
    raw = write_raw(tmp_path / "disk.raw", DISK)
    qcow2 = write_qcow2(tmp_path / "disk.qcow2", raw, "-c")
    run_imagefs(found, "image", "create", "--public", "--id", RAW_ID, "--disk-format", "raw", "--file", str(raw), "plain")
    run_imagefs(found, "image", "create", "--public", "--id", QCOW2_ID, "--file", str(qcow2), "packed")
    return found


@pytest.fixture
def mount(tmp_path: Path, config: Path) -> Iterator[Mounted]:
    """The store, mounted."""
    with mounted(tmp_path, config) as found:
        yield found


def wait_for(mount: Mounted, completed: int) -> None:
    """Return when so many images are complete."""
    deadline = time.monotonic() + 120
    while mount.stats()["images_completed"] < completed:
        assert time.monotonic() < deadline, f"no image became complete:\n{mount.log.read_text()}"
        time.sleep(0.1)


def read_direct(path: Path) -> bytes:
    """Return all of a file, past the kernel's page cache."""
    return subprocess.run(["dd", f"if={path}", "bs=64k", "iflag=direct"], capture_output=True, check=True, timeout=120).stdout


def touch(mount: Mounted, image_id: str) -> None:
    """Open an image's disk and read a little of it."""
    with (mount.mountpoint / "raw" / image_id).open("rb", buffering=0) as file:
        file.read(512)


@pytest.mark.parametrize("image_id", [RAW_ID, QCOW2_ID])
def test_a_complete_image_needs_no_store(mount: Mounted, s3_proxy: FaultProxy, image_id: str) -> None:
    """Opening a disk is enough: soon all of it is cached and verified, and is read with the store away."""
    touch(mount, image_id)
    wait_for(mount, 1)
    assert mount.stats()["images_failed_verification"] == 0
    assert mount.stats()["hydrated_bytes"] > 3 * MIB
    s3_proxy.add(Fault.UNAVAILABLE, times=None)
    try:
        assert read_direct(mount.mountpoint / "raw" / image_id) == DISK
    finally:
        s3_proxy.clear()
    lines = [json.loads(line) for line in (mount.mountpoint / ".imagefs" / "cache").read_text().splitlines()]
    space = "stored" if image_id == RAW_ID else "guest"
    assert [(line["complete"], line["verified"]) for line in lines if line["image"] == image_id and line["space"] == space] == [(True, True)]


def test_what_is_complete_stays_so(tmp_path: Path, config: Path, s3_proxy: FaultProxy) -> None:
    """A daemon that was killed finds the mark again: nothing is fetched, and no image completed a second time."""
    first = start_mount(tmp_path, config)
    try:
        touch(first, QCOW2_ID)
        wait_for(first, 1)
    finally:
        first.process.kill()
        first.process.wait()
        take_down(first)
    with mounted(tmp_path, config) as again:
        assert read_direct(again.mountpoint / "raw" / QCOW2_ID) == DISK
        time.sleep(5)
        stats = again.stats()
        assert (stats["store_data_requests"], stats["images_completed"], stats["hydrated_bytes"]) == (0, 0, 0)


def test_it_pauses_while_a_reader_misses(tmp_path: Path, config: Path, s3_proxy: FaultProxy) -> None:
    """As long as readers wait for the store, nothing is brought that nobody waits for."""
    with mounted(tmp_path, config) as mount:
        path = mount.mountpoint / "raw" / RAW_ID
        with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            s3_proxy.add(Fault.UNAVAILABLE, contains="/data", times=None)
            waiting = pool.submit(os.pread, file.fileno(), 512, 2 * MIB)
            time.sleep(6)  # long after it would have begun
            held_up = mount.stats()["hydrated_bytes"]
            s3_proxy.clear()
            assert waiting.result(60) == DISK[2 * MIB : 2 * MIB + 512]
        assert held_up == 0
        wait_for(mount, 1)


def test_a_file_store_is_read_in_place(tmp_path: Path) -> None:
    """What lies on the host already is not copied into the cache."""
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("[cache]\n", '[cache]\nhydrate = "full"\n'))
    body = tmp_path / "disk"
    body.write_bytes(DISK)
    run_imagefs(config, "image", "create", "--public", "--id", RAW_ID, "--disk-format", "raw", "--file", str(body), "plain")
    with mounted(tmp_path, config) as mount:
        touch(mount, RAW_ID)
        time.sleep(5)
        stats = mount.stats()
        assert (stats["hydrated_bytes"], stats["images_completed"]) == (0, 0)
        assert not list((mount.state / "cache").glob("*/*/units"))


@pytest.mark.glance
def test_the_hash_of_a_glance_decides(tmp_path: Path, glance_cloud: Glance) -> None:
    """An image of a Glance, decoded from qcow2, is compared with its hash: one that has it is verified, another one is refused for good."""
    body = write_qcow2(tmp_path / "disk.qcow2", write_raw(tmp_path / "disk.raw", DISK), "-c").read_bytes()
    right, wrong = str(uuid.uuid4()), str(uuid.uuid4())
    for image_id in (right, wrong):
        glance_cloud.add_image(image_id, body, visibility="public", disk_format="qcow2")
    glance_cloud.set_hashes(wrong, "0" * 32, hashlib.sha512(body + b"!").hexdigest())
    config = write_config(tmp_path, store=glance_cloud.url, extra=f'[store.glance]\ncloud = "{glance_cloud.cloud}"\n')
    config.write_text(config.read_text().replace("[cache]\n", '[cache]\nhydrate = "full"\n'))
    mount = start_mount(tmp_path, config)
    try:
        touch(mount, right)
        wait_for(mount, 1)
        assert read_direct(mount.mountpoint / "raw" / right) == DISK
        path = mount.mountpoint / "raw" / wrong
        with path.open("rb", buffering=0) as file:
            file.read(512)
            deadline = time.monotonic() + 120
            while not mount.stats()["images_failed_verification"]:
                assert time.monotonic() < deadline, mount.log.read_text()
                time.sleep(0.1)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            expect(errno.EIO, lambda: os.pread(file.fileno(), 512, 4 * MIB))
        expect(errno.EIO, path.read_bytes)
        assert wrong in mount.log.read_text()
    finally:
        take_down(mount)
    assert mount.process.returncode == 0

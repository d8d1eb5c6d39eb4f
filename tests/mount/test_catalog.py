"""A fleet of two thousand images in S3: what nodes see of it that mount it in different ways, and what that costs."""

import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from imagefs.store import bundle
from imagefs.store.record import ImageRecord, Member, encode_record
from tests.support.mounted import Mounted, mounted, write_config
from tests.support.s3proxy import FaultProxy
from tests.support.seaweed import Seaweed

pytestmark = pytest.mark.s3

COUNT = 2000


def image_id(number: int) -> str:
    """Return the id of an image; they begin with all digits."""
    return f"{number * 2654435761 % 2**32:08x}-0000-4000-8000-{number:012x}"


def record(number: int) -> ImageRecord:
    """Return a record; some are hidden, private, shared, queued, or named alike."""
    return ImageRecord(
        id=image_id(number),
        created_at=f"2026-01-01T00:{number // 60 % 60:02d}:{number % 60:02d}Z",
        updated_at="2026-01-02T00:00:00Z",
        name=f"gr\u00fc\u00dfe {number // 2}" if number % 5 == 0 else f"image {number}" if number % 97 else None,
        status="queued" if number % 50 == 0 else "active",
        visibility=("public", "private", "shared", "community")[number % 4],
        owner=f"project {number % 3}",
        size=None if number % 50 == 0 else number,
        os_hidden=number % 31 == 0,
        members=(Member("project 1"),) if number % 4 == 2 else (),
        properties={f"property {key}": f"value {number % (key + 2)}" for key in range(number % 30)},
    )


@pytest.fixture(scope="module")
def prefix(seaweed: Seaweed) -> str:
    """Where the fleet is."""
    made = f"catalog-{uuid.uuid4()}"
    client = seaweed.client()

    def put(number: int) -> None:
        client.put_object(Bucket="images", Key=f"{made}/{image_id(number)}/image.json", Body=encode_record(record(number)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(COUNT)))
    return made


@pytest.fixture
def empty(seaweed: Seaweed, prefix: str) -> Iterator[Any]:
    """The server, with no bundle in the fleet before and after the test."""
    client = seaweed.client()
    key = f"{prefix}/{bundle.KEY}"
    client.delete_object(Bucket="images", Key=key)
    yield client
    client.delete_object(Bucket="images", Key=key)


def node(directory: Path, proxy: FaultProxy, prefix: str) -> Path:
    """Return the configuration of a node that knows nothing."""
    directory.mkdir()
    extra = f'[store.s3]\nendpoint_url = "{proxy.endpoint_url}"\nregion = "us-east-1"\n'
    return write_config(directory, store=f"s3://images/{prefix}", extra=extra)


def seen(mount: Mounted) -> dict[str, object]:
    """Return all that can be seen of the fleet: lists, names, and of every image its size, times and attributes."""
    root = Path(mount.mountpoint)
    found: dict[str, object] = {"names": {name: os.readlink(root / "names" / name) for name in os.listdir(root / "names")}}
    found["listing"] = sorted((root / ".imagefs" / "images").read_bytes().splitlines())
    for name in sorted(os.listdir(root / "images")):
        path = root / "images" / name
        status = path.stat()
        attributes = {key: os.getxattr(path, key) for key in os.listxattr(path)}
        found[name] = (status.st_ino, status.st_size, status.st_mtime_ns, attributes)
    return found


def wait_for_bundle(client: Any, prefix: str) -> None:
    """Return when a node has written the bundle, which it does after its mount."""
    for _ in range(600):
        if client.list_objects_v2(Bucket="images", Prefix=f"{prefix}/{bundle.KEY}").get("Contents"):
            return
        time.sleep(0.1)
    raise AssertionError("no bundle was written")


def records_read(proxy: FaultProxy) -> int:
    """Return how many records the nodes have asked for, one by one, since the proxy was cleared."""
    return sum(request.method == "GET" and request.path.split("?")[0].endswith("/image.json") for request in proxy.requests)


def test_a_fleet_is_the_same_by_every_way(tmp_path: Path, s3_proxy: FaultProxy, prefix: str, empty: Any) -> None:
    """A node that reads every record, one that has them from the bundle, and one that mounted before all see the same, to the last attribute."""
    with mounted(tmp_path / "one", node(tmp_path / "one", s3_proxy, prefix)) as first:
        singly = seen(first)
        assert records_read(s3_proxy) == COUNT
        wait_for_bundle(empty, prefix)
    s3_proxy.clear()
    config = node(tmp_path / "two", s3_proxy, prefix)
    with mounted(tmp_path / "two", config) as second:
        assert records_read(s3_proxy) == 1
        together = seen(second)
    s3_proxy.clear()
    with mounted(tmp_path / "two", config) as again:
        assert records_read(s3_proxy) == 0
        from_disk = seen(again)
    assert singly == together
    assert singly == from_disk
    listed = [number for number in range(COUNT) if number % 31 and number % 4 != 3]
    assert len(singly) == len(listed) + 2
    assert len(singly["listing"]) == COUNT  # type: ignore[arg-type]


def test_a_change_made_elsewhere_is_seen(tmp_path: Path, s3_proxy: FaultProxy, prefix: str, empty: Any) -> None:
    """A record that was changed since the bundle was written, and one that is gone, are seen as they are by a node that begins with it."""
    with mounted(tmp_path / "one", node(tmp_path / "one", s3_proxy, prefix)):
        wait_for_bundle(empty, prefix)
    changed, gone = image_id(1), image_id(6)
    before = {number: encode_record(record(number)) for number in (1, 6)}
    try:
        newer = encode_record(ImageRecord(id=changed, created_at="2026-01-01T00:00:00Z", updated_at="2026-01-03T00:00:00Z", name="changed"))
        empty.put_object(Bucket="images", Key=f"{prefix}/{changed}/image.json", Body=newer)
        empty.delete_object(Bucket="images", Key=f"{prefix}/{gone}/image.json")
        s3_proxy.clear()
        with mounted(tmp_path / "two", node(tmp_path / "two", s3_proxy, prefix)) as second:
            assert records_read(s3_proxy) <= 2
            images = Path(second.mountpoint) / "images"
            assert os.getxattr(images / changed, "user.name") == b"changed"
            assert gone not in os.listdir(images)
    finally:
        for number, stored in before.items():
            empty.put_object(Bucket="images", Key=f"{prefix}/{image_id(number)}/image.json", Body=stored)


def test_a_bundle_of_garbage_is_read_over(tmp_path: Path, s3_proxy: FaultProxy, prefix: str, empty: Any) -> None:
    """A node that finds garbage for a bundle reads every record, says so in its log, and writes a good one in its place."""
    key = f"{prefix}/{bundle.KEY}"
    empty.put_object(Bucket="images", Key=key, Body=b"IMFSCATL and then nothing that fits")
    etag = empty.head_object(Bucket="images", Key=key)["ETag"]
    with mounted(tmp_path / "one", node(tmp_path / "one", s3_proxy, prefix)) as first:
        assert len(os.listdir(Path(first.mountpoint) / "raw")) > COUNT // 2
        for _ in range(600):
            if empty.head_object(Bucket="images", Key=key)["ETag"] != etag:
                break
            time.sleep(0.1)
    body = empty.get_object(Bucket="images", Key=key)["Body"].read()
    assert len(list(bundle.decode_bundle(body, "here"))) == COUNT

"""Fixtures that every kind of test may use."""

import functools
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import botocore.session
import pytest

from imagefs.store.factory import open_store
from imagefs.store.file import Directory
from imagefs.store.glance.store import GlanceStore
from imagefs.store.options import GlanceOptions, S3Options
from imagefs.store.protocol import Bucket
from imagefs.store.s3 import S3Bucket
from tests.support.glance import Glance, start_glance
from tests.support.s3proxy import FaultProxy
from tests.support.seaweed import Seaweed

BUCKET = "images"


@pytest.fixture(scope="session", autouse=True)
def _models_loaded_once() -> Iterator[None]:
    """Let all S3 clients of a run share boto3's service models, which take a tenth of a second to load for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """One S3 server for the whole run, with an empty bucket `images`."""
    with Seaweed.start(tmp_path_factory.mktemp("seaweed")) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture
def aws_keys(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> Seaweed:
    """The S3 server, with its keys where the AWS chain looks for them."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    return seaweed


@pytest.fixture
def s3_proxy(aws_keys: Seaweed) -> Iterator[FaultProxy]:
    """A fault proxy in front of the S3 server."""
    with FaultProxy(aws_keys.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def glance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glance]:
    """One Glance for the whole run, which shows where its images lie; tests use ids of their own."""
    with start_glance(tmp_path_factory.mktemp("glance")) as server:
        yield server


@pytest.fixture
def glance_cloud(glance: Glance, monkeypatch: pytest.MonkeyPatch) -> Glance:
    """The Glance, with its cloud where openstacksdk looks for clouds, and no other one."""
    for name in [name for name in os.environ if name.startswith("OS_")]:
        monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in glance.environment.items():
        monkeypatch.setenv(name, value)
    return glance


@pytest.fixture
def glance_store(glance_cloud: Glance) -> GlanceStore:
    """The Glance as a store, with an account that is admin."""
    store = open_store(glance_cloud.url, glance=GlanceOptions(cloud=glance_cloud.cloud))
    assert isinstance(store, GlanceStore)
    return store


@pytest.fixture
def file_bucket(tmp_path: Path) -> Directory:
    """An empty directory as a bucket."""
    bucket = Directory(tmp_path / "store", create=True)
    bucket.check()
    return bucket


@pytest.fixture
def s3_bucket(aws_keys: Seaweed) -> S3Bucket:
    """A prefix of its own in the S3 server's bucket."""
    return S3Bucket(BUCKET, f"test-{uuid.uuid4()}", S3Options(endpoint_url=aws_keys.endpoint_url))


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """Each kind of bucket in turn, empty."""
    found: Bucket = request.getfixturevalue(f"{request.param}_bucket")
    return found

"""What of the S3 store can be told without a server."""

import os
import socket
import uuid
from pathlib import Path
from typing import Any

import pytest
import urllib3
from botocore.exceptions import CredentialRetrievalError

from imagefs.errors import ConfigError, StoreRefused, StoreUnavailable
from imagefs.store.options import S3Options
from imagefs.store.s3 import MOST_PARTS, S3Bucket, part_size
from imagefs.units import GIB, MIB, TIB

NOWHERE = "http://storage.example:9"


@pytest.fixture(autouse=True)
def no_metadata_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep boto3 from asking the network for credentials."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize(("size", "part"), [(0, 8 * MIB), (70 * GIB, 8 * MIB), (TIB, 117 * MIB), (5 * TIB, 583 * MIB)])
def test_parts_grow_with_the_object(size: int, part: int) -> None:
    """Small objects go in parts of 8 MiB, and no object takes more parts than S3 allows."""
    assert part_size(size) == part
    assert -(-size // part) <= MOST_PARTS


def test_a_proxy_of_the_environment_is_used_for_data_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Image data takes the same way as the requests that boto3 sends, and no_proxy holds for it."""
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    through = S3Bucket("images", options=S3Options(endpoint_url=NOWHERE))._pool
    assert isinstance(through, urllib3.ProxyManager)
    assert through.proxy is not None
    assert through.proxy.host == "proxy.example"
    monkeypatch.setenv("no_proxy", "storage.example")
    assert not isinstance(S3Bucket("images", options=S3Options(endpoint_url=NOWHERE))._pool, urllib3.ProxyManager)


def test_the_same_certificates_are_trusted_for_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The ca_bundle option comes first, then the AWS chain's, then the built-in one."""
    bundle = tmp_path / "ca.pem"
    bundle.write_text("", encoding="ascii")

    def trusted(**options: str) -> object:
        return S3Bucket("images", options=S3Options(endpoint_url=NOWHERE, **options))._pool.connection_pool_kw["ca_certs"]

    monkeypatch.setenv("AWS_CA_BUNDLE", "/from/the/chain.pem")
    assert trusted(ca_bundle=str(bundle)) == str(bundle)
    assert trusted() == "/from/the/chain.pem"
    monkeypatch.delenv("AWS_CA_BUNDLE")
    assert Path(str(trusted())).is_file()


@pytest.mark.parametrize(
    ("options", "style"),
    [({"endpoint_url": NOWHERE}, "path"), ({}, "auto"), ({"endpoint_url": NOWHERE, "addressing_style": "virtual"}, "virtual")],
)
def test_servers_other_than_aws_are_addressed_by_path(options: dict[str, str], style: str) -> None:
    """The addressing style follows the endpoint unless it is given."""
    client: Any = S3Bucket("images", options=S3Options(**options))._client
    assert client.meta.config.s3["addressing_style"] == style


def test_an_unknown_addressing_style_is_a_mistake_in_the_configuration() -> None:
    """A style that botocore does not know is ConfigError."""
    with pytest.raises(ConfigError, match="round"):
        S3Bucket("images", options=S3Options(addressing_style="round"))


def test_a_credentials_service_that_cannot_be_reached_is_no_mistake_in_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the way to the instance's credentials fails, the store is unavailable: it may come back."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match="looking for AWS credentials"):
        S3Bucket("images", options=S3Options(endpoint_url=NOWHERE))


class EndedCredentials:
    """Temporary credentials that were good once, and whose successors cannot be had."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get_frozen_credentials(self) -> object:
        raise self.error


@pytest.mark.parametrize(
    "error", [CredentialRetrievalError(provider="iam-role", error_msg="timed out"), RuntimeError("the refreshed credentials are still expired")]
)
def test_credentials_that_end_are_told_in_words(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """What is signed past botocore takes the long way then, or ends with an error of imagefs's own."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        bucket = S3Bucket("images", options=S3Options(endpoint_url=f"http://127.0.0.1:{server.getsockname()[1]}"))
        monkeypatch.setattr(bucket._connector._session, "get_credentials", lambda: EndedCredentials(error))
        fleet = bucket._fleet
        assert fleet is not None
        assert fleet.page("", "/image.json", None) is None
        with pytest.raises(StoreRefused, match="looking for AWS credentials"):
            fleet.read(["key"], lambda key, body, etag: None)


@pytest.mark.s3
def test_a_listing_goes_on_page_by_page(s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of several pages has every object once."""
    keys = {f"{number}-{uuid.uuid4()}" for number in range(5)}
    for key in keys:
        s3_bucket.put(key, b"x", None)
    whole = s3_bucket._list_page
    monkeypatch.setattr(s3_bucket, "_list_page", lambda doing, more: whole(doing, {"MaxKeys": 2, **more}))
    assert sorted(entry.key for entry in s3_bucket.list()) == sorted(keys)

"""Which store a URL opens, and which mistakes are told."""

import sys
from pathlib import Path

import pytest

from imagefs.errors import ConfigError
from imagefs.store.factory import open_bucket, open_store
from imagefs.store.flat import FlatLayout
from imagefs.store.layout import ImagefsLayout
from imagefs.store.options import S3Options


@pytest.fixture(autouse=True)
def no_metadata_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep boto3 from asking the network for credentials."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize(("layout", "kind"), [("imagefs", ImagefsLayout), ("flat", FlatLayout)])
def test_a_file_url_opens_a_directory(tmp_path: Path, layout: str, kind: type) -> None:
    """The layout is the one asked for, and the URL is quoted and unquoted alike."""
    store = open_store(f"file://{tmp_path}/my%20images", layout, create=True)
    assert isinstance(store, kind)
    store.check()
    assert (tmp_path / "my images").is_dir()
    assert store.url == f"file://{tmp_path}/my%20images"


@pytest.mark.parametrize(("url", "shown"), [("s3://images", "s3://images"), ("s3://images/a/b/", "s3://images/a/b")])
def test_an_s3_url_opens_a_bucket_and_a_prefix(url: str, shown: str) -> None:
    """Bucket and prefix come from the URL, and opening sends nothing."""
    assert open_bucket(url, S3Options(endpoint_url="http://127.0.0.1:9")).url == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "images",
        "/srv/images",
        "http://x/y",
        "file://host/dir",
        "file:relative",
        "file:///a?b",
        "s3://",
        "s3:///prefix",
        "s3://a b/c",
        "s3://images/#x",
    ],
)
def test_a_url_that_opens_nothing_is_a_mistake(url: str) -> None:
    """Each wrong URL is ConfigError that names the key and quotes the URL."""
    with pytest.raises(ConfigError, match=r"store\.url") as caught:
        open_store(url)
    assert f"'{url}'" in str(caught.value)


def test_a_glance_url_opens_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint is the URL's, with or without the version, and opening sends nothing."""
    monkeypatch.delenv("OS_CLOUD", raising=False)
    for url in ("glance:https://127.0.0.1:9/image", "glance:https://127.0.0.1:9/image/", "glance:https://127.0.0.1:9/image/v2"):
        assert open_store(url).url == "glance:https://127.0.0.1:9/image"


@pytest.mark.parametrize(
    "url", ["glance:", "glance:ftp://x", "glance:http://", "glance:https://u:canary@x", "glance:http://x:0", "glance:http://x?y", "glance:http://[x"]
)
def test_a_glance_url_that_opens_nothing_is_a_mistake(url: str) -> None:
    """The mistake names the key, and repeats no password."""
    with pytest.raises(ConfigError, match=r"store\.url") as caught:
        open_store(url)
    assert "canary" not in "".join(caught.value.mistakes)


def test_a_glance_has_no_layout() -> None:
    """The flat layout is about objects of a bucket."""
    with pytest.raises(ConfigError, match=r"store\.layout: a Glance has no layout"):
        open_store("glance:http://127.0.0.1:9", "flat")


def test_a_glance_needs_openstacksdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the optional package the mistake says how to install it."""
    monkeypatch.setitem(sys.modules, "openstack.config.loader", None)
    monkeypatch.delitem(sys.modules, "imagefs.store.glance.connection", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'imagefs\[glance\]'"):
        open_store("glance:http://127.0.0.1:9")


def test_all_mistakes_are_told_at_once() -> None:
    """Layout, source address and URL are checked together."""
    with pytest.raises(ConfigError) as caught:
        open_store("ftp://x", "round", source_address="192.0.2.1")
    assert [line.split(":")[0] for line in caught.value.mistakes] == ["store.layout", "store.source_address", "store.url"]


def test_a_local_source_address_is_accepted() -> None:
    """Any address that this machine can bind is right."""
    open_store("s3://images", s3=S3Options(endpoint_url="http://127.0.0.1:9"), source_address="127.0.0.3")

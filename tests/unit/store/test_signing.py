"""Tests of signing: what botocore says of the same request, and where it says that a bucket is."""

import datetime
from collections.abc import Mapping

import botocore.auth
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from imagefs.store.signing import Keys, Place, Signer, encoded_query, place_of

NOW = 1_767_323_045.0
PATH_STYLE = Place(False, "127.0.0.1:8333", "/images", "us-east-1", "s3")


def botocores(url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """Return the headers by which botocore signs a GET at NOW."""
    when = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda remove_tzinfo=True: when.replace(tzinfo=None) if remove_tzinfo else when)
    request = AWSRequest("GET", url)
    request.context["payload_signing_enabled"] = True
    S3SigV4Auth(Credentials(keys.access_key, keys.secret_key, keys.token), "s3", "us-east-1").add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@pytest.mark.parametrize("token", [None, "session/token+="])
@pytest.mark.parametrize("key", ["fleet/1/image.json", "with space/a+b%c~d", "gr\u00fc\u00dfe/(1)*!'"])
def test_an_object_is_signed_as_botocore_does_it(key: str, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signature over path, headers and credentials is the same, whatever is in the key."""
    keys = Keys("AKID", "secret", token)
    signer = Signer(PATH_STYLE, lambda: keys, clock=lambda: NOW)
    path = signer.object_target(key)
    own = signer.headers(path)
    theirs = botocores(f"http://127.0.0.1:8333{path}", keys, monkeypatch)
    assert own["authorization"] == theirs["authorization"]
    assert {name: own[name] for name in own if name.startswith("x-amz")} == {name: theirs[name] for name in theirs if name.startswith("x-amz")}


def test_a_listing_is_signed_as_botocore_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The query counts too, its names in order and everything in it encoded."""
    keys = Keys("AKID", "secret")
    signer = Signer(PATH_STYLE, lambda: keys, clock=lambda: NOW)
    query = encoded_query({"prefix": "fleet/a b", "list-type": "2", "continuation-token": "x/y+z=="})
    assert query == "continuation-token=x%2Fy%2Bz%3D%3D&list-type=2&prefix=fleet%2Fa%20b"
    own = signer.headers(signer.bucket_target(), query)
    assert own["authorization"] == botocores(f"http://127.0.0.1:8333/images?{query}", keys, monkeypatch)["authorization"]


def test_keys_that_change_are_used_at_once() -> None:
    """Temporary credentials are replaced while the process runs: the key that was derived from the old ones is not used again."""
    keys = [Keys("A", "one")]
    signer = Signer(PATH_STYLE, lambda: keys[0], clock=lambda: NOW)
    first = signer.headers("/images/x")["authorization"]
    keys[0] = Keys("A", "two")
    assert signer.headers("/images/x")["authorization"] != first


@pytest.mark.parametrize(
    ("url", "place"),
    [
        (
            "http://127.0.0.1:8333/images/fleet/probe?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKID%2F20260102%2Feu-1%2Fs3%2Faws4_request",
            Place(False, "127.0.0.1:8333", "/images", "eu-1", "s3"),
        ),
        (
            "https://images.s3.amazonaws.com/fleet/probe?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKID/20260102/us-east-1/s3/aws4_request",
            Place(True, "images.s3.amazonaws.com", "", "us-east-1", "s3"),
        ),
        ("https://images.s3.amazonaws.com/fleet/probe?AWSAccessKeyId=AKID&Signature=x", None),
        ("https://x/fleet/probe?X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256&X-Amz-Credential=AKID/20260102/s3/aws4_request", None),
        ("https://x/other?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKID/20260102/us-east-1/s3/aws4_request", None),
    ],
)
def test_where_a_bucket_is_comes_from_botocore(url: str, place: Place | None) -> None:
    """Host, root and scope are read from a URL that botocore has signed; one that is signed in another way gives nothing."""
    assert place_of(url, "fleet/probe") == place


def test_the_secret_is_in_no_representation() -> None:
    """What may end up in a log has neither the secret nor the session's token."""
    assert "canary" not in repr(Keys("AKID", "canary-1", "canary-2"))

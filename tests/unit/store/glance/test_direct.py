"""Which locations may be read past Glance."""

import pytest

from imagefs.store.glance.direct import key_below

ID = "11111111-2222-4333-8444-555555555555"
DIRECTORY = "file:///var/lib/glance/images"
BUCKET = "s3://images/prod"


@pytest.mark.parametrize(
    ("url", "location", "key"),
    [
        (DIRECTORY, f"file:///var/lib/glance/images/{ID}", ID),
        (DIRECTORY, f"file:///var/lib/glance/images/deep/{ID}", f"deep/{ID}"),
        ("file:///my%20images", f"file:///my images/{ID}", ID),
        (BUCKET, f"s3://host:9000/images/prod/{ID}", ID),
        (BUCKET, f"s3+https://host/images/prod/a/{ID}", f"a/{ID}"),
        (BUCKET, f"s3+http://AK:se/cr@et@host/images/prod/{ID}", ID),
        (BUCKET, f"s3://images/prod/{ID}", ID),
        ("s3://images", f"s3://host/images/{ID}", ID),
    ],
)
def test_an_object_of_the_image_below_the_prefix_is_allowed(url: str, location: str, key: str) -> None:
    """The key is what is below the prefix; hosts and credentials do not matter."""
    assert key_below(url, location, ID) == key


@pytest.mark.parametrize("url", [DIRECTORY, BUCKET])
@pytest.mark.parametrize(
    "location",
    [
        "",
        "file://",
        "file:///",
        "file:///etc/passwd",
        "file:///var/lib/glance/images",
        "file:///var/lib/glance/images/",
        "file:///var/lib/glance/images/99999999-2222-4333-8444-555555555555",
        f"file:///var/lib/glance/images-2/{ID}",
        f"file:///var/lib/glance/images/../images/{ID}",
        f"file:///var/lib/glance/images/../../{ID}",
        f"file:///var/lib/glance/images/./{ID}",
        f"file:///var/lib/glance/images//{ID}",
        f"file:////var/lib/glance/images/{ID}",
        f"file:///var/lib/glance/images/.hidden/{ID}",
        f"file://localhost/var/lib/glance/images/{ID}",
        f"file:/var/lib/glance/images/{ID}",
        f"file:///var/lib/glance/images/{ID}/",
        f"file:///var/lib/glance/images/{ID}\n",
        f"file:///var/lib/glance/images/{ID}?x",
        f"file:///var/lib/glance/images/%2e%2e/{ID}",
        f"FILE:///var/lib/glance/images/{ID}",
        f"filesystem:///var/lib/glance/images/{ID}",
        f"http://169.254.169.254/images/prod/{ID}",
        f"https://host/images/prod/{ID}",
        f"s3://host/other/prod/{ID}",
        f"s3://host/images/{ID}",
        f"s3://host/images/prod/../prod/{ID}",
        f"s3://host/deep/images/prod/{ID}",
        "s3://host/images/prod/99999999-2222-4333-8444-555555555555",
        f"swift+config://images/prod/{ID}",
        f"rbd://images/prod/{ID}/snap",
    ],
)
def test_every_other_location_is_not(url: str, location: str) -> None:
    """Another place, another image, another scheme, or a path that is not what it looks like."""
    if location == f"file:///var/lib/glance/images/%2e%2e/{ID}" and url == DIRECTORY:
        assert key_below(url, location, ID) == f"%2e%2e/{ID}"  # Glance does not encode paths: this is a directory of that name
    else:
        assert key_below(url, location, ID) is None

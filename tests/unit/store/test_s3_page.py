"""Tests of reading the pages of a bucket's listing."""

import pytest

from imagefs.store.s3_page import Page, parse_page

SPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def page(*keys: str, truncated: str = "false", token: str = "", space: str = SPACE) -> bytes:
    """Return a page."""
    contents = "".join(f"<Contents><Key>{key}</Key><Size>1</Size><ETag>&quot;e-{index}&quot;</ETag></Contents>" for index, key in enumerate(keys))
    following = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return f"<?xml version='1.0'?><ListBucketResult{space}><IsTruncated>{truncated}</IsTruncated>{following}{contents}</ListBucketResult>".encode()


@pytest.mark.parametrize("space", [SPACE, ""])
def test_keys_that_end_as_wanted_are_found(space: str) -> None:
    """With AWS's namespace and without one, percent-encoded or not."""
    body = page("a/data", "a/image.json", "b%2Fimage.json", "c%20d/image.json", space=space)
    assert parse_page(body, "/image.json") == Page([("a/image.json", "e-1"), ("b/image.json", "e-2"), ("c d/image.json", "e-3")], None)


def test_a_page_tells_of_the_next_one() -> None:
    """A listing that goes on has what asks for more."""
    assert parse_page(page("a/image.json", truncated="true", token="next=&amp;"), "").token == "next=&"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not XML",
        page("a")[:-5],
        b"<Error><Code>SlowDown</Code></Error>",
        page("a", truncated="true"),
        page("a", truncated="maybe"),
        b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]>' + page("&a;").partition(b"?>")[2],
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_page_is_not_taken_for_one(body: bytes) -> None:
    """Anything that is cut short, of another kind, or brings definitions of its own is an error and no empty listing."""
    with pytest.raises(ValueError, match="listing"):
        parse_page(body, "")

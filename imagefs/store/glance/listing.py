"""This module lists the images of a Glance, page by page, as JSON objects."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from imagefs.errors import NotFound, StoreRefused, StoreUnavailable
from imagefs.store.glance.change import quoted_part
from imagefs.store.glance.connection import Connection, TooLong

PAGE: Final = 500
"""Images asked for at once. Glance gives 1000 at most, as a rule, and takes half a second for these."""
RESTARTS: Final = 3


def list_images(connection: Connection) -> dict[str, Mapping[str, Any]]:
    """Return every image that the account may see, hidden ones too, by id; what has no id as text is left out.

    Raises StoreError, with nothing: a part of a listing must not look like all of it.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for hidden in ("false", "true"):
        found |= _list_again(connection, hidden)
    return found


def _list_again(connection: Connection, hidden: str) -> dict[str, Mapping[str, Any]]:
    """List from the start again if the image that a page begins after is deleted meanwhile."""
    for _ in range(RESTARTS):
        try:
            return _list_once(connection, hidden)
        except _MarkerGone:
            continue
    raise StoreUnavailable(f"listing the images of {connection.endpoint}: images are deleted faster than they are listed: try again")


def _list_once(connection: Connection, hidden: str) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    marker: str | None = None
    limit = PAGE
    while True:
        try:
            page = _get_page(connection, hidden, limit, marker)
        except TooLong:
            if limit == 1:
                raise
            # Owners may give their images properties of megabytes: that must not hide everybody's images.
            limit = -(-limit // 8)
            continue
        images = page.get("images")
        if not isinstance(images, list):
            raise StoreUnavailable(f"listing the images of {connection.endpoint}: the answer has no list of images: is [store] url right?")
        before = len(found)
        found |= {image["id"]: image for image in images if isinstance(image, dict) and isinstance(image.get("id"), str)}
        marker = _marker_of(page.get("next"))
        if marker is None:
            return found
        if len(found) == before:
            raise StoreRefused(f"listing the images of {connection.endpoint}: a page repeats the one before: [store] url is not a sound Glance")


def _get_page(connection: Connection, hidden: str, limit: int, marker: str | None) -> dict[str, Any]:
    doing = f"listing the images of {connection.endpoint}"
    # Oldest first: an image that is made meanwhile comes on the last page, and moves no other one from its page.
    params = {"visibility": "all", "member_status": "all", "os_hidden": hidden, "sort": "created_at:asc,id:asc", "limit": str(limit)}
    try:
        return connection.get(doing, "/v2/images", params if marker is None else {**params, "marker": marker})
    except TooLong:
        raise
    except (NotFound, StoreRefused):
        if marker is None or _is_there(connection, marker):
            raise
        raise _MarkerGone from None


def _is_there(connection: Connection, image_id: str) -> bool:
    try:
        connection.get(f"reading image {image_id}", f"/v2/images/{quoted_part(image_id)}")
    except NotFound:
        return False
    return True


class _MarkerGone(Exception):
    """The image after which a page was to begin is not there any more."""


def _marker_of(following: object) -> str | None:
    """Return the marker in the link to the next page; of the link nothing else is used, so that it leads nowhere else."""
    if not isinstance(following, str):
        return None
    try:
        return parse_qs(urlsplit(following).query).get("marker", [None])[0]
    except ValueError:
        return None

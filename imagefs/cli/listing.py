"""This module reads MOUNT/.imagefs/images, where the daemon tells a caller of every image that it sees, and finds images in it.

Each line is a JSON object: Glance's attributes with their types, those without a value left out, the properties that the caller
may read beside them, and two words of imagefs's own.
"""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from imagefs.cli.mountpoint import read_attribute
from imagefs.errors import Denied, ImagefsError, InvalidInput, NotFound

LISTED: Final = "imagefs.listed"
"""Whether the image is in the caller's lists unless they ask for more, as in Glance."""
MEMBER_STATUS: Final = "imagefs.member_status"
"""The status of the membership of the caller's project, if it is a member."""

Line = Mapping[str, object]
_DECODER: Final = msgspec.json.Decoder(dict[str, object])


def read_lines(mount: Path) -> Sequence[Line]:
    """Return what the daemon tells of the images, in any order. Raises OSError, ImagefsError if it cannot be understood."""
    path = mount / ".imagefs" / "images"
    try:
        return _DECODER.decode_lines(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ImagefsError(f"{path}: not a list of images: {error}: unmount it with the version that mounted it, then mount it again") from error


def find_image(mount: Path, wanted: str) -> str:
    """Return the id of the image that a user means by an id, a name, or a file name of names/.

    Images in the caller's lists come before others of that name: else anybody's community image could make a name ambiguous.
    Raises NotFound, InvalidInput if several have the name, Denied if the caller may not list images, OSError.
    """
    image_id = as_image_id(wanted)
    if image_id is not None and (mount / "images" / image_id).exists():
        return image_id
    try:
        named = [line for line in read_lines(mount) if line.get("name") == wanted]
    except PermissionError:
        raise Denied(f"there is no image with the id '{wanted}', and you may not list images to find one of that name: give an id") from None
    found = [str(line["id"]) for line in named if is_shown(line)] or [str(line["id"]) for line in named]
    linked = _linked(mount, wanted) if not found else None
    return linked or only_one(sorted(found), wanted)


def as_image_id(text: str) -> str | None:
    """Return the id in its canonical form if `text` is a UUID."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


def only_one(found: list[str], wanted: str) -> str:
    """Return the one image that has the wanted name. Raises NotFound, InvalidInput naming all of several."""
    if not found:
        raise NotFound(f"there is no image with the id or name '{wanted}': see imagefs image list")
    if len(found) > 1:
        raise InvalidInput(f"{len(found)} images are named '{wanted}': give an id: {', '.join(found)}")
    return found[0]


def image_path(mount: Path, image_id: str) -> Path:
    """Return the file whose extended attributes are those of the image."""
    return mount / "images" / image_id


def read_tags(path: Path) -> tuple[str, ...]:
    """Return the tags that an image has now. Raises OSError."""
    return tuple(msgspec.json.decode(read_attribute(path, "tags") or "[]", type=list[str]))


def _linked(mount: Path, wanted: str) -> str | None:
    """Return the id that names/ has for the file name `wanted`; None if it has none."""
    if "/" in wanted or "\0" in wanted or wanted in {"", ".", ".."}:
        return None
    try:
        return (mount / "names" / wanted).readlink().name
    except OSError:
        return None


def is_shown(line: Line) -> bool:
    """Tell whether the caller's default listing has the image."""
    return line.get(LISTED) is True and line.get("os_hidden") is not True

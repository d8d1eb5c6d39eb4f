"""This module inspects the first bytes of an image before anything reads it as a disk. Pure, and bounded by its input.

oslo.utils' inspectors, which Nova and Glance trust, name the format and look for references to outside files; bounds that
they do not check (cluster sizes, tables, encryption) are checked here and in `qcow2.header`. A format is never guessed
where one is declared: content and declaration must agree.
"""

import contextlib
import dataclasses
import logging
from typing import Final

from oslo_utils.imageutils import format_inspector

from imagefs.errors import ImageRefused
from imagefs.image.qcow2.header import MAX_VIRTUAL_SIZE, is_qcow2, parse_header
from imagefs.units import KIB, format_size

HEAD: Final = 256 * KIB
"""How many first bytes to give to `inspect`: the VHDX region table ends there, and no other check looks further."""

# What the inspectors find comes back as our error; lines of their own would say it twice, and quote the image.
logging.getLogger("oslo_utils.imageutils").setLevel(logging.CRITICAL)

_AS_STORED: Final = frozenset({"raw", "iso", "ami", "ari", "aki"})
"""Declared formats whose stored bytes are the disk's bytes."""

_INSPECTED: Final = frozenset({"qcow2", "vmdk", "vdi", "vhd", "vhdx"})
"""Declared formats that an inspector can find in the content."""

_TEXT_VMDK: Final = b"# disk descriptorfile"


@dataclasses.dataclass(frozen=True, slots=True)
class Inspection:
    """What an image is: its format by Glance's names, and the size of its disk in bytes (None: not known from the head).

    `unreadable` is empty if the image can be shown as a disk; else it says why only the stored bytes can be shown.
    """

    format: str
    virtual_size: int | None
    unreadable: str = ""


def inspect(head: bytes, size: int, declared: str | None, name: str) -> Inspection:
    """Return what image `name` is, from its first HEAD bytes (all, if there are fewer) and its `size` in stored bytes.

    `declared` is the record's disk_format; None means that none was declared and the content decides. Raises ImageRefused,
    with the reason and what to do, if content and declaration differ or the image is not safe to read.
    """
    head = head[:HEAD]
    found = _detect(head, name)
    format_name = declared or found
    if not _agree(format_name, found):
        raise ImageRefused(f"image {name}: declared as {format_name}, but its content is {found}: set disk_format to what it is, or upload it again")
    if found == "qcow2":
        header = parse_header(head, size, name)
        _check_safety("qcow2", head, size, name, overridden={"unknown_features"} if header.extended_l2 else set())
        return Inspection("qcow2", header.size)
    if format_name in _AS_STORED:
        return Inspection(format_name, _bounded(size, name))
    _check_safety(found, head, size, name)
    reason = f"image {name} has format {format_name}, which is not read as a disk: convert it with qemu-img convert -O qcow2"
    return Inspection(format_name, _virtual_size(found, head, name), reason)


def _agree(declared: str, found: str) -> bool:
    """Tell whether the content may be what was declared. iso content is fine as raw: both are read as stored."""
    if declared in _AS_STORED:
        return found in ("raw", "iso")
    if declared == "vhd" and found == "raw":
        return True  # a fixed VHD has nothing but a footer, which is not in the head
    if declared in _INSPECTED:
        return found == declared
    return found in (declared, "raw", "iso")  # ploop and the like: no inspector knows them


def _detect(head: bytes, name: str) -> str:
    """Return the one format that the content is. Raises ImageRefused if it is several at once."""
    # A header that is cut short does not match its inspector, but what would read it goes by the magic alone.
    found = {"qcow2"} if is_qcow2(head) else set()
    if head[: len(_TEXT_VMDK)].lower() == _TEXT_VMDK:
        found.add("vmdk")
    for format_name in format_inspector.ALL_FORMATS:
        if format_name != "raw" and _matches(_fed(format_name, head)):
            found.add(format_name)
    if found == {"iso", "gpt"}:
        return "iso"  # bootable from a USB stick too
    if len(found) > 1:
        raise ImageRefused(f"image {name}: its content is {' and '.join(sorted(found))} at once: convert it with qemu-img convert -f FORMAT")
    content = next(iter(found), "raw")
    return "raw" if content == "gpt" else content


def _fed(format_name: str, head: bytes) -> format_inspector.FileInspector:
    """Return oslo's inspector of a format after it has seen the head."""
    inspector = format_inspector.ALL_FORMATS[format_name]()
    # An inspector raises anything at all for content that is not its own; then it matches or does not by what it has seen.
    with contextlib.suppress(Exception):
        inspector.eat_chunk(head)
    inspector.finish()
    return inspector


def _matches(inspector: format_inspector.FileInspector) -> bool:
    # VMDKInspector has no vmdktype, and fails, for a text that turns out not to be ASCII further on.
    with contextlib.suppress(AttributeError):
        return bool(inspector.format_match)
    return False


def _check_safety(format_name: str, head: bytes, size: int, name: str, overridden: frozenset[str] | set[str] = frozenset()) -> None:
    """Raise ImageRefused if oslo finds an image unsafe for a reason that is not in `overridden`."""
    if format_name == "raw":
        return
    try:
        _fed(format_name, head).safety_check()
    except format_inspector.SafetyCheckFailed as failed:
        # The end of a larger file is not in the head, so what it says cannot be checked.
        unseen = {"footer"} if len(head) < size else set()
        failures = {check: reason for check, reason in failed.failures.items() if check not in unseen | overridden}
        if failures:
            reasons = "; ".join(f"{check}: {reason}" for check, reason in failures.items())
            raise ImageRefused(f"image {name}: unsafe as {format_name}: {reasons}; convert it on a machine that you trust") from failed
    except format_inspector.ImageFormatError as error:
        if len(head) >= size:
            raise ImageRefused(f"image {name}: damaged as {format_name}: {error}; upload it again") from error
        # Some part lies beyond the head; nothing reads this format as a disk.


def _virtual_size(format_name: str, head: bytes, name: str) -> int | None:
    """Return the virtual size that a format's header gives, or None if the head does not tell."""
    try:
        size = int(_fed(format_name, head).virtual_size)
    except Exception:  # a header that is cut short or lies: oslo's parsers raise whatever struct and int do
        return None
    return _bounded(size, name) if size > 0 else None


def _bounded(size: int, name: str) -> int:
    if size > MAX_VIRTUAL_SIZE:
        raise ImageRefused(f"image {name}: its virtual size {size} is above {format_size(MAX_VIRTUAL_SIZE)}: the header is damaged")
    return size

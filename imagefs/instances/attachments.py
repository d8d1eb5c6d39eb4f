"""This module is what is attached to instances: volumes by name, and block devices of the host by path; each to one instance at a time."""

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from imagefs.errors import Busy, InvalidInput, NotFound
from imagefs.volumes.registry import Volumes

SYSFS: Final = Path("/sys/dev/block")
SECTOR: Final = 512
"""Bytes that sysfs counts a block device's size in, whatever its own sectors are."""


class Attachments:
    """Who has what. What is attached to an instance stands in the instance's record; this knows it the other way round, in memory."""

    def __init__(self, volumes: Volumes) -> None:
        """Start with nothing attached."""
        self._volumes = volumes
        self._devices: dict[str, tuple[int, str]] = {}

    def attach(self, target: str, instance_name: str) -> None:
        """Note a volume, or the block device at an absolute path, as attached. Raises NotFound, InvalidInput, Busy if it is attached already."""
        if not target.startswith("/"):
            self._volumes.attach(target, instance_name)
            return
        number = _device_number(target)
        for path, (other, owner) in self._devices.items():
            if path == target or other == number:
                raise Busy(f"block device {target} is attached to instance '{owner}' already: detach it there first")
        self._devices[target] = (number, instance_name)

    def detach(self, target: str, instance_name: str) -> None:
        """Note that a volume or block device is attached to the instance no more; one that is not there any more is no error."""
        if target.startswith("/"):
            self._devices.pop(target, None)
            return
        with contextlib.suppress(NotFound):
            self._volumes.detach(target, instance_name)

    def busy(self, targets: Iterable[str]) -> list[str]:
        """Return those of the targets that are volumes which somebody has open; who uses a block device, the host knows."""
        found = (self._volumes.by_name.get(target) for target in targets)
        return [volume.record.name for volume in found if volume is not None and volume.disk.opens]

    def size_of(self, target: str) -> int:
        """Return the bytes of a volume or an attached block device; 0 where it is not there any more.

        The kernel is asked, and the device is not opened: one whose storage does not answer would hold up everybody.
        """
        if not target.startswith("/"):
            try:
                return self._volumes.get(target).disk.size
            except NotFound:
                return 0
        number = self._devices[target][0] if target in self._devices else 0
        try:
            sectors = (SYSFS / f"{os.major(number)}:{os.minor(number)}" / "size").read_text(encoding="ascii")
        except OSError:
            return 0
        return int(sectors) * SECTOR


def _device_number(path: str) -> int:
    """Return which device a path names. Raises NotFound, InvalidInput for what is no block device below /dev."""
    resolved = os.path.normpath(path)
    if resolved != path or not path.startswith("/dev/"):
        raise InvalidInput(f"'{path}' cannot be attached: name a block device by its plain path below /dev")
    try:
        found = Path(path).stat()
    except OSError as error:
        raise NotFound(f"block device {path}: {error.strerror}") from error
    if not stat.S_ISBLK(found.st_mode):
        raise InvalidInput(f"{path} is not a block device: only volumes and block devices can be attached")
    return found.st_rdev

"""This module is one instance as a directory: its disks, its volumes as links, and what it is as attributes.

What can be set on it is in three parts: choices before the image, the image, which makes the disks, and snapshots of them.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from imagefs.errors import Denied, ImagefsError, ImageRefused, InvalidInput, NoAttribute, NotFound, NotPermitted
from imagefs.files.disks import DiskFile, check_change
from imagefs.files.node import REASON_LIMIT, Attributes, Changes, Children, Failures, Node, directory_attributes
from imagefs.files.symlink import SymlinkNode
from imagefs.flavors import Flavor, visible
from imagefs.identity.caller import Caller
from imagefs.instances.attachments import Attachments
from imagefs.instances.choices import CHOICES, SECRET_CHOICES, shown_choices
from imagefs.instances.instance import Instance
from imagefs.instances.record import InstanceRecord
from imagefs.instances.registry import Instances
from imagefs.instances.snapshot_record import snapshot_record
from imagefs.instances.snapshot_request import parse_request
from imagefs.instances.snapshots import Snapshots, shown
from imagefs.properties.change import Mode
from imagefs.properties.creation import check_create
from imagefs.properties.view import XATTR_VALUE_LIMIT
from imagefs.sight import Sights
from imagefs.volumes.registry import Volumes

CHOICE_LIMIT: Final = 4096
"""Bytes of what user.flavor and user.image are set to; an image's name has at most 255 characters. What is refused is told in
user.imagefs.error with the value in it, which must fit an attribute."""
SNAPSHOT: Final = "user.imagefs.snapshot"


@dataclasses.dataclass(frozen=True)
class InstanceParts:
    """What the directories of instances have in common: the registries that changes go through, and who may see which images and flavors."""

    instances: Instances
    volumes: Volumes
    attachments: Attachments
    snapshots: Snapshots
    sights: Sights
    flavors: Mapping[str, Flavor]
    mountpoint: Path
    """Where this is mounted: a link's target may be given with it."""


class InstanceDirectory(Node):
    """One instance."""

    kind = "instance"
    read_only = False

    def __init__(self, instance: Instance, parts: InstanceParts, volume_file: Callable[[str], Node]) -> None:
        """`volume_file` gives the node of a volume by name."""
        super().__init__(instance.record.uuid)
        self.instance = instance
        self._parts = parts
        self._volume_file = volume_file
        self._failures = Failures()
        self._nodes: dict[str, Node] = {}

    # -- what is in it --------------------------------------------------------------------------

    def attributes(self) -> Attributes:
        """As Node says."""
        record = self.instance.record
        try:
            changed_ns = self.instance.changed_ns()
        except OSError:
            raise NotFound(f"{self.instance.label} was removed") from None
        return directory_attributes(self.inode, record.mode, record.uid, record.gid, changed_ns)

    @property
    def _names(self) -> list[str]:
        record = self.instance.record
        return [*(["vda"] if record.direct is not None else []), *self.instance.disks, *record.volumes]

    async def lookup(self, caller: Caller, name: str) -> Node:
        """As Node says."""
        self.check(caller, os.X_OK)
        if name not in self._names:
            raise NotFound(f"{self.instance.label} has no '{name}'")
        return self.node(name)

    async def children(self, caller: Caller) -> Children:
        """As Node says."""
        self.check(caller, os.R_OK)
        return [(name, functools.partial(self.node, name)) for name in self._names]

    def node(self, name: str) -> Node:
        """Return the node of a disk or a link; of a disk always the same one. Raises NotFound."""
        record = self.instance.record
        target = record.direct if name == "vda" else link_target(record, name)
        key = f"{record.uuid}\0{name}"
        if target is not None:
            return SymlinkNode(f"{key}\0{target}", target, (record.uid, record.gid), self.attributes().changed_ns, attributes_timeout=0.0)
        found = self._nodes.get(name)
        if found is None:
            disk = self.instance.disks.get(name)
            if disk is None:
                raise NotFound(f"{self.instance.label} has no '{name}'")
            found = self._nodes[name] = DiskFile(key, disk)
        return found

    def nodes(self) -> list[Node]:
        """Return the nodes of all that is in it."""
        return [self.node(name) for name in self._names]

    # -- making and removing --------------------------------------------------------------------

    async def make_file(self, caller: Caller, name: str, mode: int) -> Node:
        """Refuse: disks come with the image."""
        raise NotPermitted("an instance's disks are made by setting its user.image, and volumes are attached by ln -s")

    async def make_directory(self, caller: Caller, name: str, mode: int) -> Node:
        """Refuse: there are no directories in an instance."""
        raise NotPermitted("there are no directories in an instance")

    async def make_link(self, caller: Caller, name: str, target: str) -> Node:
        """Attach a volume, or a block device of the host's.

        Raises InvalidInput for another target, Denied for a volume that the caller may not write to, NotPermitted for block devices unless
        the caller is an admin, Busy for what is attached somewhere.
        """
        self.check(caller, os.W_OK | os.X_OK)
        try:
            await self._parts.instances.attach(self.instance, name, self._attachable(caller, target))
        except ImagefsError as error:
            self._failures.note(caller, error)
            raise
        self._failures.clear(caller)
        return self.node(name)

    def _attachable(self, caller: Caller, target: str) -> str:
        """Return a volume's name or a block device's path, if the caller may attach it."""
        for prefix in ("../../volumes/", f"{self._parts.mountpoint}/volumes/"):
            if target.startswith(prefix):
                volume = self._parts.volumes.get(target.removeprefix(prefix))
                self._volume_file(volume.record.name).check(caller, os.R_OK | os.W_OK)
                return volume.record.name
        if not target.startswith("/dev/"):
            raise InvalidInput(f"'{target}' cannot be attached: link to ../../volumes/NAME, or to a block device below /dev")
        sight = self._parts.sights.of(caller)
        if not sight.access.is_admin(sight.identity):
            raise NotPermitted(f"uid {caller.uid} is no admin: only admins attach block devices")
        return target

    async def remove_file(self, caller: Caller, name: str) -> None:
        """Detach a volume; disks go with their instance. Raises Busy while the volume is open."""
        if name not in self._names:
            raise NotFound(f"{self.instance.label} has no '{name}'")
        if name not in self.instance.record.volumes:
            raise NotPermitted("a disk is removed with its instance, by rmdir")
        self.check(caller, os.W_OK | os.X_OK)
        await self._parts.instances.detach(self.instance, name)

    async def change(self, caller: Caller, changes: Changes) -> None:
        """As Node says: owner and mode."""
        record = self.instance.record
        check_change(caller, changes, record.uid, record.gid, repr(self))
        if (changes.mode, changes.uid, changes.gid) != (None, None, None):
            await self._parts.instances.set_owner(self.instance, uid=changes.uid, gid=changes.gid, mode=changes.mode)

    # -- attributes -----------------------------------------------------------------------------

    def xattrs(self, caller: Caller) -> Mapping[str, bytes]:
        """As Node says; for those who may read the directory. What is for the guest's eyes only is for its owner's, as the config drive is."""
        self.check(caller, os.R_OK)
        record, instance = self.instance.record, self.instance
        error = self._failures.of(caller) or instance.error
        texts = {
            "status": instance.status,
            "instance_uuid": record.uuid,
            "created_at": record.created_at,
            "flavor": record.flavor.name if record.flavor is not None else None,
            "image_id": record.image.id if record.image is not None else None,
            "firmware_code": record.firmware.code if record.firmware is not None else None,
            "secure_boot": str(record.firmware.secure_boot).lower() if record.firmware is not None else None,
            "imagefs.error": error[:REASON_LIMIT] if error is not None else None,
        }
        found = {f"user.{name}": value.encode("utf-8", "replace") for name, value in texts.items() if value is not None}
        owns = caller.uid in (0, record.uid)
        found |= {f"user.{name}": value for name, value in shown_choices(record).items() if owns or name not in SECRET_CHOICES}
        if record.image is not None:
            found["user.imagefs.disks"] = json.dumps(self._disks()).encode()
            found["user.imagefs.image_properties"] = fitting(image_properties(self._readable(caller)))
        if record.flavor is not None:
            found["user.imagefs.flavor"] = json.dumps(record.flavor.shown()).encode()
        if record.snapshot is not None:
            found[SNAPSHOT] = shown(record.snapshot, instance.progress)
        return found

    def _readable(self, caller: Caller) -> InstanceRecord:
        """Return the record with those of the image's properties that the caller may read: another may have made the instance."""
        record, sight = self.instance.record, self._parts.sights.of(caller)
        if record.image is None:
            return record
        properties = {name: value for name, value in record.image.properties.items() if sight.access.may("read", name, sight.identity)}
        return msgspec.structs.replace(record, image=msgspec.structs.replace(record.image, properties=properties))

    def _disks(self) -> list[dict[str, str | int | None]]:
        """Return what user.imagefs.disks says, in the order in which the guest sees the disks."""
        record = self.instance.record
        entries: list[dict[str, str | int | None]] = []
        if record.direct is not None:
            entries.append(_entry("vda", "root", record.direct_size, path=record.direct, disk_format="qcow2"))
        for disk in record.disks:
            device = record.choices.config_drive if disk.kind == "config" else "disk"
            entries.append(_entry(disk.name, disk.kind, disk.size, device=device))
        for name in sorted(record.volumes):
            size = self._parts.attachments.size_of(record.volumes[name])
            entries.append(_entry(name, "volume", size, path=link_target(record, name)))
        return entries

    async def set_xattr(self, caller: Caller, name: str, value: bytes, mode: Mode) -> None:
        """Choose for the instance, make its disks by user.image (an id or a name), or take a snapshot.

        Raises InvalidInput with the reason, Denied for an image that the caller may not download, Busy once there are disks.
        """
        self.check(caller, os.W_OK)
        try:
            await self._set(caller, name.removeprefix("user."), value)
        except ImagefsError as error:
            self._failures.note(caller, error)
            if isinstance(error, NotFound | ImageRefused):
                raise InvalidInput(str(error)) from error
            raise
        self._failures.clear(caller)

    async def _set(self, caller: Caller, name: str, value: bytes) -> None:
        if name == SNAPSHOT.removeprefix("user."):
            await self._snapshot(caller, value)
        elif name in CHOICES:
            await self._parts.instances.set_choice(self.instance, name, value)
        elif name in ("flavor", "image"):
            if len(value) > CHOICE_LIMIT:
                raise InvalidInput(f"the value of user.{name} has {len(value)} bytes: no id or name has more than {CHOICE_LIMIT}")
            try:
                text = value.decode().rstrip("\n")
            except UnicodeDecodeError:
                raise InvalidInput(f"the value of user.{name} is not UTF-8") from None
            await (self._set_flavor if name == "flavor" else self._set_image)(caller, text)
        else:
            raise NotPermitted(f"attribute 'user.{name}' of an instance cannot be set")

    async def _set_flavor(self, caller: Caller, name: str) -> None:
        sight = self._parts.sights.of(caller)
        admin = sight.access.is_admin(sight.identity)
        seen = {known: flavor for known, flavor in self._parts.flavors.items() if visible(flavor, sight.identity, admin)}
        if name not in seen:
            raise InvalidInput(f"there is no flavor '{name}': choose one of {', '.join(seen)}")
        await self._parts.instances.set_flavor(self.instance, seen[name])

    async def _set_image(self, caller: Caller, name: str) -> None:
        self._parts.instances.check_new(self.instance, "image")
        sight = self._parts.sights.of(caller)
        image = await sight.resolve(name)
        sight.access.check_download(sight.identity, image.record)
        properties = dict(sight.access.readable(sight.identity, image.record))
        await self._parts.instances.set_image(self.instance, image, properties, sight.identity)

    async def _snapshot(self, caller: Caller, value: bytes) -> None:
        sight = self._parts.sights.of(caller)
        request = parse_request(value)
        record = self._readable(caller)
        if record.image is None:
            raise InvalidInput(f"{self.instance.label} has no disks yet: set its user.image first")
        self._check_may_read(caller)
        root = self.instance.disks["vda"].size if "vda" in self.instance.disks else record.direct_size
        image = snapshot_record(request, record, root, sight.identity)
        check_create(sight.identity, sight.access, image)
        await self._parts.snapshots.begin(self.instance, request, image, caller)
        self.instance.error = None

    def _check_may_read(self, caller: Caller) -> None:
        """Raise Denied unless the caller may read vda: writing to the directory is not enough to get what is in its disks.

        The owner may also while the disk is lent to the user that its guest runs as.
        """
        if caller.uid not in (0, self.instance.record.uid):
            if self.instance.record.direct is not None:
                raise Denied(f"uid {caller.uid} may not take a snapshot of {self.instance.label}: only its owner may, whose the disk is")
            self.node("vda").check(caller, os.R_OK)

    async def remove_xattr(self, caller: Caller, name: str) -> None:
        """Refuse."""
        if name not in self.xattrs(caller):
            raise NoAttribute(f"{self!r} has no attribute {name}")
        raise NotPermitted(f"attribute {name} of an instance cannot be removed")


def link_target(record: InstanceRecord, name: str) -> str | None:
    """Return where the link of an attached volume leads; None if there is none of that name."""
    attached = record.volumes.get(name)
    if attached is None:
        return None
    return attached if attached.startswith("/") else f"../../volumes/{attached}"


def image_properties(record: InstanceRecord) -> dict[str, str]:
    """Return what a virtual machine has to know of the image, as it was when the instance was made."""
    image = record.image
    if image is None:
        return {}
    core = {"disk_format": image.disk_format, "min_ram": str(image.min_ram)}
    return image.properties | {name: value for name, value in core.items() if value is not None}


def fitting(properties: Mapping[str, str]) -> bytes:
    """Return properties as a JSON object; of more than fits an attribute the longest are left out, which mean nothing to a virtual machine."""
    shown: dict[str, str] = {}
    room = XATTR_VALUE_LIMIT
    for name, value in sorted(properties.items(), key=lambda pair: len(pair[0]) + len(pair[1])):
        room -= len(json.dumps({name: value}))
        if room < 0:
            break
        shown[name] = value
    return json.dumps(shown).encode()


def _entry(
    name: str, kind: str, size: int, *, path: str | None = None, disk_format: str = "raw", device: str = "disk"
) -> dict[str, str | int | None]:
    return {"name": name, "kind": kind, "format": disk_format, "size": size, "path": path, "device": device}

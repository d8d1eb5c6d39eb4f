"""A mount without FUSE: a plain directory that looks like one, with real extended attributes."""

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from imagefs.flavors import BUILT_IN

_TYPED: Mapping[str, Callable[[str], object]] = {
    **dict.fromkeys(("size", "virtual_size", "min_disk", "min_ram"), int),
    **dict.fromkeys(("protected", "os_hidden"), lambda text: text == "true"),
    "tags": json.loads,
}


class FakeMount:
    """The tree of a mount at `path`. What a daemon does by itself, such as making disks, the test has to do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("images", "raw", "names", "flavors", "instances", "volumes", ".imagefs"):
            (path / name).mkdir(parents=True)
        for name, flavor in BUILT_IN.items():
            (path / "flavors" / name).write_text(json.dumps(flavor.shown()))
        (path / ".imagefs" / "images").touch()
        (path / ".imagefs" / "stats").write_text("# HELP x\nimagefs_cache_bytes 1048576.0\nimagefs_cache_limit_bytes 2097152.0\n")
        set_attributes(path, {"imagefs.version": "0.1.0", "imagefs.pid": str(os.getpid())})

    def add_image(
        self,
        name: str | None,
        image_id: str | None = None,
        *,
        listed: bool = True,
        member_status: str | None = None,
        omitted: Mapping[str, str] | None = None,
        own: Mapping[str, str] | None = None,
        **attributes: str,
    ) -> str:
        """Add an image, and its link in names/ if nothing has that name yet; else both get links with the id, as in imagefs.

        `listed` and `member_status` are what .imagefs/images tells of the caller; `omitted` are properties that only it has;
        `own` are imagefs's attributes without `imagefs.`.
        """
        image_id = image_id or str(uuid.uuid4())
        path = self.path / "images" / image_id
        path.write_bytes(b"")
        attributes = {"id": image_id, "status": "active", **({} if name is None else {"name": name}), **attributes}
        own = {**(own or {}), **({"omitted": str(len(omitted))} if omitted else {})}
        set_attributes(path, attributes | {f"imagefs.{key}": value for key, value in own.items()})
        line: dict[str, object] = {key: _TYPED.get(key, str)(value) for key, value in attributes.items()}
        line |= {**(omitted or {}), "imagefs.listed": listed} | ({} if member_status is None else {"imagefs.member_status": member_status})
        with (self.path / ".imagefs" / "images").open("a") as listing:
            listing.write(f"{json.dumps(line)}\n")
        if name is not None and "/" not in name and listed:
            link = self.path / "names" / name
            if link.is_symlink():
                other = link.readlink().name
                for shared in (other, image_id):
                    (self.path / "names" / f"{name}@{shared[:8]}").symlink_to(f"../images/{shared}")
            else:
                link.symlink_to(f"../images/{image_id}")
        return image_id

    def add_instance(
        self,
        name: str,
        image_id: str | None = None,
        flavor: str | None = "m1.small",
        disks: tuple[str, ...] = ("vda",),
        *,
        properties: Mapping[str, object] | None = None,
        **attributes: str,
    ) -> Path:
        """Add an instance with disks of 1 MiB: vda is the root, nvram.fd and vdz are what they are called for, others are ephemeral.

        `properties` are those of the image when it was made; without them they are those that it has now. `attributes` are more of its own.
        """
        path = self.path / "instances" / name
        path.mkdir()
        path.chmod(0o711)
        kinds = {"vda": "root", "nvram.fd": "nvram", "vdz": "config"}
        entries = [{"name": disk, "kind": kinds.get(disk, "ephemeral"), "format": "raw", "size": 1 << 20} for disk in disks]
        for disk in disks:
            with (path / disk).open("wb") as file:
                file.truncate(1 << 20)
        known = {"instance_uuid": str(uuid.uuid4()), "status": "active" if disks else "new", "image_id": image_id, "flavor": flavor, **attributes}
        known["imagefs.disks"] = json.dumps([{**entry, "path": None, "device": "cdrom" if entry["name"] == "vdz" else "disk"} for entry in entries])
        known["imagefs.image_properties"] = json.dumps(properties) if properties is not None else None
        set_attributes(path, {key: value for key, value in known.items() if value is not None})
        return path

    def set_disk(self, instance: str, name: str, **entry: object) -> None:
        """Change what an instance says of one of its disks, or add one."""
        path = self.path / "instances" / instance
        disks = {disk["name"]: disk for disk in json.loads(os.getxattr(path, "user.imagefs.disks"))}
        disks[name] = {**disks.get(name, {"name": name, "path": None, "device": "disk"}), **entry}
        set_attributes(path, {"imagefs.disks": json.dumps(list(disks.values()))})

    def add_volume(self, name: str, size: int = 1 << 20, **attributes: str) -> Path:
        """Add a volume of `size` bytes."""
        path = self.path / "volumes" / name
        with path.open("wb") as file:
            file.truncate(size)
        set_attributes(path, {"volume_id": str(uuid.uuid4()), "created_at": "2026-11-22T10:00:00Z", **attributes})
        return path


def set_attributes(path: Path, attributes: dict[str, str]) -> None:
    """Set `user.<name>` for each attribute."""
    for name, value in attributes.items():
        os.setxattr(path, f"user.{name}", value.encode())

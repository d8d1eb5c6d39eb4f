"""This module makes the disks of a new instance: all of them, or none."""

import contextlib
import logging
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Final, cast

import msgspec
import trio

from imagefs.catalog import CatalogImage
from imagefs.config import InstancesConfig
from imagefs.disks.record import DISK_MODE, DiskRecord, first_stem
from imagefs.disks.steps import remove_strays
from imagefs.errors import Busy, InvalidInput, StateDamaged
from imagefs.instances import direct
from imagefs.instances.config_drive import make_config_drive, parse_meta_data
from imagefs.instances.ephemeral import Filesystem, extents_of, make_filesystem
from imagefs.instances.firmware import choose_firmware, load_variables
from imagefs.instances.fit import plan_disks, root_size
from imagefs.instances.record import RECORD, BaseImage, Firmware, InstanceRecord
from imagefs.overlay.disk import OverlayDisk
from imagefs.overlay.key import KEY_SUFFIX, NodeKey
from imagefs.statedir import StateDirectory
from imagefs.threads import Lane, run

log = logging.getLogger(__name__)

_PART: Final = "part"
"""Where a disk's first content is made, in the instance's directory: what is left of it by a crash is a stray."""

Pieces = Iterable[tuple[int, bytes]]
"""What a disk begins with: offsets and bytes."""


class Creation:
    """Makes disks as the configuration says, in the state directory of a mount at `mountpoint`."""

    def __init__(self, config: InstancesConfig, state: StateDirectory, mountpoint: Path) -> None:
        """Read nothing yet."""
        self._config = config
        self._state = state
        self._mountpoint = mountpoint
        self._node_key: NodeKey | None = None

    def node_key(self) -> NodeKey:
        """Return the key that seals the keys of encrypted disks; made when it is first needed. Blocks.

        Raises StateDamaged, also if it is gone while there are disks that need it: disks made with another one would be lost with its return.
        """
        if self._node_key is None:
            path = self._config.node_key or self._state.path / "node.key"
            if not path.exists() and any(self._state.instances.glob(f"*/*{KEY_SUFFIX}")):
                raise StateDamaged(f"the node key {path} is gone, and there are encrypted disks: put it back, or delete their instances")
            self._node_key = NodeKey.load(path)
        return self._node_key

    async def make(self, directory: Path, record: InstanceRecord, image: CatalogImage) -> InstanceRecord:
        """Make all disks of an instance whose image is chosen, durably, and return the record that says so.

        Raises InvalidInput for what does not fit or contradicts itself, NoSpace, OSError; `undo` must follow then, and on cancellation.
        """
        return await run(Lane.DISK, self._make, directory, record, image)

    def _make(self, directory: Path, record: InstanceRecord, image: CatalogImage) -> InstanceRecord:
        self.undo(directory, msgspec.structs.replace(record, image=None))  # of an attempt that failed, and could not be undone then
        base, choices, config = record.image, record.choices, self._config
        if base is None:
            raise InvalidInput(f"instance '{record.name}' has no image")
        is_direct = (choices.disk_format or config.disk_format) == "qcow2"
        encrypted = config.encryption if choices.encrypted is None else choices.encrypted
        if is_direct and encrypted:
            raise InvalidInput("a disk of the format qcow2 lies outside of imagefs, which cannot encrypt it: choose user.encrypted false, or raw")
        root = root_size(image, base.virtual_size, record.flavor)
        firmware = choose_firmware(base.properties, config)
        variables = load_variables(firmware.variables) if firmware is not None and firmware.variables is not None else b""
        with self._config_drive(directory, record, base) as drive:
            disks = plan_disks(
                record,
                root,
                encrypted=encrypted,
                direct=is_direct,
                nvram_size=len(variables),
                config_size=drive.stat().st_size if drive is not None else 0,
            )
            node_key = self.node_key() if encrypted else None
            base_identity = f"{base.id}@{base.data_version}"
            for disk in disks:
                OverlayDisk.create(directory, first_stem(disk.name), disk.size, base_identity if disk.kind == "root" else "", node_key=node_key)
                if disk.kind == "nvram":
                    _fill(directory, disk, [(0, variables)], node_key)
                elif disk.kind == "config" and drive is not None:
                    _fill(directory, disk, extents_of(drive), node_key)
        self._format(directory, record, disks, node_key)
        path: Path | None = None
        backing = self._mountpoint / "raw" / base.id
        if is_direct:
            path = direct.create(self._state.direct, record.uuid, root, backing, record.uid, record.gid, record.mode, DISK_MODE)
        made_as = msgspec.structs.replace(choices, encrypted=encrypted, disk_format="qcow2" if is_direct else "raw")
        return msgspec.structs.replace(
            record,
            choices=made_as,
            disks=disks,
            firmware=None if firmware is None else Firmware(str(firmware.code), firmware.secure_boot),
            direct=None if path is None else str(path),
            direct_size=root if is_direct else 0,
            direct_backing=str(backing) if is_direct else "",
        )

    @contextlib.contextmanager
    def _config_drive(self, directory: Path, record: InstanceRecord, base: BaseImage) -> Iterator[Path | None]:
        """Hold the config drive that the instance is to have, as a file; None if it is to have none."""
        choices = record.choices
        mandatory = base.properties.get("img_config_drive") == "mandatory"
        if choices.user_data is None and choices.meta_data is None and not mandatory:
            yield None
            return
        drive = make_config_drive(directory, record.uuid, record.name, choices.user_data, parse_meta_data(choices.meta_data or "{}"))
        try:
            yield drive
        finally:
            drive.unlink(missing_ok=True)

    def _format(self, directory: Path, record: InstanceRecord, disks: Iterable[DiskRecord], node_key: NodeKey | None) -> None:
        """Make filesystems on ephemeral disks, if they are to have any, and swap space on the swap disk."""
        chosen = record.choices.ephemeral_format or self._config.ephemeral_format
        number = 0
        for disk in disks:
            if disk.kind == "swap":
                self._format_one(directory, disk, "swap", "swap0", node_key)
            elif disk.kind == "ephemeral":
                if chosen != "none":
                    self._format_one(directory, disk, cast("Filesystem", chosen), f"ephemeral{number}", node_key)
                number += 1

    def _format_one(self, directory: Path, disk: DiskRecord, filesystem: Filesystem, label: str, node_key: NodeKey | None) -> None:
        part = directory / _PART
        make_filesystem(part, filesystem, label, disk.size)
        try:
            _fill(directory, disk, extents_of(part), node_key)
        finally:
            part.unlink()

    def undo(self, directory: Path, record: InstanceRecord) -> None:
        """Remove what a `make` that failed has left. Blocks. Raises OSError; the next mount tries again then."""
        remove_strays(directory, RECORD, record.stems)
        if record.direct is None and (self._state.direct / record.uuid).exists():
            direct.delete(self._state.direct, record.uuid)

    # -- direct disks ---------------------------------------------------------------------------

    async def follow_owner(self, record: InstanceRecord) -> None:
        """Give a direct disk's directory the owner and mode that the instance's has now. Raises ImagefsError."""
        if record.direct is not None:
            await run(Lane.DISK, direct.set_owner, self._state.direct, record.uuid, record.uid, record.gid, record.mode)

    async def check_unused(self, record: InstanceRecord) -> None:
        """Raise Busy if somebody has a direct disk open."""
        if record.direct is not None and await run(Lane.DISK, direct.in_use, Path(record.direct)):
            raise Busy(f"instance '{record.name}' is in use (vda is open): stop the guest first")

    def remove_direct(self, record: InstanceRecord) -> None:
        """Remove a direct disk. Blocks; what cannot be removed is logged, and removed at the next mount."""
        if record.direct is None:
            return
        try:
            direct.delete(self._state.direct, record.uuid)
        except OSError as error:
            log.error("a deleted disk could not be removed; the next mount tries again path=%s error=%s", record.direct, error)

    def purge_direct(self, alive: Container[str]) -> None:
        """Remove the direct disks of all instances that are not `alive`, by UUID; without any, nobody else gets into the state directory.

        Blocks; what cannot be removed is logged.
        """
        if not self._state.direct.is_dir():
            return
        for path in self._state.direct.iterdir():
            if path.name not in alive:
                try:
                    direct.delete(self._state.direct, path.name)
                except OSError as error:
                    log.error("a deleted disk could not be removed; the next mount tries again path=%s error=%s", path, error)
        with contextlib.suppress(OSError):  # there is one left
            self._state.direct.rmdir()
            self._state.path.chmod(0o700)


def _fill(directory: Path, disk: DiskRecord, pieces: Pieces, node_key: NodeKey | None) -> None:
    """Write what a disk begins with, durably. Blocks, in a thread of trio's."""
    overlay = OverlayDisk.open(directory, first_stem(disk.name), None, node_key=node_key)
    try:
        for offset, piece in pieces:
            if overlay.write_nowait(offset, piece) is None:  # of a new disk everything is in memory
                raise OSError(f"{disk.name}: what was just written cannot be read")
        trio.from_thread.run(overlay.flush)
    finally:
        overlay.close()

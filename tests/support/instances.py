"""This module makes registries of instances for tests without a mount."""

from pathlib import Path
from typing import cast

import trio

from imagefs.catalog import Catalog
from imagefs.config import InstancesConfig
from imagefs.disks.record import DiskRecord, first_stem
from imagefs.disks.steps import make_directory
from imagefs.instances.attachments import Attachments
from imagefs.instances.creation import Creation
from imagefs.instances.record import RECORD, InstanceRecord, encode
from imagefs.instances.registry import Instances
from imagefs.instances.snapshots import Snapshots
from imagefs.library import Library
from imagefs.overlay.disk import OverlayDisk
from imagefs.statedir import StateDirectory
from imagefs.store.protocol import ImageStore
from imagefs.volumes.registry import Volumes

MIB = 1024**2


def instances_of(
    state: StateDirectory,
    *,
    loaded: bool = True,
    catalog: Catalog | None = None,
    library: Library | None = None,
    store: ImageStore | None = None,
    nursery: trio.Nursery | None = None,
    config: InstancesConfig | None = None,
) -> Instances:
    """Return a registry; what is not given it must not need."""
    volumes = Volumes(state)
    some_catalog, some_library = cast("Catalog", catalog), cast("Library", library)
    snapshots = Snapshots(cast("ImageStore", store), some_catalog, cast("trio.Nursery", nursery))
    creation = Creation(config or InstancesConfig(), state, Path("/mnt"))
    instances = Instances(state, some_catalog, some_library, Attachments(volumes), creation, snapshots)
    if loaded:
        volumes.load()
        instances.load()
    return instances


def made(state: StateDirectory, uuid: str, name: str) -> Path:
    """Make an instance with one empty disk, vdb, on the host's disk, and return its directory."""
    directory = state.instances / uuid
    disk = DiskRecord("vdb", MIB, 0, 0, kind="ephemeral")
    make_directory(directory, RECORD, encode(InstanceRecord(uuid, name, 0, 0, 0o700, "2026-01-01T00:00:00Z", disks=(disk,))))
    OverlayDisk.create(directory, first_stem(disk.name), disk.size, "")
    return directory

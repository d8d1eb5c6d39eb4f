"""This module names what can be configured: a frozen dataclass for each section, complete with defaults.

A field marked `by` a function is a key of its section, and the function checks and converts its value.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Final, Literal

from imagefs.config.urls import read_direct_stores, read_endpoint, read_url
from imagefs.config.values import (
    FreeSpaceFloor,
    read_address,
    read_boolean,
    read_choice,
    read_file,
    read_floor,
    read_group,
    read_id,
    read_listen,
    read_mode,
    read_number,
    read_path,
    read_path_text,
    read_projects,
    read_roles,
    read_size,
    read_text,
    read_user,
)
from imagefs.flavors import NUMBER_LIMIT, Flavor
from imagefs.units import GIB, MIB

Read = Callable[[object], object]
"""Checks and converts a key's value. Raises InvalidInput that says what is wrong with it, without the key."""


def by(read: Read, *, listed: bool = False) -> Mapping[str, object]:
    """Mark a dataclass' field as a key of its section, whose value `read` checks and converts.

    A `listed` one takes a list, which the text of -o cannot hold: it is set in the file only.
    """
    return {"read": read, "listed": listed}


@dataclasses.dataclass(frozen=True, slots=True)
class S3Config:
    """[store.s3]. None leaves the choice to the AWS configuration chain, where credentials come from, and nowhere else."""

    endpoint_url: str | None = field(default=None, metadata=by(read_endpoint))
    region: str | None = field(default=None, metadata=by(read_text))
    profile: str | None = field(default=None, metadata=by(read_text))
    addressing_style: str | None = field(default=None, metadata=by(read_choice("auto", "path", "virtual")))
    ca_bundle: str | None = field(default=None, metadata=by(read_path_text))


@dataclasses.dataclass(frozen=True, slots=True)
class GlanceConfig:
    """[store.glance]. `direct_stores` are URLs without a slash at their end, below which bytes are read past Glance."""

    cloud: str | None = field(default=None, metadata=by(read_text))
    direct_stores: tuple[str, ...] = field(default=(), metadata=by(read_direct_stores, listed=True))


@dataclasses.dataclass(frozen=True, slots=True)
class StoreConfig:
    """[store]. `is_default` tells that nobody named a store: the embedded one is then made when it is first used."""

    url: str = field(default="", metadata=by(read_url))
    layout: str = field(default="imagefs", metadata=by(read_choice("imagefs", "flat")))
    source_address: str | None = field(default=None, metadata=by(read_address))
    s3: S3Config = S3Config()
    glance: GlanceConfig = GlanceConfig()
    is_default: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class StateConfig:
    """[state]."""

    dir: Path = field(default_factory=Path, metadata=by(read_path))


@dataclasses.dataclass(frozen=True, slots=True)
class CacheConfig:
    """[cache]. Sizes in bytes; size 0 means that nothing is cached on disk."""

    size: int = field(default=50 * GIB, metadata=by(read_size(zero=True)))
    free_space_floor: FreeSpaceFloor = field(default=FreeSpaceFloor(fraction=0.05), metadata=by(read_floor))
    memory: int = field(default=256 * MIB, metadata=by(read_size(zero=False)))
    boot_profiles: bool = field(default=True, metadata=by(read_boolean))
    """Whether boots are recorded, and what they read is fetched ahead of the next."""
    hydrate: Literal["off", "idle", "full"] = field(default="idle", metadata=by(read_choice("off", "idle", "full")))
    hydrate_limit: int = field(default=10 * GIB, metadata=by(read_size(zero=True)))
    hydrate_rate: int = field(default=100 * MIB, metadata=by(read_size(zero=False)))
    """Bytes per second."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProtectionConfig:
    """[protection], as Glance names it. No file: properties are not protected."""

    property_protection_file: Path | None = field(default=None, metadata=by(read_file))
    property_protection_rule_format: str = field(default="roles", metadata=by(read_choice("roles", "policies")))


@dataclasses.dataclass(frozen=True, slots=True)
class PolicyConfig:
    """[policy]. No file: Glance's default policies."""

    policy_file: Path | None = field(default=None, metadata=by(read_file))


@dataclasses.dataclass(frozen=True, slots=True)
class MapEntry:
    """[[identity.map]]: whom it is for, and who that is. Exactly one of `user`, `uid`, `group` and `gid` is not None.

    Whether this host knows the user or group is for the mount to ask. Roles are in lower case, each of them once.
    """

    user: str | None = field(default=None, metadata=by(read_text))
    uid: int | None = field(default=None, metadata=by(read_id))
    group: str | None = field(default=None, metadata=by(read_text))
    gid: int | None = field(default=None, metadata=by(read_id))
    roles: tuple[str, ...] = field(default=(), metadata=by(read_roles, listed=True))
    project_id: str | None = field(default=None, metadata=by(read_text))
    user_id: str | None = field(default=None, metadata=by(read_text))


@dataclasses.dataclass(frozen=True, slots=True)
class IdentityConfig:
    """[identity]. `map` is in the order of the file, which decides."""

    default_roles: tuple[str, ...] = field(default=(), metadata=by(read_roles, listed=True))
    default_project: str | None = field(default=None, metadata=by(read_text))
    map: tuple[MapEntry, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class InstancesConfig:
    """[instances]: whose instances/ is, and so who may make instances (None: the mounting user's), and what new ones get.

    Firmware paths: None stands for where Debian's package ovmf has such a file. `node_key` None: a file in the state directory.
    """

    owner: str | None = field(default=None, metadata=by(read_user))
    group: str | None = field(default=None, metadata=by(read_group))
    mode: int = field(default=0o755, metadata=by(read_mode))
    disk_format: str = field(default="raw", metadata=by(read_choice("raw", "qcow2")))
    encryption: bool = field(default=False, metadata=by(read_boolean))
    ephemeral_format: str = field(default="none", metadata=by(read_choice("none", "ext4", "xfs", "vfat")))
    ovmf_code: Path | None = field(default=None, metadata=by(read_path))
    ovmf_vars: Path | None = field(default=None, metadata=by(read_path))
    ovmf_secure_code: Path | None = field(default=None, metadata=by(read_path))
    ovmf_secure_vars: Path | None = field(default=None, metadata=by(read_path))
    node_key: Path | None = field(default=None, metadata=by(read_path))


@dataclasses.dataclass(frozen=True, slots=True)
class MountConfig:
    """[mount]."""

    mountpoint: Path | None = field(default=None, metadata=by(read_path))
    allow_other: bool = field(default=False, metadata=by(read_boolean))


@dataclasses.dataclass(frozen=True, slots=True)
class MetricsConfig:
    """[metrics]. `listen` is "host:port"."""

    listen: str | None = field(default=None, metadata=by(read_listen))


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration, complete: every key has its value. `source` names the file it is from, for messages."""

    source: str
    store: StoreConfig
    state: StateConfig
    cache: CacheConfig
    flavors: Mapping[str, Flavor]
    """All flavors by name: the built-in ones, with those of the file added or in their place."""
    instances: InstancesConfig
    mount: MountConfig
    metrics: MetricsConfig
    protection: ProtectionConfig
    policy: PolicyConfig
    identity: IdentityConfig


SECTIONS: Final[Mapping[str, type]] = {
    "store": StoreConfig,
    "store.s3": S3Config,
    "store.glance": GlanceConfig,
    "state": StateConfig,
    "cache": CacheConfig,
    "protection": ProtectionConfig,
    "policy": PolicyConfig,
    "identity": IdentityConfig,
    "instances": InstancesConfig,
    "mount": MountConfig,
    "metrics": MetricsConfig,
}
FLAVOR_KEYS: Final[Mapping[str, Read]] = {
    "vcpus": read_number(1, 4096),
    "ram": read_number(1, NUMBER_LIMIT),
    "disk": read_number(0, NUMBER_LIMIT),
    "ephemeral": read_number(0, NUMBER_LIMIT),
    "swap": read_number(0, NUMBER_LIMIT),
    "is_public": read_boolean,
    "projects": read_projects,
}
FLAVOR_NEEDS: Final = ("vcpus", "ram", "disk")
MAP: Final = "identity.map"
MAP_SUBJECTS: Final = ("user", "uid", "group", "gid")
"""Keys of a map's entry that say whom it is for."""


def section_keys(section: str) -> dict[str, Read]:
    """Return a section's keys, each with what reads its value."""
    return keys_of(SECTIONS[section])


def keys_of(table: type) -> dict[str, Read]:
    """Return the keys of a section's or an entry's dataclass, each with what reads its value."""
    return {key.name: key.metadata["read"] for key in dataclasses.fields(table) if "read" in key.metadata}


def listed_keys(section: str) -> frozenset[str]:
    """Return those of a section's keys that take a list."""
    return frozenset(key.name for key in dataclasses.fields(SECTIONS[section]) if key.metadata.get("listed"))


def all_keys() -> list[str]:
    """Return every key in dotted form; NAME stands for a flavor's name. Those of the map are in each of its entries."""
    return [
        *(f"{section}.{key}" for section in SECTIONS for key in section_keys(section)),
        *(f"flavors.NAME.{key}" for key in FLAVOR_KEYS),
        *(f"{MAP}.{key}" for key in keys_of(MapEntry)),
    ]

"""This module is the configuration: what can be set, where it is looked for, and what is wrong with it, all at once.

A file is TOML. `sections` has a dataclass for each section, `reader` goes through a file with their help.
imagefs.toml(5) describes every key, and a test compares the two.
"""

import os
import tomllib
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from imagefs.config.reader import Reader
from imagefs.config.sections import (
    FLAVOR_KEYS,
    SECTIONS,
    CacheConfig,
    Config,
    GlanceConfig,
    IdentityConfig,
    InstancesConfig,
    MapEntry,
    MetricsConfig,
    MountConfig,
    PolicyConfig,
    ProtectionConfig,
    S3Config,
    StateConfig,
    StoreConfig,
    all_keys,
    section_keys,
)
from imagefs.errors import ConfigError
from imagefs.flavors import BUILT_IN
from imagefs.units import MIB

__all__ = [
    "BUILT_IN_SOURCE",
    "ENVIRONMENT",
    "FLAVOR_KEYS",
    "MAX_FILE",
    "SECTIONS",
    "SYSTEM_DATA",
    "SYSTEM_FILE",
    "CacheConfig",
    "Config",
    "GlanceConfig",
    "IdentityConfig",
    "InstancesConfig",
    "MapEntry",
    "MetricsConfig",
    "MountConfig",
    "PolicyConfig",
    "ProtectionConfig",
    "S3Config",
    "StateConfig",
    "StoreConfig",
    "all_keys",
    "data_directory",
    "find_file",
    "load",
    "parse",
    "section_keys",
]

ENVIRONMENT: Final = "IMAGEFS_CONFIG"
SYSTEM_FILE: Final = Path("/etc/imagefs/imagefs.toml")
SYSTEM_DATA: Final = Path("/var/lib/imagefs")
BUILT_IN_SOURCE: Final = "built-in defaults"
MAX_FILE: Final = MIB
"""Bytes; a larger file is not a configuration but a mistake in the path."""


def find_file(named: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return the file to read: the named one, $IMAGEFS_CONFIG, or the system's if it is there; None: the defaults do."""
    if named is not None:
        return named
    if environ.get(ENVIRONMENT):
        return Path(environ[ENVIRONMENT])
    return SYSTEM_FILE if os.path.lexists(SYSTEM_FILE) else None


def load(named: Path | None = None, overrides: Mapping[str, str] | None = None, *, environ: Mapping[str, str] | None = None) -> Config:
    """Read the configuration. `overrides` are values from the command line by dotted key, as text; they win.

    Raises ConfigError with all mistakes.
    """
    environ = os.environ if environ is None else environ
    path = find_file(named, environ)
    source = BUILT_IN_SOURCE if path is None else str(path)
    document = {} if path is None else _read_file(path)
    directory = None if path is None else path.absolute().parent
    return parse(document, overrides or {}, source, data_directory(os.geteuid(), environ), directory=directory)


def data_directory(uid: int, environ: Mapping[str, str]) -> Path:
    """Return where the embedded store and the state lie unless they are configured: root's system directory, or the user's own."""
    if uid == 0:
        return SYSTEM_DATA
    xdg = environ.get("XDG_DATA_HOME", "")
    base = Path(xdg) if xdg.startswith("/") else Path(environ.get("HOME") or Path("~").expanduser()) / ".local" / "share"
    return base / "imagefs"


def parse(document: Mapping[str, object], overrides: Mapping[str, str], source: str, data: Path, *, directory: Path | None = None) -> Config:
    """Return the configuration that a TOML document and overrides make; `data` is where store and state lie by default.

    `directory` is that of the document's file, which the paths of protection and policy files may be relative to.
    Raises ConfigError with all mistakes of both.
    """
    reader = Reader(directory)
    reader.document(document)
    reader.overrides(overrides)
    if reader.mistakes:
        raise ConfigError(source, reader.mistakes)
    values = reader.values
    store = values["store"]
    store |= {"is_default": "url" not in store, "s3": S3Config(**values["store.s3"]), "glance": GlanceConfig(**values["store.glance"])}
    return Config(
        source=source,
        store=StoreConfig(**({"url": f"file://{urllib.parse.quote(str(data / 'store'))}"} | store)),
        state=StateConfig(**({"dir": data / "state"} | values["state"])),
        cache=CacheConfig(**values["cache"]),
        flavors={**BUILT_IN, **reader.flavors},
        instances=InstancesConfig(**values["instances"]),
        mount=MountConfig(**values["mount"]),
        metrics=MetricsConfig(**values["metrics"]),
        protection=ProtectionConfig(**values["protection"]),
        policy=PolicyConfig(**values["policy"]),
        identity=IdentityConfig(**values["identity"], map=tuple(reader.map)),
    )


def _read_file(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            body = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}: name another file with -c or ${ENVIRONMENT}"]) from error
    if len(body) > MAX_FILE:
        raise ConfigError(str(path), [f"has more than {MAX_FILE} bytes: it is not a configuration file"])
    try:
        return tomllib.loads(body.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(str(path), [f"is not valid TOML: {error}"]) from error

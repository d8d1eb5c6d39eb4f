"""This module is the configuration: what can be set, where it is looked for, and what is wrong with it, all at once.

A file is TOML. Each section is a frozen dataclass; a field marked `by` a function is a key of that section, and the
function checks and converts its value. imagefs.toml(5) describes every key, and a test compares the two.
"""

import dataclasses
import difflib
import os
import tomllib
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Final

from imagefs import __version__
from imagefs.config.values import (
    FreeSpaceFloor,
    read_address,
    read_boolean,
    read_choice,
    read_endpoint,
    read_floor,
    read_group,
    read_listen,
    read_mode,
    read_number,
    read_path,
    read_path_text,
    read_size,
    read_text,
    read_url,
    read_user,
)
from imagefs.errors import ConfigError, InvalidInput
from imagefs.flavors import BUILT_IN, NUMBER_LIMIT, Flavor, check_name, make_flavor
from imagefs.units import GIB, MIB

ENVIRONMENT: Final = "IMAGEFS_CONFIG"
SYSTEM_FILE: Final = Path("/etc/imagefs/imagefs.toml")
SYSTEM_DATA: Final = Path("/var/lib/imagefs")
BUILT_IN_SOURCE: Final = "built-in defaults"
MAX_FILE: Final = MIB
"""Bytes; a larger file is not a configuration but a mistake in the path."""

Read = Callable[[object], object]
"""Checks and converts a key's value. Raises InvalidInput that says what is wrong with it, without the key."""


def by(read: Read) -> Mapping[str, Read]:
    """Mark a dataclass' field as a key of its section, whose value `read` checks and converts."""
    return {"read": read}


@dataclasses.dataclass(frozen=True, slots=True)
class S3Config:
    """[store.s3]. None leaves the choice to the AWS configuration chain, where credentials come from, and nowhere else."""

    endpoint_url: str | None = field(default=None, metadata=by(read_endpoint))
    region: str | None = field(default=None, metadata=by(read_text))
    profile: str | None = field(default=None, metadata=by(read_text))
    addressing_style: str | None = field(default=None, metadata=by(read_choice("auto", "path", "virtual")))
    ca_bundle: str | None = field(default=None, metadata=by(read_path_text))


@dataclasses.dataclass(frozen=True, slots=True)
class StoreConfig:
    """[store]. `is_default` tells that nobody named a store: the embedded one is then made when it is first used."""

    url: str = field(default="", metadata=by(read_url))
    layout: str = field(default="imagefs", metadata=by(read_choice("imagefs", "flat")))
    source_address: str | None = field(default=None, metadata=by(read_address))
    s3: S3Config = S3Config()
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


@dataclasses.dataclass(frozen=True, slots=True)
class InstancesConfig:
    """[instances]: whose instances/ is, and so who may make instances. None: the mounting user's."""

    owner: str | None = field(default=None, metadata=by(read_user))
    group: str | None = field(default=None, metadata=by(read_group))
    mode: int = field(default=0o755, metadata=by(read_mode))


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


SECTIONS: Final[Mapping[str, type]] = {
    "store": StoreConfig,
    "store.s3": S3Config,
    "state": StateConfig,
    "cache": CacheConfig,
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
}
_FLAVOR_NEEDS: Final = ("vcpus", "ram", "disk")
UNSUPPORTED: Final = frozenset(
    {
        "protection",
        "policy",
        "identity",
        "store.glance",
        "instances.disk_format",
        "instances.encryption",
        "instances.ephemeral_format",
        "instances.ovmf_code",
        "instances.ovmf_vars",
    }
)
"""Keys of later versions. They are refused and not merely unknown: who writes a protection file counts on its being obeyed."""


def section_keys(section: str) -> dict[str, Read]:
    """Return a section's keys, each with what reads its value."""
    return {key.name: key.metadata["read"] for key in dataclasses.fields(SECTIONS[section]) if "read" in key.metadata}


def all_keys() -> list[str]:
    """Return every key in dotted form; NAME stands for a flavor's name."""
    return [f"{section}.{key}" for section in SECTIONS for key in section_keys(section)] + [f"flavors.NAME.{key}" for key in FLAVOR_KEYS]


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
    return parse(document, overrides or {}, source, data_directory(os.geteuid(), environ))


def data_directory(uid: int, environ: Mapping[str, str]) -> Path:
    """Return where the embedded store and the state lie unless they are configured: root's system directory, or the user's own."""
    if uid == 0:
        return SYSTEM_DATA
    xdg = environ.get("XDG_DATA_HOME", "")
    base = Path(xdg) if xdg.startswith("/") else Path(environ.get("HOME") or Path("~").expanduser()) / ".local" / "share"
    return base / "imagefs"


def parse(document: Mapping[str, object], overrides: Mapping[str, str], source: str, data: Path) -> Config:
    """Return the configuration that a TOML document and overrides make; `data` is where store and state lie by default.

    Raises ConfigError with all mistakes of both.
    """
    reader = _Reader()
    reader.document(document)
    reader.overrides(overrides)
    if reader.mistakes:
        raise ConfigError(source, reader.mistakes)
    values = reader.values
    store = values["store"]
    store |= {"is_default": "url" not in store, "s3": S3Config(**values["store.s3"])}
    return Config(
        source=source,
        store=StoreConfig(**({"url": f"file://{urllib.parse.quote(str(data / 'store'))}"} | store)),
        state=StateConfig(**({"dir": data / "state"} | values["state"])),
        cache=CacheConfig(**values["cache"]),
        flavors={**BUILT_IN, **reader.flavors},
        instances=InstancesConfig(**values["instances"]),
        mount=MountConfig(**values["mount"]),
        metrics=MetricsConfig(**values["metrics"]),
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


class _Reader:
    """Gathers values by section, and mistakes, from a document and from overrides."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        self.flavors: dict[str, Flavor] = {}
        self.mistakes: list[str] = []

    def document(self, document: Mapping[str, object]) -> None:
        for name, value in document.items():
            if name == "flavors":
                self._flavors(value)
            elif name in SECTIONS:
                self._section(name, value)
            else:
                self._unknown(name)

    def overrides(self, overrides: Mapping[str, str]) -> None:
        for dotted, text in overrides.items():
            section, _, key = dotted.rpartition(".")
            if section in SECTIONS and key in section_keys(section):
                # the command line has no types: the two words that are values of their own in TOML are so here too
                self._value(section, key, {"true": True, "false": False}.get(text, text), "-o ")
            elif dotted.startswith("flavors."):
                self.mistakes.append(f"-o {dotted}: flavors can be set in the configuration file only")
            else:
                self._unknown(dotted, "-o ")

    def _section(self, section: str, value: object) -> None:
        if not isinstance(value, dict):
            self.mistakes.append(f"{section}: is a section: write [{section}] and its keys below it")
            return
        known = section_keys(section)
        for key, item in value.items():
            if key in known:
                self._value(section, key, item)
            elif f"{section}.{key}" in SECTIONS:
                self._section(f"{section}.{key}", item)
            else:
                self._unknown(f"{section}.{key}")

    def _value(self, section: str, key: str, value: object, origin: str = "") -> None:
        try:
            self.values[section][key] = section_keys(section)[key](value)
        except InvalidInput as error:
            self.mistakes.append(f"{origin}{section}.{key}: {error}")

    def _flavors(self, table: object) -> None:
        if not isinstance(table, dict):
            self.mistakes.append('flavors: is a section: write [flavors."NAME"] and its keys below it')
            return
        for name, value in table.items():
            dotted = f'flavors."{name}"'
            try:
                check_name(name)
            except InvalidInput as error:
                self.mistakes.append(f"{dotted}: {error}")
            if not isinstance(value, dict):
                self.mistakes.append(f'{dotted}: is a flavor: write [flavors."{name}"] and its keys below it')
            elif nested := [key for key, item in value.items() if isinstance(item, dict)]:
                self.mistakes.append(f'{dotted}: put the whole name in quotes: [flavors."{name}.{nested[0]}"]')
            else:
                self._flavor(name, dotted, value)

    def _flavor(self, name: str, dotted: str, table: Mapping[str, object]) -> None:
        values: dict[str, Any] = {}
        before = len(self.mistakes)
        for key, value in table.items():
            if key not in FLAVOR_KEYS:
                self.mistakes.append(f"{dotted}.{key}: unknown key{_meant(key, FLAVOR_KEYS)}")
                continue
            try:
                values[key] = FLAVOR_KEYS[key](value)
            except InvalidInput as error:
                self.mistakes.append(f"{dotted}.{key}: {error}")
        self.mistakes += [f"{dotted}.{key}: is missing: a flavor needs {', '.join(_FLAVOR_NEEDS)}" for key in _FLAVOR_NEEDS if key not in table]
        if len(self.mistakes) == before:
            self.flavors[name] = make_flavor(name, **values)

    def _unknown(self, dotted: str, origin: str = "") -> None:
        if any(part in UNSUPPORTED for part in _prefixes(dotted)):
            self.mistakes.append(f"{origin}{dotted}: not supported by this version of imagefs ({__version__}), which would ignore it: remove it")
            return
        kind = "unknown key" if "." in dotted or origin else "unknown section"
        self.mistakes.append(f"{origin}{dotted}: {kind}{_meant(dotted, [*SECTIONS, *all_keys(), 'flavors'])}")


def _prefixes(dotted: str) -> Iterator[str]:
    parts = dotted.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _meant(word: str, known: Mapping[str, object] | list[str]) -> str:
    """Return ": did you mean ...?" for the known word that is most like `word`, or that ends in it; else nothing."""
    last = word.rpartition(".")[2]
    close = difflib.get_close_matches(word, known, 1, 0.75) or [key for key in known if key.endswith(f".{last}")]
    close = close or [key for key in known if difflib.get_close_matches(last, [key.rpartition(".")[2]], 1, 0.8)]
    return f": did you mean {close[0]}?" if close else ""

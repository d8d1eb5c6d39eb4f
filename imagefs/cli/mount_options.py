"""This module reads the options of a mount: `-o` as mount(8), fstab and sshfs users write it. Pure.

key=value            a key of the configuration in dotted form, such as store.url=s3://images or state.dir=/srv/imagefs
allow_other          the same as mount.allow_other=true
config=FILE          the configuration file, for fstab, which has no -c
rw, noauto, x-..., _netdev, ...   what is meant for mount(8) and systemd, and says nothing to imagefs
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from imagefs.errors import ConfigError

IGNORED: Final = frozenset(
    {"rw", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev", "defaults", "suid", "nosuid", "dev", "nodev", "exec"}
    | {"noexec", "async", "sync", "dirsync", "atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "lazytime"}
    | {"nolazytime", "loud", "silent", "mand", "nomand", "iversion", "noiversion"}
)
"""What mount(8) passes on, or fstab has for it."""
_IGNORED_PREFIXES: Final = ("x-", "comment=", "uhelper=", "helper=")


@dataclasses.dataclass(frozen=True, slots=True)
class MountOptions:
    """What the options say: values by dotted key of the configuration, and the file named by config=."""

    overrides: dict[str, str] = dataclasses.field(default_factory=dict)
    config_path: Path | None = None


def parse_options(texts: Iterable[str]) -> MountOptions:
    """Return what comma-separated options mean; the last one of a key counts. Raises ConfigError with all mistakes in their form."""
    overrides: dict[str, str] = {}
    config_path: Path | None = None
    mistakes: list[str] = []
    for option in (option for text in texts for option in text.split(",") if option):
        key, separator, value = option.partition("=")
        if option in IGNORED or option.startswith(_IGNORED_PREFIXES):
            continue
        if option == "allow_other":
            overrides["mount.allow_other"] = "true"
        elif option == "ro":
            mistakes.append("ro: imagefs is not mounted read-only: images/ is read-only anyway, and instances/ is there to be written")
        elif key == "config" and value:
            config_path = Path(value)
        elif separator and "." in key:
            overrides[key] = value
        else:
            mistakes.append(f"{option}: unknown option: write a key of the configuration, such as store.url=URL, or allow_other")
    if mistakes:
        raise ConfigError("-o", mistakes)
    return MountOptions(overrides, config_path)

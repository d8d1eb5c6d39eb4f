"""This module reads what an instance's owner chooses for it before its image: one attribute of its directory each. Pure."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from imagefs.errors import InvalidInput
from imagefs.flavors import NUMBER_LIMIT
from imagefs.instances.config_drive import check_user_data, parse_meta_data
from imagefs.instances.ephemeral import plan_ephemerals
from imagefs.instances.record import Choices, InstanceRecord

EPHEMERAL_FORMATS: Final = ("none", "ext4", "xfs", "vfat")
DISK_FORMATS: Final = ("raw", "qcow2")
CONFIG_DRIVES: Final = ("cdrom", "disk")


def choose(choices: Choices, name: str, value: bytes) -> Choices:
    """Return the choices with what the attribute user.`name` is set to. Raises InvalidInput that says what it must be."""
    if name == "user_data":
        check_user_data(value)
        return msgspec.structs.replace(choices, user_data=value)
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"the value of user.{name} is not UTF-8") from None
    return msgspec.structs.replace(choices, **{name: _READERS[name](text)})


def _meta_data(text: str) -> str:
    parse_meta_data(text)
    return text


def _ephemeral(text: str) -> str:
    plan_ephemerals(NUMBER_LIMIT, text.strip())  # against the flavor it is held once the disks are made
    return text.strip()


def _one_of(name: str, allowed: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.strip() not in allowed:
            raise InvalidInput(f"user.{name} is '{text.strip()[:40]}': it must be one of {', '.join(allowed)}")
        return text.strip()

    return read


def _boolean(text: str) -> bool:
    if text.strip() not in ("true", "false"):
        raise InvalidInput(f"user.encrypted is '{text.strip()[:40]}': it must be true or false")
    return text.strip() == "true"


_READERS: Final[Mapping[str, Callable[[str], object]]] = {
    "ephemeral": _ephemeral,
    "ephemeral_format": _one_of("ephemeral_format", EPHEMERAL_FORMATS),
    "encrypted": _boolean,
    "disk_format": _one_of("disk_format", DISK_FORMATS),
    "meta_data": _meta_data,
    "config_drive": _one_of("config_drive", CONFIG_DRIVES),
}
CHOICES: Final = frozenset(_READERS) | {"user_data"}
SECRET_CHOICES: Final = frozenset({"user_data", "meta_data"})
"""What goes onto the config drive, which only its owner can read: there may be passwords in it."""


def shown_choices(record: InstanceRecord) -> dict[str, bytes]:
    """Return the choices that were made, as attributes without `user.`."""
    shown: dict[str, bytes] = {}
    for name, value in msgspec.structs.asdict(record.choices).items():
        if value is not None and (name != "config_drive" or record.choices.user_data or record.choices.meta_data):
            shown[name] = value if isinstance(value, bytes) else (str(value).lower() if isinstance(value, bool) else value).encode()
    return shown

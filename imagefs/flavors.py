"""This module is the flavors: how much memory, disk and how many vCPUs an instance gets, and the five that are built in."""

import unicodedata
import uuid
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from imagefs.errors import InvalidInput

NAME_LIMIT: Final = 255
"""Bytes of a flavor's name: it is a file name in flavors/."""
NUMBER_LIMIT: Final = 2**31 - 1
"""What Nova's database can hold in a flavor's numbers."""
_NAMESPACE: Final = uuid.UUID("6f0a2f5c-6f2e-5c0b-9d43-8a1d6c7b9e21")
_BUILT_IN_IDS: Final = {"m1.tiny": "1", "m1.small": "2", "m1.medium": "3", "m1.large": "4", "m1.xlarge": "5"}


class Flavor(msgspec.Struct, frozen=True):
    """One flavor: `ram` and `swap` in MiB, `disk` and `ephemeral` in GiB; disk 0 means the image's own size.

    `projects` are the ids of those that see a private one, as Nova's flavor access has them.
    """

    id: str
    name: str
    vcpus: int
    ram: int
    disk: int
    ephemeral: int = 0
    swap: int = 0
    is_public: bool = True
    projects: tuple[str, ...] = ()

    def shown(self, *, with_projects: bool = False) -> dict[str, str | int | bool | list[str]]:
        """Return what flavors/<name> holds as JSON: every attribute under Nova's name for it, and `projects` only if asked for."""
        shown = {field: getattr(self, field) for field in self.__struct_fields__ if field != "projects"}
        return {**shown, "projects": list(self.projects)} if with_projects else shown


class Viewer(Protocol):
    """What is needed of imagefs.identity.map.Identity."""

    @property
    def project_id(self) -> str | None:
        """The project that it acts for."""
        ...


def visible(flavor: Flavor, identity: Viewer, admin: bool) -> bool:
    """Tell whether an identity, admin or not, sees a flavor and may use it: a public one, or one that its project has been given."""
    return flavor.is_public or admin or (identity.project_id is not None and identity.project_id in flavor.projects)


def make_flavor(
    name: str, *, vcpus: int, ram: int, disk: int, ephemeral: int = 0, swap: int = 0, is_public: bool = True, projects: tuple[str, ...] = ()
) -> Flavor:
    """Return a flavor with the id that its name always gets: "1" to "5" for the built-in names, a UUIDv5 for all others."""
    flavor_id = _BUILT_IN_IDS.get(name) or str(uuid.uuid5(_NAMESPACE, name))
    return Flavor(flavor_id, name, vcpus, ram, disk, ephemeral, swap, is_public, projects)


BUILT_IN: Final[Mapping[str, Flavor]] = {
    "m1.tiny": make_flavor("m1.tiny", vcpus=1, ram=512, disk=1),
    "m1.small": make_flavor("m1.small", vcpus=1, ram=2048, disk=20),
    "m1.medium": make_flavor("m1.medium", vcpus=2, ram=4096, disk=40),
    "m1.large": make_flavor("m1.large", vcpus=4, ram=8192, disk=80),
    "m1.xlarge": make_flavor("m1.xlarge", vcpus=8, ram=16384, disk=160),
}
"""As in every OpenStack since Nova had them built in."""


def check_name(name: str) -> None:
    """Raise InvalidInput unless `name` can name a flavor: a file name of 1 to 255 bytes without '/' and control characters."""
    if not name or name in {".", ".."} or "/" in name or any(unicodedata.category(character) in {"Cc", "Cs"} for character in name):
        raise InvalidInput(f"{name!r} cannot be a flavor's name: use printable text without '/'")
    if len(name.encode()) > NAME_LIMIT:
        raise InvalidInput(f"'{name[:40]}...' cannot be a flavor's name: it has more than {NAME_LIMIT} bytes")

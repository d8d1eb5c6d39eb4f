"""This module is flavors/: each flavor as a JSON file, private ones for admins and for the projects that have been given them."""

import functools
import json
import os
from collections.abc import Iterable, Mapping

from imagefs.errors import NotFound
from imagefs.files.fixed import STARTED_NS, TextFile
from imagefs.files.images import listing_inode
from imagefs.files.node import PUBLIC_TIMEOUT, Attributes, Children, Node, OpenMode, directory_attributes
from imagefs.flavors import Flavor, visible
from imagefs.identity.caller import Caller
from imagefs.sight import Sight, Sights


class PrivateFlavorFile(TextFile):
    """A private flavor, as admins see it or as others do. The kernel keeps nothing of it, and each operation asks who is calling."""

    def __init__(self, flavor: Flavor, sights: Sights, uid: int, gid: int, *, for_admin: bool) -> None:
        """Take the flavor, and who callers are; admins see also whom it is for."""
        super().__init__(f"flavors/{flavor.name}\0{'admin' if for_admin else 'project'}", _text(flavor, with_projects=for_admin), uid, gid)
        self._flavor = flavor
        self._sights = sights
        self._for_admin = for_admin

    def attributes(self) -> Attributes:
        """As Node says."""
        shown = super().attributes()
        shown.name_timeout = shown.attributes_timeout = 0.0
        return shown

    def check(self, caller: Caller, wanted: int) -> None:
        """As Node says. Raises NotFound for callers who must not know of the flavor, or not this much."""
        sight = self._sights.of(caller)
        admin = _is_admin(sight)
        if not visible(self._flavor, sight.identity, admin) or (self._for_admin and not admin):
            raise not_found(self._flavor.name)
        super().check(caller, wanted)

    async def open(self, caller: Caller, flags: int) -> OpenMode:
        """As Node says. Raises NotFound."""
        self.check(caller, os.R_OK)
        return await super().open(caller, flags)


class FlavorsDirectory(Node):
    """flavors/: what there is depends on who asks."""

    kind = "directory"

    def __init__(self, flavors: Mapping[str, Flavor], sights: Sights, uid: int, gid: int) -> None:
        """Take the flavors by name, and who callers are; `uid` and `gid` own the files."""
        super().__init__("flavors")
        self._flavors = flavors
        self._sights = sights
        self._owner = (uid, gid)
        public = {name: TextFile(f"flavors/{name}", _text(flavor), uid, gid) for name, flavor in flavors.items() if flavor.is_public}
        private = {name: flavor for name, flavor in flavors.items() if not flavor.is_public}
        self._for_projects = public | {name: PrivateFlavorFile(flavor, sights, uid, gid, for_admin=False) for name, flavor in private.items()}
        self._for_admins = public | {name: PrivateFlavorFile(flavor, sights, uid, gid, for_admin=True) for name, flavor in private.items()}

    @property
    def fixed(self) -> Iterable[Node]:
        """All files, whoever may see them."""
        return {node.inode: node for node in (*self._for_projects.values(), *self._for_admins.values())}.values()

    def attributes(self) -> Attributes:
        """As Node says."""
        return directory_attributes(self.inode, 0o555, *self._owner, STARTED_NS, name_timeout=PUBLIC_TIMEOUT)

    async def lookup(self, caller: Caller, name: str) -> Node:
        """As Node says."""
        found = self._files_of(self._sights.of(caller)).get(name)
        if found is None:
            raise not_found(name)
        return found

    async def children(self, caller: Caller) -> Children:
        """As Node says."""
        return await self.children_of(self._sights.of(caller))

    async def children_of(self, sight: Sight) -> Children:
        """Return the children that an identity sees."""
        return [(name, functools.partial(_itself, node)) for name, node in self._files_of(sight).items()]

    def listing_inode(self, caller: Caller) -> int:
        """As Node says."""
        return listing_inode(self, self._sights.of(caller).identity)

    def _files_of(self, sight: Sight) -> Mapping[str, Node]:
        admin = _is_admin(sight)
        if admin:
            return self._for_admins
        return {name: node for name, node in self._for_projects.items() if visible(self._flavors[name], sight.identity, admin)}


def not_found(name: str) -> NotFound:
    """Return what is raised for a flavor that there is not, or not for this caller: nobody can tell the two apart."""
    return NotFound(f"there is no flavor '{name}'")


def _is_admin(sight: Sight) -> bool:
    return sight.access.is_admin(sight.identity)


def _itself(node: Node) -> Node:
    return node


def _text(flavor: Flavor, *, with_projects: bool = False) -> str:
    return json.dumps(flavor.shown(with_projects=with_projects), indent=2) + "\n"

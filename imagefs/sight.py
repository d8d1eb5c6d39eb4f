"""This module is what identities see of the catalog: which images, under which names, and their attributes.

A `Sight` belongs to one identity and one set of rules, and remembers what those rules said of each image's record: a policy is
evaluated once for an identity and a record, however often the kernel asks.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Final

import trio

from imagefs.catalog import FILE_NAME_LIMIT, Catalog, CatalogImage, FileNames, Snapshot, file_name, newest_active
from imagefs.errors import NotFound, StoreError
from imagefs.identity.caller import Caller
from imagefs.identity.map import Identity, IdentityMap
from imagefs.properties.access import Access
from imagefs.properties.view import XATTR_VALUE_LIMIT, as_xattrs, listing_line
from imagefs.scroll import Scroll
from imagefs.store.record import ImageRecord, is_image_id
from imagefs.verdicts import Verdicts

SIGHTS: Final = 256
"""Identities whose sights are kept; the one that was not asked for longest is made anew when it comes back."""
CALLERS: Final = 1024
"""Callers whose sights are found without asking who they are."""
VIEWS: Final = 256
"""Images whose attributes are kept ready in one sight."""
COMMON_LIMIT: Final = 64
"""Identities that are asked whether everybody sees an image; with more in the map the answer is no, which costs the kernel's caches."""
QUESTIONS: Final = 32
"""Ids that no look has found which an identity may ask the store about at once; admins may ask about any number."""
QUESTIONS_PER_SECOND: Final = 2.0
"""And from then on. Beyond that they are not there until the next look finds them: who tries out ids must not load the store for all."""
BREATH: Final = 64
"""Images that are looked at before other requests have their turn: 3 ms where each has to be unpacked and judged."""
LISTS: Final = 16
"""Identities whose lists and names are kept ready: of 100,000 images they take 6 MB. Those of others are put together again, from what is known
of each image."""
_JUDGED, _SEEN, _WEIGHED, _LISTED, _HIDDEN = 1, 2, 4, 8, 16
"""What is known of an image: whether `sees` was answered, and the answer; whether `_lists` was, the answer, and whether the image is hidden."""


CACHED: Final = "user.imagefs.cached"
"""Listed with the others; what it says changes all the time, and is for the file to find out."""
PREFETCH: Final = "user.imagefs.prefetch"
"""The same, for who may fill the cache: the policy cache_image."""
PIN: Final = "user.imagefs.pin"
"""The same, for who may manage it: the policy manage_image_cache."""
OMITTED: Final = "user.imagefs.omitted"
MEMBERS: Final = "user.imagefs.members"


@dataclasses.dataclass(frozen=True, slots=True)
class Attributes:
    """An image's extended attributes as one identity sees them, and their names ready for listxattr(2)."""

    xattrs: dict[str, bytes]
    names: tuple[bytes, ...]
    by_name: dict[bytes, bytes]
    """Those of `xattrs` that are always the same for this record, by the names that the kernel uses."""


class Sight:
    """What one identity sees of the catalog under one set of rules. All methods run on the event loop."""

    def __init__(self, identity: Identity, access: Access, catalog: Catalog, keep: Callable[["Sight"], None] = lambda sight: None) -> None:
        """Take who looks, the rules, and what there is. `keep` is called when there are lists; `drop_lists` may follow."""
        self.identity = identity
        self.access = access
        self._catalog = catalog
        self._keep = keep
        self._verdicts = Verdicts()
        self._views: dict[str, tuple[CatalogImage, Attributes]] = {}
        self._listed: tuple[Snapshot, list[CatalogImage]] | None = None
        self._names: tuple[Snapshot, dict[str, str]] | None = None
        self._making, self._naming = trio.Lock(), trio.Lock()
        self._questions, self._counted_at = float(QUESTIONS), 0.0
        self.listing_lock = trio.Lock()
        """For who calls `listing`: many at once would take as many times its room."""

    def sees(self, image: CatalogImage) -> bool:
        """Tell whether the identity sees the image, by its id if not in lists."""
        known = self._verdicts.of(image.number)
        if not known & _JUDGED:
            self._verdicts.trim(len(self._catalog.snapshot.images))
            known = _JUDGED | (_SEEN if self.access.sees(self.identity, image.record) else 0)
            self._verdicts.add(image.number, known)
        return bool(known & _SEEN)

    def _weighed(self, image: CatalogImage) -> int:
        """Return what is known of the image, now that it is known whether the default listing has it, or would if it were not hidden."""
        known = self._verdicts.of(image.number)
        if not known & _WEIGHED:
            record = image.record
            listed = self.sees(image) and self.access.lists(self.identity, record, hidden=record.os_hidden)
            self._verdicts.add(image.number, _WEIGHED | (_LISTED if listed else 0) | (_HIDDEN if record.os_hidden else 0))
            known = self._verdicts.of(image.number)
        return known

    def drop_lists(self) -> None:
        """Let go of what can be put together again."""
        self._listed = self._names = None

    def check(self, image: CatalogImage) -> None:
        """Raise NotFound unless the identity sees the image: with the words for an image that does not exist."""
        if not self.sees(image):
            raise NotFound(f"there is no image {image.id}")

    def xattrs(self, image: CatalogImage) -> Attributes:
        """Return the image's attributes that the identity may read. The caller has checked that it sees the image."""
        image_id = image.id
        known = self._views.get(image_id)
        if known is not None and known[0] is image:
            return known[1]
        self._views.pop(image_id, None)
        if len(self._views) >= VIEWS:
            del self._views[next(iter(self._views))]
        attributes = self._attributes(image)
        self._views[image_id] = (image, attributes)
        return attributes

    def _attributes(self, image: CatalogImage) -> Attributes:
        record = image.record
        view = as_xattrs(record, self.access.readable(self.identity, record))
        xattrs, omitted = view.xattrs, view.omitted
        if self.access.may_see_members(self.identity, record):
            members = self.access.members(self.identity, record)
            shown = json.dumps([{"member_id": member.project_id, "status": member.status} for member in members]).encode()
            if len(shown) <= XATTR_VALUE_LIMIT:
                xattrs[MEMBERS] = shown
            else:
                omitted += 1
        if omitted:
            xattrs[OMITTED] = str(omitted).encode()
        by_name = {os.fsencode(name): value for name, value in xattrs.items()}
        live = [CACHED]
        live += [
            name for name, policy in ((PREFETCH, "cache_image"), (PIN, "manage_image_cache")) if self.access.allows(policy, self.identity, record)
        ]
        return Attributes(xattrs | dict.fromkeys(live, b""), (*by_name, *map(str.encode, live)), by_name)

    async def find(self, image_id: str) -> CatalogImage:
        """Return an image that the identity sees, asking the store for one that no look has found yet.

        Raises NotFound, and StoreError for admins: to others what the store does not tell is not there.
        """
        image = self._catalog.snapshot.images.get(image_id)
        if image is None:
            if not is_image_id(image_id):
                raise NotFound(f"there is no image {image_id}")
            if not self._may_ask():
                raise NotFound(f"there is no image {image_id}")
            try:
                image = await self._catalog.find_soon(image_id)
            except (NotFound, StoreError) as error:
                if isinstance(error, StoreError) and self.access.is_admin(self.identity):
                    raise
                # An image that is known and hidden is not there for this caller: an answer in other words would tell the two apart.
                raise NotFound(f"there is no image {image_id}") from None
        self.check(image)
        return image

    def _may_ask(self) -> bool:
        """Count one question to the store about an id that no look has found, if the identity may ask one."""
        now = trio.current_time()
        self._questions = min(QUESTIONS, self._questions + (now - self._counted_at) * QUESTIONS_PER_SECOND)
        self._counted_at = now
        if self._questions < 1:
            return self.access.is_admin(self.identity)
        self._questions -= 1
        return True

    async def listed(self) -> Sequence[CatalogImage]:
        """Return the images of the default listing, in any order."""
        return (await self._lists())[1]

    async def _lists(self) -> tuple[Snapshot, list[CatalogImage]]:
        """Return the images of the default listing, and as of which state of the catalog."""
        async with self._making:  # one at a time: who comes next finds it done
            made, snapshot = self._listed, self._catalog.snapshot
            if made is None or made[0] is not snapshot:
                images = []
                for count, image in enumerate(snapshot.images.values(), 1):
                    if self._weighed(image) & (_LISTED | _HIDDEN) == _LISTED:
                        images.append(image)
                    if count % BREATH == 0:
                        await trio.lowlevel.checkpoint()
                made = self._listed = (snapshot, images)
                self._keep(self)
        return made

    async def names(self) -> dict[str, str]:
        """Return names/ as the identity sees it: from file names to image ids.

        Only what is in its lists has a name: else anybody's community image could take the name of another.
        """
        async with self._naming:
            snapshot, images = await self._lists()
            named = self._names
            if named is None or named[0] is not snapshot:
                names = FileNames()
                for count, image in enumerate(images, 1):
                    names.add(image)
                    if count % BREATH == 0:
                        await trio.lowlevel.checkpoint()
                for count, _ in enumerate(names.finish(), 1):
                    if count % BREATH == 0:
                        await trio.lowlevel.checkpoint()
                named = self._names = (snapshot, names.by_name)
        return named[1]

    async def resolve(self, name: str) -> CatalogImage:
        """Return the image that a caller means by an id, by a name as names/ shows it, or by one that is cut there. Raises NotFound, StoreError.

        An id is never taken for a name: whoever gave an image the name of a deleted one's id would be booted in its place.
        """
        if is_image_id(name):
            return await self.find(name)
        names = await self.names()
        image_id = names.get(file_name(name)) or names.get(name)
        if image_id is None and len(file_name(name).encode()) > FILE_NAME_LIMIT:
            group = [image for image in await self.listed() if image.name == name]
            image_id = newest_active(group).id if group else None
        image = self._catalog.snapshot.images.get(image_id) if image_id is not None else None
        if image is None or not self.sees(image):
            raise NotFound(f"there is no image with the id or name '{name}': see imagefs image list")
        return image

    async def listing(self) -> Scroll:
        """Return a line of JSON for every image that the identity sees, those in no list included."""
        lines = Scroll()
        for count, image in enumerate(list(self._catalog.snapshot.images.values()), 1):
            if self.sees(image):
                record = image.record
                readable = self.access.readable(self.identity, record)
                lines.append(listing_line(record, readable, bool(self._weighed(image) & _LISTED), self._membership(record)))
            if count % BREATH == 0:
                await trio.lowlevel.checkpoint()
        return lines

    def _membership(self, record: ImageRecord) -> str | None:
        project = self.identity.project_id
        return next((member.status for member in record.members if member.project_id == project), None)


class Sights:
    """The sights of all identities, and the rules they go by. `access` is replaced as a whole when the rules are read again."""

    def __init__(self, catalog: Catalog, identities: IdentityMap, access: Access, common: Sequence[Identity]) -> None:
        """`common` are the identities of all callers that the kernel lets in: what all of them see, the kernel may keep."""
        self._catalog = catalog
        self._identities = identities
        self._common = common
        self._sights: collections.OrderedDict[Identity, Sight] = collections.OrderedDict()
        self._of: dict[int, tuple[Caller, Sight]] = {}  # by object: there is one for each uid and gid, for seconds
        self._public = Verdicts()
        self._with_lists: collections.OrderedDict[int, Sight] = collections.OrderedDict()
        self.access = access
        self._loads = 0

    @property
    def generation(self) -> tuple[int, int]:
        """What changes whenever the catalog or the rules do."""
        return self._loads, self._catalog.snapshot.generation

    def of(self, caller: Caller) -> Sight:
        """Return what the caller sees."""
        known = self._of.get(id(caller))
        if known is not None and known[0] is caller:
            return known[1]
        sight = self.sight(self._identities.identity(caller))
        if len(self._of) >= CALLERS:
            self._of.clear()
        self._of[id(caller)] = (caller, sight)
        return sight

    def sight(self, identity: Identity) -> Sight:
        """Return what the identity sees."""
        found = self._sights.get(identity)
        if found is None:
            found = self._sights[identity] = Sight(identity, self.access, self._catalog, self._keep_lists)
            if len(self._sights) > SIGHTS:
                self._sights.popitem(last=False)
        else:
            self._sights.move_to_end(identity)
        return found

    def everyone(self) -> Sequence[Identity]:
        """Return all identities that callers may have."""
        return self._identities.everyone

    def replace(self, access: Access) -> None:
        """Go by other rules from now on."""
        self.access = access
        self._loads += 1
        self._sights.clear()
        self._of.clear()
        self._with_lists.clear()
        self._public = Verdicts()

    def is_public(self, image: CatalogImage) -> bool:
        """Tell whether every caller sees the image, so that the kernel may keep its name and attributes for all of them."""
        known = self._public.of(image.number)
        if not known:
            self._public.trim(len(self._catalog.snapshot.images))
            everybody = len(self._common) <= COMMON_LIMIT and all(self.sight(identity).sees(image) for identity in self._common)
            known = _JUDGED | (_SEEN if everybody else 0)
            self._public.add(image.number, known)
        return bool(known & _SEEN)

    def _keep_lists(self, sight: Sight) -> None:
        """Take note of who has made lists; who made them longest ago lets go of them."""
        self._with_lists.pop(id(sight), None)
        self._with_lists[id(sight)] = sight
        if len(self._with_lists) > LISTS:
            self._with_lists.popitem(last=False)[1].drop_lists()

"""This module answers the kernel: each handler unpacks a request, calls one method of a node, and packs the reply.

File handles are inode numbers and nothing is kept for them here, so that a restarted daemon serves handles it never gave out.
"""

import array
import bisect
import collections
import contextvars
import dataclasses
import hashlib
import os
import stat
from collections.abc import Sequence
from typing import Final

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from imagefs.counters import COUNTERS
from imagefs.errors import Denied, NotFound, ReadOnly, Unsupported
from imagefs.files.node import Attributes, Changes, Children, Node
from imagefs.files.tree import Tree
from imagefs.fuse.errno import guarded
from imagefs.identity.caller import Caller, Callers, Groups
from imagefs.properties.change import Mode
from imagefs.sight import BREATH

BLOCK_SIZE: Final = 1024 * 1024
"""st_blksize: what cp and cat read at once."""

LISTINGS: Final = 16
"""Lists of directories that are kept, for those who have them open and who open them next; each may have a hundred thousand entries."""

_ASKED: Final[contextvars.ContextVar[tuple[RequestContext | None, bool]]] = contextvars.ContextVar("asked", default=(None, False))
"""The request that `getxattr` was called for last in this task, and whether it found the attribute."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Listing:
    """The list of a directory, as of a version (see Node.listing_version): its children, and in which order they stand at which positions.

    Twelve bytes for each child: there may be sixteen lists of a hundred thousand.
    """

    version: object
    positions: "array.array[int]"
    order: "array.array[int]"
    children: Children


class Operations(pyfuse3.Operations):
    """The handlers of one mount."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, tree: Tree, groups: Groups, state_path: str) -> None:
        """Serve `tree` to callers with these `groups`; statfs speaks of the filesystem that holds `state_path`."""
        super().__init__()
        self._tree = tree
        self._callers = Callers(groups)
        self._state_path = state_path
        self._listings: collections.OrderedDict[int, _Listing] = collections.OrderedDict()
        self._listing = trio.Lock()

    async def _caller(self, context: RequestContext) -> Caller:
        """Return who asks."""
        uid, gid, umask = context.uid, context.gid, context.umask
        return self._callers.nowait(uid, gid, umask) or await self._callers.find(uid, gid, umask)

    # -- names and attributes -------------------------------------------------------------------

    @guarded
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """Find a child."""
        caller = await self._caller(ctx)
        child = await self._tree.node(parent_inode).lookup(caller, os.fsdecode(name))
        return packed(self._tree.know(child).attributes())

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Let go of nodes that the kernel has let go of."""
        for count, (inode, times) in enumerate(inode_list, 1):
            self._tree.forget(inode, times)
            if count % (4 * BREATH) == 0:  # of a hundred thousand, when the kernel wants its memory back
                await trio.lowlevel.checkpoint()

    @guarded
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Answer stat(2). It comes without a path, for what was looked up, which was checked, or is open: whoever has that may know its size."""
        return packed(self._tree.node(inode).attributes())

    @guarded
    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Answer chmod, chown, truncate and utimens (times are accepted and follow the data)."""
        node = self._tree.node(inode)
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
        )
        await node.change(await self._caller(ctx), changes)
        return packed(node.attributes())

    @guarded
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """Return where a symbolic link leads."""
        return FileNameT(os.fsencode(await self._tree.node(inode).target(await self._caller(ctx))))

    @guarded
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        """Tell whether the caller may do what it asks about; writing where nobody writes is EROFS, as it is for open(2)."""
        node = self._tree.node(inode)
        try:
            caller = await self._caller(ctx)
            if mode & os.W_OK and node.read_only:
                raise ReadOnly(f"{node!r} is never written")
            node.check(caller, mode)
        except Denied:
            return False
        return True

    # -- making and removing --------------------------------------------------------------------

    @guarded
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        """Make a directory."""
        caller = await self._caller(ctx)
        made = await self._tree.node(parent_inode).make_directory(caller, os.fsdecode(name), mode)
        return packed(self._tree.know(made).attributes())

    @guarded
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a directory."""
        await self._tree.node(parent_inode).remove_directory(await self._caller(ctx), os.fsdecode(name))

    @guarded
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a file."""
        await self._tree.node(parent_inode).remove_file(await self._caller(ctx), os.fsdecode(name))

    @guarded
    async def create(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext) -> tuple[FileInfo, EntryAttributes]:
        """Make and open a file."""
        caller = await self._caller(ctx)
        made = self._tree.know(await self._tree.node(parent_inode).make_file(caller, os.fsdecode(name), mode))
        return await self._opened(made, caller, flags), packed(made.attributes())

    @guarded
    async def mknod(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext) -> EntryAttributes:
        """Make a file; devices and pipes are files of another kind, which there are none of here."""
        caller = await self._caller(ctx)
        parent = self._tree.node(parent_inode)
        if not stat.S_ISREG(mode):
            raise parent.refusal("devices and pipes")
        return packed(self._tree.know(await parent.make_file(caller, os.fsdecode(name), mode)).attributes())

    @guarded
    async def symlink(self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """Make a symbolic link."""
        caller = await self._caller(ctx)
        made = await self._tree.node(parent_inode).make_link(caller, os.fsdecode(name), os.fsdecode(target))
        return packed(self._tree.know(made).attributes())

    @guarded
    async def link(self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """Refuse hard links: each file has one name."""
        raise self._tree.node(new_parent_inode).refusal("hard links")

    @guarded
    async def rename(
        self, parent_inode_old: InodeT, name_old: FileNameT, parent_inode_new: InodeT, name_new: FileNameT, flags: FlagT, ctx: RequestContext
    ) -> None:
        """Refuse: names are ids here, or mean something."""
        raise self._tree.node(parent_inode_new).refusal("other names for what has one")

    # -- files ----------------------------------------------------------------------------------

    @guarded
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file."""
        return await self._opened(self._tree.node(inode), await self._caller(ctx), flags)

    async def _opened(self, node: Node, caller: Caller, flags: int) -> FileInfo:
        mode = await node.open(caller, flags)
        return FileInfo(fh=FileHandleT(node.inode), keep_cache=mode.keep_pages, direct_io=mode.uncached)

    @guarded
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read: a hit is answered here and now, without leaving the event loop."""
        node = self._tree.node(fh)
        found = node.read_nowait(off, size)
        if found is None:
            found = await node.read(off, size)
        COUNTERS.reads += 1
        COUNTERS.read_bytes += len(found)
        return found  # type: ignore[return-value]  # pyfuse3 takes anything with a buffer

    @guarded
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write."""
        node = self._tree.node(fh)
        written = node.write_nowait(off, buf)
        if written is None:
            written = await node.write(off, buf)
        COUNTERS.writes += 1
        COUNTERS.written_bytes += written
        return written

    async def flush(self, fh: FileHandleT) -> None:
        """Answer close(2): nothing is held back that it would have to push."""

    @guarded
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Make what was written durable."""
        COUNTERS.flushes += 1
        await self._tree.node(fh).flush()

    @guarded
    async def release(self, fh: FileHandleT) -> None:
        """Forget one open."""
        await self._tree.node(fh).close()

    # -- directories ----------------------------------------------------------------------------

    @guarded
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Take the directory's list, checked for the caller.

        Entries stand in the order of a hash of their names, and the hash is the position: a reader neither misses nor sees
        twice what was there all the time, even when the directory changes or the daemon restarts between two calls.
        """
        caller = await self._caller(ctx)
        directory = self._tree.node(inode)
        number = directory.listing_inode(caller)
        async with self._listing:  # one at a time: each takes its time and its room, and the next one may find it done
            version = directory.listing_version()
            known = self._listings.pop(number, None)
            if known is None or version is None or known.version != version:
                known = await _ordered(version, await directory.children(caller))
            self._keep(number, known)
        return FileHandleT(number)

    @guarded
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """List entries behind position `start_id`, with their attributes."""
        listing = self._listings.get(fh)
        if listing is None:
            listing = await _ordered(None, await self._tree.listing(fh))
            self._keep(fh, listing)
        positions = listing.positions
        for index in range(bisect.bisect_right(positions, start_id), len(positions)):
            name, give = listing.children[listing.order[index]]
            node = give()
            try:
                shown = packed(node.attributes())
            except NotFound:  # removed since the list was taken
                continue
            if not pyfuse3.readdir_reply(token, FileNameT(os.fsencode(name)), shown, positions[index]):
                return
            self._tree.know(node)
            if index % BREATH == 0:  # the kernel may ask for thousands at once
                await trio.lowlevel.checkpoint()

    @guarded
    async def releasedir(self, fh: FileHandleT) -> None:
        """Forget the list, unless the next to open the directory may find it as good as new."""
        listing = self._listings.get(fh)
        if listing is not None and listing.version is None:
            del self._listings[fh]

    def _keep(self, number: int, listing: "_Listing") -> None:
        """Keep a list for those who read it; one that is not there any more is made again for them."""
        self._listings[number] = listing
        if len(self._listings) > LISTINGS:
            self._listings.popitem(last=False)

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """What was made or removed is durable before it is answered."""

    # -- extended attributes --------------------------------------------------------------------

    @guarded
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """Read one extended attribute."""
        caller = self._callers.nowait(ctx.uid, ctx.gid, ctx.umask) or await self._caller(ctx)
        node = self._tree.node(inode)
        value = node.xattr_nowait(caller, name)
        if value is None:
            _check_supported(name)
            _ASKED.set((ctx, False))
            value = await node.xattr(caller, os.fsdecode(name))
        _ASKED.set((ctx, True))
        return value

    @guarded
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """List extended attributes."""
        caller = self._callers.nowait(ctx.uid, ctx.gid, ctx.umask) or await self._caller(ctx)
        return self._tree.node(inode).xattr_names(caller)

    @guarded
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        """Set an extended attribute.

        pyfuse3 does not pass on the flags XATTR_CREATE and XATTR_REPLACE: it calls `getxattr` first, for the same request. What that
        answered tells the flag, so that the store can decide by it too, where another writer may have been meanwhile.
        """
        _check_supported(name)
        asked, found = _ASKED.get()
        mode = Mode.SET if asked is not ctx else Mode.REPLACE if found else Mode.CREATE
        await self._tree.node(inode).set_xattr(await self._caller(ctx), os.fsdecode(name), bytes(value), mode)

    @guarded
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Remove an extended attribute."""
        _check_supported(name)
        await self._tree.node(inode).remove_xattr(await self._caller(ctx), os.fsdecode(name))

    # -- the filesystem -------------------------------------------------------------------------

    @guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Show the room on the filesystem that holds the state directory: what instances can still grow into."""
        host = os.statvfs(self._state_path)
        shown = StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_namemax"):
            setattr(shown, field, getattr(host, field))
        return shown


def packed(shown: Attributes) -> EntryAttributes:
    """Return attributes in pyfuse3's form."""
    entry = EntryAttributes()
    entry.st_ino = InodeT(shown.inode)
    entry.st_mode = ModeT(shown.mode)
    entry.st_nlink = shown.links
    entry.st_uid = shown.uid
    entry.st_gid = shown.gid
    entry.st_size = shown.size
    entry.st_blksize = BLOCK_SIZE
    entry.st_blocks = -(-shown.allocated // 512)
    entry.st_atime_ns = shown.modified_ns
    entry.st_mtime_ns = shown.modified_ns
    entry.st_ctime_ns = shown.changed_ns
    entry.st_birthtime_ns = shown.modified_ns
    entry.entry_timeout = shown.name_timeout
    entry.attr_timeout = shown.attributes_timeout
    return entry


def _check_supported(name: bytes) -> None:
    """Raise Unsupported for access control lists and security labels, of which there are none here, whoever asks and for what.

    Saying so, and not that this file has none, makes ls ask once and not twice for each file.
    """
    if name.startswith((b"system.", b"security.")):
        raise Unsupported("there are no access control lists and no security labels here")


async def _ordered(version: object, children: Children) -> _Listing:
    """Return the children by their positions. Other requests have their turn meanwhile: there may be a hundred thousand.

    They are sorted in parts, by the first byte of their positions: sorting all of them at once would hold up everybody for 60 ms.
    """
    parts: list[list[tuple[int, int]]] = [[] for _ in range(256)]
    for index, (name, _) in enumerate(children):
        position = _position(name)
        parts[position >> 54].append((position, index))
        if index % BREATH == BREATH - 1:
            await trio.lowlevel.checkpoint()
    positions, order = array.array("q"), array.array("I")
    for part in parts:
        if part:
            part.sort()
            positions.extend(position for position, _ in part)
            order.extend(index for _, index in part)
            await trio.lowlevel.checkpoint()
    return _Listing(version, positions, order, children)


def _position(name: str) -> int:
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**62 - 1) or 1

"""This module puts the parts together and keeps them running: it owns the one nursery, the signals and the order of the end."""

import contextlib
import ctypes
import gc
import grp
import logging
import os
import pwd
import resource
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

from imagefs import threads
from imagefs.aio.engine import open_engine, serving
from imagefs.cache.budget import Budget
from imagefs.cache.memory import Memory
from imagefs.cache.pins import Pins
from imagefs.cache.root import CacheRoot
from imagefs.catalog import Catalog, RecordDatabase
from imagefs.config import Config
from imagefs.counters import COUNTERS
from imagefs.errors import InvalidInput
from imagefs.fetch.backoff import RetryPolicy
from imagefs.files.instance import InstanceParts
from imagefs.files.tree import Tree
from imagefs.fuse.server import Server
from imagefs.hydration.hydrator import Hydrator
from imagefs.identity.caller import Caller, Groups
from imagefs.identity.map import Identity, IdentityMap
from imagefs.instances.attachments import Attachments
from imagefs.instances.creation import Creation
from imagefs.instances.registry import Instances
from imagefs.instances.snapshots import Snapshots
from imagefs.library import Library
from imagefs.metrics import Metrics
from imagefs.profile.boots import Boots
from imagefs.profile.shelf import ProfileShelf
from imagefs.profile.warmup import warm_extents
from imagefs.properties.access import Access
from imagefs.rules import load_access, load_identities
from imagefs.sight import Sights
from imagefs.statedir import StateDirectory
from imagefs.store.configured import open_configured
from imagefs.store.protocol import ImageStore
from imagefs.threads import Lane, run
from imagefs.upkeep import Upkeep
from imagefs.volumes.registry import Volumes

log = logging.getLogger(__name__)

ENDING_SECONDS: Final = 15.0
"""How long the end of a daemon may take once its disks are flushed. A store that hangs can hold an upload for many minutes, and the next
daemon goes on with it as after a crash."""


SWITCH_SECONDS: Final = 0.001
"""For which a thread that computes keeps the event loop waiting: Python's own 5 ms are a hundred cached reads."""


def serve(config: Config, mountpoint: Path, ready: Callable[[], None]) -> None:
    """Mount and serve until the mount is gone or SIGTERM or SIGINT comes; `ready` is called once the mount is usable.

    Blocks. Raises ImagefsError with one clear line for whatever keeps the mount from being made; nothing is then left mounted.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold guests' bytes and credentials
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    access, identities = load_access(config), load_identities(config)
    for hint in identities.hints:
        log.warning("the identity map can be used, but see whether it is meant so: %s", hint)
    state = StateDirectory(config.state.dir).lock(str(mountpoint))
    try:
        store = open_configured(config.store)
        trio.run(_Daemon(config, mountpoint, state, store, access, identities, ready).run)
    except BaseExceptionGroup as group:
        raise _single(group) from group
    finally:
        state.close()


class _Daemon:
    """One mount's parts, in the order they depend on each other."""

    def __init__(
        self,
        config: Config,
        mountpoint: Path,
        state: StateDirectory,
        store: ImageStore,
        access: Access,
        identities: IdentityMap,
        ready: Callable[[], None],
    ) -> None:
        self._config = config
        self._mountpoint = mountpoint
        self._state = state
        self._store = store
        self._access = access
        self._identities = identities
        self._ready = ready

    async def run(self) -> None:
        """Build the parts bottom up, serve, and take them down again in the opposite order."""
        async with contextlib.AsyncExitStack() as parts:
            await parts.enter_async_context(serving(open_engine()))
            catalog = await self._catalog(parts)
            cache, budget, pins = await self._cache(parts)
            nursery = await self._nursery(parts)
            library = self._library(parts, nursery, catalog, cache, budget)
            upkeep = Upkeep(catalog, library, cache, pins, nursery)
            sights = Sights(catalog, self._identities, self._access, self._admitted())
            instances = await self._instances(parts, nursery, catalog, library, sights)
            metrics = Metrics(COUNTERS, self._gauges(catalog, instances.instances, instances.volumes, budget))
            if self._config.metrics.listen is not None:
                parts.callback(metrics.listen(self._config.metrics.listen).shutdown)
            owner, instances_owned = (os.getuid(), os.getgid()), instances_owner(self._config)
            tree = Tree(catalog, library, upkeep, instances, metrics.text, owner=owner, instances_owner=instances_owned)
            server = Server(tree, Groups(), self._state.path, self._mountpoint, allow_other=self._config.mount.allow_other)
            server.mount()
            parts.callback(server.unmount)
            nursery.start_soon(cache.tend, name="cache")
            nursery.start_soon(self._signals, server, nursery, self._rereader(catalog, sights, tree), name="signals")
            nursery.start_soon(self._announce, server, name="announce")
            await server.serve()
            log.info("unmounted mountpoint=%s", self._mountpoint)

    async def _catalog(self, parts: contextlib.AsyncExitStack) -> Catalog:
        """Return the catalog, with what is known of the store."""
        database = await run(Lane.DISK, RecordDatabase, self._state.catalog, self._store.url)
        parts.callback(database.close)
        catalog = Catalog(self._store, database)
        looking = await parts.enter_async_context(trio.open_nursery())
        parts.callback(looking.cancel_scope.cancel)
        await catalog.start(looking)
        return catalog

    async def _cache(self, parts: contextlib.AsyncExitStack) -> tuple[CacheRoot, Budget, Pins]:
        """Return the disk cache, with what an earlier run left in it, what bounds it, and which images go last."""
        config = self._config.cache
        budget = Budget(config.size, floor_bytes=config.free_space_floor.size, floor_fraction=config.free_space_floor.fraction)
        cache = CacheRoot(self._state.cache, budget, Memory(config.memory))
        pins = Pins(self._state.pins)
        await pins.load()
        cache.pinned = pins.ids  # before anything goes that does not fit any more
        await cache.start()
        parts.callback(cache.close)
        return cache, budget, pins

    async def _nursery(self, parts: contextlib.AsyncExitStack) -> trio.Nursery:
        """Return the nursery of all that goes on beside the kernel's requests. From its end on the daemon has ENDING_SECONDS."""
        hurry = threading.Timer(ENDING_SECONDS, _end_at_once)
        hurry.daemon = True
        parts.callback(hurry.cancel)
        nursery = await parts.enter_async_context(trio.open_nursery())
        parts.callback(nursery.cancel_scope.cancel)
        parts.callback(hurry.start)
        return nursery

    def _library(self, parts: contextlib.AsyncExitStack, nursery: trio.Nursery, catalog: Catalog, cache: CacheRoot, budget: Budget) -> Library:
        """Return the library, and begin what brings images before they are read: boot profiles and hydration."""
        config = self._config.cache
        profiles = ProfileShelf(self._store, self._state.profiles, nursery)
        hydrator = Hydrator(config.hydrate, config.hydrate_limit, config.hydrate_rate, budget, cache.demand)
        boots = Boots(profiles, warm_extents, nursery, budget.limit, enabled=config.boot_profiles)
        library = Library(self._store, cache, nursery, RetryPolicy(), boots, hydrator)
        parts.push_async_callback(_shielded, library.close)
        catalog.watchers.append(library.forget)
        nursery.start_soon(hydrator.run, name="hydration")
        nursery.start_soon(profiles.keep_tidy, lambda: catalog.snapshot.images, name="profiles")
        return library

    async def _instances(
        self, parts: contextlib.AsyncExitStack, nursery: trio.Nursery, catalog: Catalog, library: Library, sights: Sights
    ) -> InstanceParts:
        """Return instances and volumes as an earlier run left them; snapshots that were under way go on."""
        volumes = Volumes(self._state)
        await run(Lane.DISK, volumes.load)
        parts.push_async_callback(_shielded, volumes.close)
        snapshots = Snapshots(self._store, catalog, nursery)
        creation = Creation(self._config.instances, self._state, self._mountpoint.absolute())
        attachments = Attachments(volumes)
        instances = Instances(self._state, catalog, library, attachments, creation, snapshots)
        await run(Lane.DISK, instances.load)
        parts.push_async_callback(_shielded, instances.close)
        parts.callback(snapshots.end)
        snapshots.resume(instances.by_name.values())
        return InstanceParts(instances, volumes, attachments, snapshots, sights, self._config.flavors, self._mountpoint.absolute())

    async def _announce(self, server: Server) -> None:
        await run(Lane.KERNEL, server.tune)
        calm_collector()
        log.info("mounted mountpoint=%s store=%s state=%s", self._mountpoint, self._store.url, self._state.path)
        self._ready()

    async def _signals(self, server: Server, nursery: trio.Nursery, reread: Callable[[], Awaitable[None]]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    nursery.start_soon(reread, name="reread")  # apart: a store that hangs must not hold up SIGTERM
                else:
                    log.info("ending on signal %s", signal.Signals(number).name)
                    await server.terminate()

    def _rereader(self, catalog: Catalog, sights: Sights, tree: Tree) -> Callable[[], Awaitable[None]]:
        """Return what SIGHUP does: read the rules again, then the catalog. Rules that cannot be used leave the old ones in force."""
        one_at_a_time = trio.Lock()

        async def reread() -> None:
            async with one_at_a_time:  # or the older of two readings might be the one that stays
                try:
                    access = await run(Lane.DISK, load_access, self._config)
                except Exception as error:  # whatever it is, guests are running
                    log.error("the rules cannot be read again, and the old ones stay in force error=%s", error)
                else:
                    sights.replace(access)
                    tree.rules_changed()
                    log.info("the rules were read again")
            try:
                await catalog.look(gently=True)
            except Exception as error:
                log.warning("the catalog cannot be read again error=%s", error)

        return reread

    def _admitted(self) -> Sequence[Identity]:
        """Return the identities that callers may have: all, or that of the mounting user if the kernel lets nobody else in and the map is empty."""
        if self._config.mount.allow_other or self._config.identity.map:
            return self._identities.everyone
        return [self._identities.identity(Caller(os.getuid(), os.getgid()))]

    def _gauges(self, catalog: Catalog, instances: Instances, volumes: Volumes, budget: Budget) -> Callable[[], Mapping[str, float]]:
        def gauges() -> Mapping[str, float]:
            return {
                "images": len(catalog.snapshot.images),
                "instances": len(instances.by_name),
                "volumes": len(volumes.by_name),
                "cache_bytes": budget.used,
                "cache_limit_bytes": budget.limit,
                **{f"threads_{lane}": count for lane, count in threads.busy().items()},
            }

        return gauges


def _end_at_once() -> None:
    """End the process, with threads that cannot be ended."""
    log.warning("ending although the store has not answered yet: what is being stored is stored anew after the next mount")
    os._exit(0)


async def _shielded(work: Callable[[], Awaitable[None]]) -> None:
    """Do the work even if the daemon ends by an error, when all else is being cancelled."""
    with trio.CancelScope(shield=True):
        await work()


def calm_collector() -> None:
    """Let Python's collector of reference cycles leave alone what is there when a mount begins, and look at the rest of what is old very seldom.

    It holds up everybody while it looks at all objects: 70 ms for those of an idle daemon, 200 ms once the kernel knows 20,000 images, and it
    does so after each quarter more. What makes garbage in cycles are errors and cancelled tasks, which are young.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)  # what a first look at a hundred thousand images took and gave back
    gc.freeze()
    gc.set_threshold(2000, 10, 1000)
    sys.setswitchinterval(SWITCH_SECONDS)


def instances_owner(config: Config) -> tuple[int, int, int]:
    """Return uid, gid and mode of instances/ and volumes/ as configured; without a word about it they are the mounting user's, 0755."""
    wanted = config.instances
    try:
        uid = pwd.getpwnam(wanted.owner).pw_uid if wanted.owner is not None else os.getuid()
        gid = grp.getgrnam(wanted.group).gr_gid if wanted.group is not None else os.getgid()
    except KeyError as error:
        raise InvalidInput(f"[instances]: {error.args[0]}: there is no such user or group on this host") from None
    return uid, gid, wanted.mode


def _single(group: BaseExceptionGroup) -> BaseException:
    """Return the first error that says something: an exception group is trio's way to end, not a message for a user."""
    leaves = list(_leaves(group))
    return next((error for error in leaves if not isinstance(error, trio.Cancelled)), leaves[0])


def _leaves(group: BaseExceptionGroup) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error

"""This module foretells, out of a disk's structure, what a guest reads when it boots from it: a plan, which does no I/O itself.

    disk         its first and last half MiB: tables, boot code, and where programs look for signatures of filesystems
    partitions   the same of each; their superblocks
    filesystems  of ext4 (and 2, 3) and vfat the structure, and in it the files that `likely` names; of others the known places

What cannot be understood is left out, and the plan goes on with the rest.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from imagefs.profile import ext4_volume, signatures
from imagefs.profile.ext4_volume import Ext4Volume
from imagefs.profile.fat_volume import open_fat
from imagefs.profile.libraries import needed_libraries
from imagefs.profile.likely import ESP, LOADER, PYTHON, SERVICES, SYSTEM, program, whole
from imagefs.profile.partitions import Partition, find_partitions
from imagefs.profile.rounds import Place, Plan, Round, side_by_side
from imagefs.profile.volume import Volume
from imagefs.profile.walk import Aim, Match, aim, newest, walk
from imagefs.units import KIB, MIB

EDGE: Final = 516 * KIB
"""Bytes at a disk's and a partition's start, and some fewer at its end, that udev's blkid reads in search of signatures (in recorded boots)."""

_TAIL: Final = 512 * KIB
_LOOKS: Final = tuple(at * KIB for at in (0, 60, 64, 128, 256, 512, 1024, 2048, 3072))
"""Where blkid looks for signatures of rare filesystems and arrays, from the start of a partition."""

_HEAD: Final = 64 * KIB
_MAX_FILESYSTEMS: Final = 8
"""Partitions that are looked into: images have one to five."""

_MAX_SERVICES: Final = 200
_MAX_PROGRAMS: Final = 400

_ENTRY: Final = re.compile(rb"^[ \t]*(linux|linuxefi|linux16|initrd|initrdefi|initrd16)[ \t]+(.+)$", re.MULTILINE)
_EXEC: Final = re.compile(rb"^Exec(?:Start|StartPre|StartPost|Condition)[ \t]*=[ \t]*[-@:+!]*(/[^\s;'\"]{1,250})", re.MULTILINE)
_SHEBANG: Final = re.compile(rb"#![ \t]*(/[^\s]{1,200})(?:[ \t]+([^\s]{1,100}))?")
_SPECIAL: Final = frozenset(b"*?{}<>\0")


def forecast(size: int) -> Plan[None]:
    """Plan to foretell what a guest reads of a disk of `size` bytes."""
    edges = ((0, EDGE), (size - _TAIL, _TAIL))
    head, _ = yield Round(wanted=((0, _HEAD), (size - 4 * KIB, 4 * KIB)), likely=edges)
    partitions = yield from find_partitions(head, size)
    boots_by_bios = any(part.kind == "bios" for part in partitions) or (head[:2] != b"\0\0" and not any(part.kind == "esp" for part in partitions))
    yield from side_by_side([_partition(part, boots_by_bios) for part in partitions[:_MAX_FILESYSTEMS]])


def _partition(part: Partition, boots_by_bios: bool) -> Plan[None]:
    """Plan for one partition, according to what is in it. Of what is not known only what was looked at."""
    if part.kind == "bios":
        # GRUB's core image, 30 to 60 KiB, and blkid's single looks for signatures, which find nothing and so do not end early.
        yield Round(likely=tuple((part.start + at, 4 * KIB) for at in _LOOKS if at < part.length))
        return
    (head,) = yield Round(wanted=((part.start, min(2 * _HEAD, part.length)),))
    if part.kind == "swap":
        return
    volume = yield from ext4_volume.open_volume(part.start, part.length, head)
    if volume is not None:
        yield Round(likely=_edges(part))
        yield from _ext4(volume)
    elif (fat := open_fat(part.start, part.length, head)) is not None:
        yield Round(likely=_edges(part))
        if not boots_by_bios:
            yield from _walked(fat, ESP)
    elif known := tuple(signatures.known_places(part.start, part.length, head)):
        yield Round(likely=(*_edges(part), *known))


def _edges(part: Partition) -> tuple[Place, ...]:
    """Return where blkid looks in a partition with a filesystem."""
    stop = part.start + part.length
    looks = tuple((part.start + at, 4 * KIB) for at in (MIB, 2 * MIB) if at < part.length)
    return ((part.start, min(EDGE, part.length)), (max(part.start, stop - _TAIL), min(_TAIL, part.length)), *looks)


def _ext4(volume: Ext4Volume) -> Plan[None]:
    """Plan for a filesystem with the structure of ext4: what mounting it reads, then boot loader and system, side by side."""
    yield from side_by_side([_loader(volume), _mounting(volume), _system(volume)])


def _mounting(volume: Ext4Volume) -> Plan[None]:
    """Plan for what the kernel reads to mount it: all block bitmaps, and the journal's superblock."""
    found = yield from volume.nodes([volume.journal])
    places: list[Place] = list(volume.bitmaps)
    if found:
        spread = yield from volume.spread(list(found.values()))
        places += [(offset, 4 * KIB) for offset, _ in spread[volume.journal][:1]]
    yield Round(likely=tuple(places))


def _walked(volume: Volume, aims: Sequence[Aim]) -> Plan[None]:
    yield from walk(volume, aims)


def _loader(volume: Volume) -> Plan[None]:
    """Plan for the boot loader, and the kernel and initrd that it will load."""
    found = yield from walk(volume, LOADER)
    named = _entry_files(found) or _newest_files(found)
    yield from walk(volume, [aim(path, whole) for path in named])


def _entry_files(found: Iterable[Match]) -> list[str]:
    """Return the paths of the kernel and the initrd of the first entry of GRUB's configuration, or else of the newest of the entries' files."""
    configurations = [match for match in found if match.content]
    entries = sorted((match for match in configurations if match.path.endswith(".conf")), key=lambda match: match.path)
    chosen = [match for match in configurations if not match.path.endswith(".conf")]
    if entries:
        best = newest([match.path for match in entries if "rescue" not in match.path] or [entries[0].path])
        chosen += [match for match in entries if match.path == best]
    for match in chosen:
        paths: dict[str, list[str]] = {}
        for verb, words in _ENTRY.findall(match.content):
            kind = "linux" if verb.startswith(b"linux") else "initrd"
            if kind == "linux" and "linux" in paths:
                break  # the second entry
            arguments = words.split() if kind == "initrd" else words.split()[:1]
            paths.setdefault(kind, [path for word in arguments[:4] if (path := _plain(re.sub(rb"^\([^)]*\)", b"", word)))])
        if paths.get("linux"):
            return paths["linux"] + paths.get("initrd", [])
    return []


def _newest_files(found: Iterable[Match]) -> list[str]:
    """Return the paths of the newest kernel and its initrd, by their names."""
    return [match.path for match in found if re.search(r"/(vmlinuz|initrd|initramfs)[^/]*$", match.path)]


def _plain(word: bytes) -> str:
    """Return a path that a file of the guest names, if it is absolute and of names alone; else nothing."""
    return word.decode("utf-8", "surrogateescape") if word.startswith(b"/") and len(word) < 256 and _SPECIAL.isdisjoint(word) else ""


def _system(volume: Volume) -> Plan[None]:
    """Plan for the system: what all guests read, then what the enabled units name, then the interpreters of that; libraries each time."""
    found = yield from walk(volume, SYSTEM)
    seen: set[str] = set()
    yield from side_by_side([_services(volume, found, seen), needed_libraries(volume, _programs(found), seen)])


def _services(volume: Volume, found: Sequence[Match], seen: set[str]) -> Plan[None]:
    """Plan for what the enabled units among `found` start."""
    units = [match for match in found if match.content][:_MAX_SERVICES]
    named = {path for match in units for word in _EXEC.findall(match.content) if (path := _plain(word))}
    aims = [aim(path, program, content=True) for path in sorted(named)[:_MAX_PROGRAMS]]
    for service in sorted({match.path.rpartition("/")[2] for match in units}):
        for beginning, read in SERVICES.items():
            if service.startswith(beginning):
                aims += [each for each in read if each not in aims]
    started = yield from walk(volume, aims)
    scripts = [parts for match in started if match.content and (parts := _SHEBANG.match(match.content))]
    interpreters = {path for parts in scripts for word in (parts[1], parts[2]) if word and (path := _plain(word))}
    following = [aim(path, program) for path in sorted(interpreters)]
    if any(b"python" in parts[0] for parts in scripts):
        following += [each for each in PYTHON if each not in aims]
    more = yield from walk(volume, following)
    yield from needed_libraries(volume, _programs([*started, *more]), seen)


def _programs(found: Iterable[Match]) -> list[Match]:
    """Return what may be programs or libraries: the table says so by how much of it is read."""
    return [match for match in found if match.aim.take is program][:_MAX_PROGRAMS]

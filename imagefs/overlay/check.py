"""This module compares the two maps of a disk."""

from imagefs.errors import StateDamaged
from imagefs.overlay.block_map import BASE, DATA, PAGE_BLOCKS, ZERO
from imagefs.overlay.durable_map import DurableMap
from imagefs.overlay.live_map import LiveMap

_KNOWN = bytes((BASE, DATA, ZERO))


def check_maps(origin: str, durable: DurableMap, live: LiveMap) -> None:
    """Raise StateDamaged, naming the page, unless both maps say the same but for the pages that a flush will tell the durable one of.

    Blocks; looks only at pages that were ever written, one at a time. No flush may be running.
    """
    behind = set(live.behind())
    seen = set()
    for page, told in durable.pages():
        seen.add(page)
        if told is None:
            raise StateDamaged(f"{origin}: page {page} of the durable map is damaged")
        _check_page(origin, page, _states(live, page), told, page in behind)
    for page in live.touched_pages():
        if page not in seen:
            _check_page(origin, page, _states(live, page), bytes(PAGE_BLOCKS), page in behind)


def _states(live: LiveMap, page: int) -> bytes:
    return live.states(page * PAGE_BLOCKS, (page + 1) * PAGE_BLOCKS)


def _check_page(origin: str, page: int, states: bytes, told: bytes, behind: bool) -> None:
    if states.translate(None, _KNOWN):
        raise StateDamaged(f"{origin}: the live map has states in page {page} that there are not")
    if states != told[: len(states)] and not behind:
        raise StateDamaged(f"{origin}: page {page} of the durable map is not what the live map says, and no flush would tell it")

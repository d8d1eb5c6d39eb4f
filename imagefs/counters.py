"""This module counts what happens; everything here is a plain integer, so that counting costs nothing on the hot path."""

import dataclasses


@dataclasses.dataclass(slots=True)
class Counters:
    """What one daemon did since it started; names become metrics `imagefs_<name>_total`."""

    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    written_bytes: int = 0
    flushes: int = 0
    store_requests: int = 0
    store_data_requests: int = 0
    store_bytes: int = 0
    store_retries: int = 0
    store_errors: int = 0
    cache_unit_hits_checked: int = 0
    cache_units_filled: int = 0
    cache_zero_units: int = 0
    cache_units_evicted: int = 0
    cache_units_damaged: int = 0
    cache_units_uncached: int = 0
    handler_errors: int = 0


COUNTERS = Counters()
"""The process's counters. One instance, since a process serves one mount."""

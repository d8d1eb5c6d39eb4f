"""This module counts what happens; everything here is a plain number, so that counting costs nothing on the hot path."""

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
    slowdowns: int = 0
    hedged_requests: int = 0
    hedges_won: int = 0
    demand_fills: int = 0
    demand_fill_seconds: float = 0.0
    prefetch_bytes: int = 0
    readahead_bytes: int = 0
    disk_reads_by_ring: int = 0
    disk_reads_by_thread: int = 0
    cache_unit_hits_checked: int = 0
    cache_units_filled: int = 0
    cache_zero_units: int = 0
    cache_units_evicted: int = 0
    cache_units_damaged: int = 0
    cache_units_uncached: int = 0
    cache_shared_bytes: int = 0
    profile_recorded: int = 0
    profile_replays: int = 0
    profile_bytes: int = 0
    profile_boot_units: int = 0
    profile_covered_units: int = 0
    profile_wasted_units: int = 0
    hydrated_bytes: int = 0
    images_completed: int = 0
    images_failed_verification: int = 0
    handler_errors: int = 0


COUNTERS = Counters()
"""The process's counters. One instance, since a process serves one mount."""

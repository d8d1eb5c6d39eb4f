"""What `imagefs top` makes of two looks at the statistics."""

from rich.console import Console

from imagefs.cli.top import Sample, _view, difference

CACHE = {"image": "1", "name": "debian", "space": "guest", "size": 1 << 20, "cached": 0, "pinned": False, "open": True}


def test_rates_and_counts() -> None:
    """Rates are those of a second, counts those of the interval, and levels are those of now."""
    before = {"reads": 100.0, "demand_fills": 10.0, "store_bytes": 0.0, "store_requests": 1.0, "cache_bytes": 5.0, "threads_disk": 3.0}
    now = {"reads": 300.0, "demand_fills": 60.0, "demand_fill_seconds": 1.0, "store_bytes": 4096.0, "store_requests": 3.0, "store_retries": 4.0}
    now |= {
        "readahead_bytes": 2048.0,
        "hydrated_bytes": 1024.0,
        "cache_bytes": 9.0,
        "cache_limit_bytes": 10.0,
        "threads_disk": 1.0,
        "threads_fetch": 0.0,
    }
    grown = {"image": "2", "name": "", "space": "guest", "size": 8192, "cached": 4096, "pinned": True, "open": True}
    found = difference(Sample(0, before, [CACHE, grown | {"cached": 0}, CACHE | {"open": False}]), Sample(2, now, [CACHE, grown]))
    assert found["reads"] == 100
    assert found["hit_percent"] == 75.0
    assert found["fill_milliseconds"] == 20.0
    assert (found["demand_bytes"], found["ahead_bytes"], found["idle_bytes"]) == (512, 1024, 512)
    assert found["store_retries"] == 4
    assert (found["cache_bytes"], found["cache_limit"]) == (9, 10)
    assert found["threads"] == {"disk": 1}
    images = found["images"]
    assert isinstance(images, list)
    assert [(image["image"], image["cached_per_second"]) for image in images] == [("2", 2048), ("1", 0)]


def test_nothing_happened() -> None:
    """Without reads there is no share of hits, and an interval without length is no division by zero."""
    found = difference(Sample(1, {}, ()), Sample(1, {}, ()))
    assert found["hit_percent"] is None
    assert found["reads"] == 0


def test_daemon_that_was_started_anew() -> None:
    """Counters that begin again count from their beginning."""
    found = difference(Sample(0, {"store_requests": 9.0, "reads": 50.0}, ()), Sample(1, {"store_requests": 1.0, "reads": 70.0}, ()))
    assert found["reads"] == 70


def test_the_live_view_shows_names_as_they_are() -> None:
    """Names come from whoever made an image: they move no cursor and are no markup."""
    fields = difference(Sample(0, {}, ()), Sample(1, {}, [CACHE | {"name": "\x1b[2J[red]"}]))
    console = Console(width=120)
    with console.capture() as captured:
        console.print(_view("/mnt", fields))
    assert "\x1b[2J" not in captured.get()
    assert "[red]" in captured.get()

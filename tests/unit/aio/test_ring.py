"""The kernel's own rings, where it has them for us; where it has none, that is said by an OSError, which is all there is to test."""

import contextlib
import ctypes
import errno
import os
import platform
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from imagefs.aio import ring as ring_module
from imagefs.aio.engine import Engine, serving
from imagefs.aio.reader import Reader
from imagefs.aio.ring import Ring
from imagefs.counters import COUNTERS

CONTENT = os.urandom(1_000_000)
ENTRIES = 8


@pytest.fixture(params=[False, True], ids=["plain", "polled"])
def rings(request: pytest.FixtureRequest) -> Iterator[list[Ring]]:
    """One ring, or none if the kernel refuses."""
    made: list[Ring] = []
    with contextlib.suppress(OSError):
        made.append(Ring(ENTRIES, polled=request.param))
    yield made
    for ring in made:
        ring.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file with CONTENT."""
    (tmp_path / "file").write_bytes(CONTENT)
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def finished(ring: Ring, count: int) -> dict[int, int]:
    """Wait for `count` results."""
    found: dict[int, int] = {}
    while len(found) < count:
        assert select.select([ring.fd], [], [], 10)[0], f"{count - len(found)} requests never ended"
        found.update(ring.results())
    assert not ring.results()
    return found


def test_reads_bring_the_bytes(rings: list[Ring], file: int) -> None:
    """In memory and out of it, over many turns of a ring that has 8 places, with tokens of any size; short at the end of the file."""
    for ring in rings:
        os.fdatasync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        for turn in range(100):
            buffers = [bytearray(4096) for _ in range(ENTRIES)]
            held = [ctypes.c_char.from_buffer(buffer) for buffer in buffers]
            offsets = [(turn * ENTRIES + index) * 1249 for index in range(ENTRIES)]
            base = turn << 40
            for index, offset in enumerate(offsets):
                assert ring.read(file, ctypes.addressof(held[index]), 4096, offset, base + index)
            results = finished(ring, ENTRIES)
            for index, offset in enumerate(offsets):
                assert results[base + index] == max(0, min(4096, len(CONTENT) - offset))
                assert buffers[index][: results[base + index]] == CONTENT[offset : offset + 4096]


def test_errors_are_results(rings: list[Ring], file: int, tmp_path: Path) -> None:
    """A descriptor that is none, one that is not for reading, and a sync of what cannot be synced."""
    room = ctypes.create_string_buffer(10)
    for ring in rings:
        writing = os.open(tmp_path / "file", os.O_WRONLY)
        reading, sending = os.pipe()
        assert ring.read(1_000_000, ctypes.addressof(room), 10, 0, 1)
        assert ring.read(writing, ctypes.addressof(room), 10, 0, 2)
        assert ring.sync(sending, 3)
        assert ring.sync(file, 4)
        assert finished(ring, 4) == {1: -errno.EBADF, 2: -errno.EBADF, 3: -errno.EINVAL, 4: 0}
        for descriptor in (writing, reading, sending):
            os.close(descriptor)


def test_a_request_that_the_kernel_does_not_take_is_taken_back(rings: list[Ring], file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is as good as if there had been none before it."""
    room = ctypes.create_string_buffer(10)
    for ring in rings:
        if ring._polled:
            continue  # its requests are taken without a call
        with monkeypatch.context() as broken:
            broken.setattr(ring, "_enter", lambda submit, flags: -1)
            assert not ring.read(file, ctypes.addressof(room), 10, 0, 1)
            assert not ring.sync(file, 2)
        assert ring.read(file, ctypes.addressof(room), 10, 5, 3)
        assert finished(ring, 1) == {3: 10}
        assert room.raw == CONTENT[5:15]


def test_a_sleeping_poller_is_woken(rings: list[Ring], file: int) -> None:
    """After the kernel's thread has gone to sleep a request is served all the same."""
    room = ctypes.create_string_buffer(10)
    for ring in rings:
        for token in range(3):
            if ring._polled:
                while not ring._words[ring._sq_flags] & ring_module._POLLER_SLEEPS:
                    select.select([], [], [], 0.001)
            assert ring.read(file, ctypes.addressof(room), 10, token, token)
            assert finished(ring, 1) == {token: 10}
            assert room.raw == CONTENT[token : token + 10]


def test_a_dead_poller_takes_nothing(rings: list[Ring], file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """When waking it says that there is nobody, the request is taken back."""
    room = ctypes.create_string_buffer(10)
    for ring in rings:
        if not ring._polled:
            continue
        while not ring._words[ring._sq_flags] & ring_module._POLLER_SLEEPS:
            select.select([], [], [], 0.001)
        with monkeypatch.context() as broken:
            broken.setattr(ring, "_enter", lambda submit, flags: -1)
            assert not ring.read(file, ctypes.addressof(room), 10, 0, 1)
        assert ring.read(file, ctypes.addressof(room), 10, 5, 2)
        assert finished(ring, 1) == {2: 10}


@pytest.mark.parametrize("polled", [False, True])
def test_a_processor_that_nobody_thought_about_has_no_ring(polled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of memory accesses is argued for two only."""
    monkeypatch.setattr(platform, "machine", lambda: "alpha")
    with pytest.raises(OSError, match="alpha"):
        Ring(ENTRIES, polled=polled)


@pytest.mark.parametrize("polled", [False, True])
def test_a_kernel_that_is_too_old_has_no_ring_and_loses_no_descriptor(polled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A feature that is missing is found out in time, and everything is given back."""
    monkeypatch.setattr(ring_module, "_FEATURE_NATIVE_WORKERS", 1 << 31)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):  # which one depends on the kernel: too old, or none at all
        Ring(ENTRIES, polled=polled)
    assert sorted(os.listdir("/proc/self/fd")) == before


async def test_many_readers_share_both_rings(file: int) -> None:
    """64 tasks read what is not in memory, through a plain and a polled ring, and each has its own bytes; files are as they were after it."""
    before = sorted(os.listdir("/proc/self/fd"))
    try:
        plain = Ring(64, polled=False)
    except OSError:
        return  # the kernel has none for us
    async with serving(Engine(plain, Ring(64, polled=True))):
        os.fdatasync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        reader, counted = Reader(file), COUNTERS.disk_reads_by_ring

        async def read(first: int) -> None:
            for turn in range(20):
                offset = (first * 7919 + turn * 104_729) % (len(CONTENT) - 9000)
                body = bytearray(1 + offset % 9000)
                assert await reader.fill(body, offset) == len(body)
                assert body == CONTENT[offset : offset + len(body)]

        async with trio.open_nursery() as nursery:
            for first in range(64):
                nursery.start_soon(read, first)
        assert COUNTERS.disk_reads_by_ring > counted + 1000
    assert sorted(os.listdir("/proc/self/fd")) == before

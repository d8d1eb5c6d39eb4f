"""Compression of clusters: what comes out is what QEMU reads."""

import random
import zlib

import pytest

from imagefs.image.qcow2.deflate import deflate
from imagefs.image.qcow2.header import Compression
from imagefs.image.qcow2.inflate import inflate
from imagefs.units import KIB
from tests.support.qcow2 import pattern

CLUSTER = 64 * KIB


def inflated_as_qemu_does(stream: bytes) -> bytes:
    """Inflate with a window of 4 KiB, as QEMU does: zlib refuses a match that is further back."""
    inflater = zlib.decompressobj(-12)
    cluster = inflater.decompress(stream, CLUSTER + 1)
    assert inflater.eof
    return cluster


def samples() -> list[bytes]:
    """Return clusters that compress, each in a way of its own; many have their best matches further back than 4 KiB."""
    chance = random.Random(3)
    mixed = [pattern(CLUSTER, seed) for seed in range(40)]
    distant = []
    for period in (1, 2, 3, 255, 4095, 4096, 4097, 5000, 8191, 8192, 8193, 20_000, 32_767, 32_768, 32_769):
        unit = chance.randbytes(period)
        distant.append((unit * (CLUSTER // period + 1))[:CLUSTER])
        distant.append((unit + bytes(3000) * 9) * 70)
    return mixed + [cluster[:CLUSTER].ljust(CLUSTER, b"\1") for cluster in distant]


def test_streams_inflate_with_qemus_window() -> None:
    """Every stream that is made gives the cluster back with a window of 4 KiB, and to imagefs's own reader."""
    packed = [(cluster, stream) for cluster in samples() if (stream := deflate(cluster)) is not None]
    assert len(packed) > 40
    for cluster, stream in packed:
        assert len(stream) < CLUSTER
        same = inflated_as_qemu_does(stream) == cluster == inflate(Compression.ZLIB, stream, CLUSTER)
        assert same


def test_a_window_that_is_larger_would_be_noticed() -> None:
    """The check of these tests is one: a stream with matches further back does not pass it."""
    unit = random.Random(1).randbytes(5000)
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    stream = packer.compress((unit * 20)[:CLUSTER]) + packer.flush()
    with pytest.raises(zlib.error, match="too far back"):
        inflated_as_qemu_does(stream)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_does_not_get_smaller_is_left_as_it_is(kind: type) -> None:
    """Noise has no stream; the kind of bytes does not matter."""
    assert deflate(kind(random.Random(2).randbytes(CLUSTER))) is None
    assert deflate(kind(b"x" * CLUSTER)) is not None

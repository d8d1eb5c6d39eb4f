"""Compressed clusters: exactly one cluster comes out, or an error."""

import zlib

import pytest
import zstandard

from imagefs.image.qcow2.header import Compression
from imagefs.image.qcow2.inflate import InflateError, inflate
from imagefs.units import KIB, MIB
from tests.support.qcow2 import pattern

CLUSTER = 64 * KIB


def deflated(body: bytes, compression: Compression, window_bits: int = 12) -> bytes:
    if compression is Compression.ZSTD:
        return zstandard.ZstdCompressor().compress(body)
    compressor = zlib.compressobj(6, zlib.DEFLATED, -window_bits, 9)
    return compressor.compress(body) + compressor.flush()


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("cluster_size", [512, CLUSTER, 2 * MIB])
def test_inflate_gives_one_cluster(compression: Compression, cluster_size: int) -> None:
    """A cluster comes back whole, whatever follows it in its last sector."""
    guest = pattern(cluster_size)
    body = deflated(guest, compression)
    assert inflate(compression, body, cluster_size) == guest
    assert inflate(compression, memoryview(body + b"\xff" * 500), cluster_size) == guest


def test_inflate_takes_large_windows() -> None:
    """Writers other than QEMU may use a window of 32 KiB."""
    guest = pattern(20 * KIB)[: 20 * KIB] * 3 + bytes(4 * KIB)
    assert inflate(Compression.ZLIB, deflated(guest, Compression.ZLIB, 15), CLUSTER) == guest


@pytest.mark.parametrize("compression", Compression)
def test_inflate_refuses_bombs(compression: Compression) -> None:
    """Output stops one byte behind the cluster, however much there is to come."""
    with pytest.raises(InflateError, match="more than a cluster"):
        inflate(compression, deflated(bytes(64 * MIB), compression), CLUSTER)


@pytest.mark.parametrize("compression", Compression)
def test_inflate_refuses_short_clusters(compression: Compression) -> None:
    """Less than a cluster is not padded: bytes are missing."""
    whole = deflated(pattern(CLUSTER), compression)
    for body in (deflated(bytes(CLUSTER - 1), compression), whole[: len(whole) // 2], b""):
        with pytest.raises(InflateError):
            inflate(compression, body, CLUSTER)


@pytest.mark.parametrize("compression", Compression)
def test_inflate_refuses_garbage(compression: Compression) -> None:
    """Bytes that are no compressed data are said to be damaged."""
    with pytest.raises(InflateError, match="damaged"):
        inflate(compression, b"\xff" * 1000, CLUSTER)


def test_inflate_refuses_huge_zstd_windows() -> None:
    """A frame that asks for a window of 1 GiB gets none."""
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(InflateError, match="damaged"):
        inflate(Compression.ZSTD, compressor.compress(pattern(CLUSTER)) + compressor.flush(), CLUSTER)

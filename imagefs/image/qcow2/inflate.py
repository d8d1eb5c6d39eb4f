"""This module inflates one compressed qcow2 cluster, with a bound on the output that no input can break. Pure, thread-safe."""

from typing import Final

import zstandard
from isal import igzip_lib

from imagefs.image.qcow2.header import Compression
from imagefs.units import MIB

_MAX_WINDOW: Final = 8 * MIB
"""Largest zstd window that is allocated, in bytes: what RFC 8878 asks of every decoder; a cluster has 2 MiB at most."""


_ISAL_ERROR: Final[type[Exception]] = igzip_lib.IsalError  # type: ignore[assignment]  # isal's stub takes the class for an instance


class InflateError(Exception):
    """Compressed bytes that are not exactly one cluster; `str()` says what they are instead."""


def inflate(compression: Compression, body: bytes | memoryview, cluster_size: int) -> bytes:
    """Return the `cluster_size` bytes that `body` begins with when inflated; what follows them in `body` is ignored.

    The length of a compressed cluster is known to a sector only, so a tail of the next one is usual. Never makes more than
    one byte above `cluster_size`. Raises InflateError for garbage, for less than a cluster and for more.
    """
    try:
        guest = _zlib(body, cluster_size + 1) if compression is Compression.ZLIB else _zstd(body, cluster_size + 1)
    except (_ISAL_ERROR, zstandard.ZstdError) as error:
        raise InflateError(f"its {compression.name.lower()} data is damaged: {error}") from error
    if len(guest) > cluster_size:
        raise InflateError(f"its {compression.name.lower()} data inflates to more than a cluster of {cluster_size} bytes")
    if len(guest) < cluster_size:
        raise InflateError(f"its {compression.name.lower()} data inflates to {len(guest)} bytes, less than a cluster of {cluster_size}")
    return guest


def _zlib(body: bytes | memoryview, limit: int) -> bytes:
    # Raw deflate. QEMU writes a window of 4 KiB; 32 KiB, the default here, reads that and what other writers make.
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE).decompress(body, limit)


def _zstd(body: bytes | memoryview, limit: int) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    with decompressor.stream_reader(body, read_across_frames=False) as reader:
        return reader.read(limit)

"""This module is one image of the catalog: its record, packed, and the version that the record has in the store.

A record with thirty properties takes 4.4 KB of memory as Python objects and 0.2 KB packed: a hundred thousand of them must fit in a
fraction of 256 MiB. Unpacking takes 15 us, and what was unpacked last is kept.
"""

import functools
import itertools
import os
import zlib
from typing import Final

import msgspec

from imagefs.store.record import ImageRecord, data_versions

UNPACKED: Final = 512
"""Records that are kept unpacked."""
LARGEST_PACKED: Final = 64 * 1024
"""Bytes of a record that is packed. A larger one would be unpacked again too often, at its price; there are few."""
LARGEST_UNPACKED: Final = 128 * 1024 * 1024
_WINDOW_BITS: Final = -13
_MEMORY_LEVEL: Final = 5
_LEVEL: Final = 6
_COUNTER: Final = itertools.count()
_DECODER: Final = msgspec.json.Decoder(ImageRecord)


class Packing:
    """How records are packed: deflate with a sample of them as its dictionary, since records of one fleet look alike. Thread-safe."""

    def __init__(self, sample: bytes) -> None:
        """`sample` is a record as JSON, of which the last 8 KiB count."""
        self.sample = sample[-8192:]
        self._packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zlib.Z_DEFAULT_STRATEGY, self.sample)
        self._unpacker = zlib.decompressobj(_WINDOW_BITS, self.sample)

    def pack(self, body: bytes) -> bytes:
        """Return `body` packed. A copy of a prepared packer takes a third of the time of a new one."""
        packer = self._packer.copy()
        return packer.compress(body) + packer.flush()

    def unpack(self, packed: bytes) -> bytes:
        """Return what was packed. Raises zlib.error."""
        return self._unpacker.copy().decompress(packed, LARGEST_UNPACKED)


PLAIN: Final = Packing(
    b'{"checksum":"","container_format":"bare","created_at":"2026-01-01T00:00:00Z","disk_format":"qcow2","id":"","min_disk":0,"min_ram":0,"name":"'
    b'","os_hash_algo":"sha512","os_hash_value":"","owner":"","properties":{"architecture":"x86_64","hw_disk_bus":"virtio","hw_vif_model":"virtio",'
    b'"os_distro":"","os_version":""},"size":1,"status":"active","tags":[],"tree":{"algorithm":"sha256","page_units":,"pages":["'
    b'"],"unit":65536},"updated_at":"2026-01-01T00:00:00Z","virtual_size":1,"visibility":"public"}'
)
"""For records of which no sample was taken."""


class CatalogImage:
    """One image: its record, and the record's version in the store. Never changed: an image that changes becomes another CatalogImage."""

    __slots__ = ("_key", "_packed", "_packing", "id", "name", "number", "version")

    id: str
    version: str
    name: str | None
    """The record's."""
    number: int
    """No other CatalogImage of this process has it."""

    def __init__(self, record: ImageRecord, version: str, packing: Packing = PLAIN) -> None:
        """Pack a record."""
        body = record_body(record)
        packed = packing.pack(body) if len(body) <= LARGEST_PACKED else record
        self._set(record.id, version, record.name, None if record.key is None else os.fsencode(record.key), packed, packing)

    @classmethod
    def packed(cls, image_id: str, version: str, name: str | None, key: bytes | None, body: bytes, packing: Packing) -> "CatalogImage":
        """Return an image whose record is packed already, as `pieces` gave it; what is in it is not looked at."""
        image = cls.__new__(cls)
        image._set(image_id, version, name, key, body, packing)
        return image

    def _set(self, image_id: str, version: str, name: str | None, key: bytes | None, packed: bytes | ImageRecord, packing: Packing) -> None:
        self.id = image_id
        self.version = version
        self.name = name
        self.number = next(_COUNTER)
        self._key = key
        self._packed = packed
        self._packing = packing

    def __repr__(self) -> str:
        return f"CatalogImage({self.id}, {self.version})"

    @property
    def record(self) -> ImageRecord:
        """The record. Unpacked if need be: who goes through many images asks for it once for each."""
        packed = self._packed
        return packed if isinstance(packed, ImageRecord) else _unpacked(self)

    @property
    def data_version(self) -> str:
        """What names the image's bytes: changes if they do, and when they get a better name."""
        return self.record.os_hash_value or self.data_versions[0]

    @property
    def data_versions(self) -> tuple[str, ...]:
        """All that has ever named these bytes, the present name first. An object of the flat layout has the name that its store gives it."""
        return data_versions(self.record) if self._key is None else (self.version,)

    def pieces(self, packing: Packing) -> tuple[str, str, str | None, bytes | None, bytes]:
        """Return id, version, name, key and record for `packed`, the record packed by `packing`."""
        kept = self._packed
        body = kept if self._packing is packing and isinstance(kept, bytes) else packing.pack(record_body(self.record))
        return self.id, self.version, self.name, self._key, body

    def unpack(self) -> ImageRecord:
        """Return the record, and do not keep it. Raises ValueError, zlib.error if what was packed is damaged."""
        packed = self._packed
        if isinstance(packed, ImageRecord):
            return packed
        record = _DECODER.decode(self._packing.unpack(packed))
        return record if self._key is None else msgspec.structs.replace(record, key=os.fsdecode(self._key))


def record_body(record: ImageRecord) -> bytes:
    """Return the record as it is packed: JSON, without its key, which need not be UTF-8."""
    return msgspec.json.encode(record if record.key is None else msgspec.structs.replace(record, key=None), order="sorted")


_unpacked = functools.lru_cache(maxsize=UNPACKED)(CatalogImage.unpack)

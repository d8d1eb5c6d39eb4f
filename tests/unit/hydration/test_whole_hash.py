"""Which hashes of a record can be computed here."""

import hashlib

import pytest

from imagefs.hydration.whole_hash import WholeHash, whole_hashes
from tests.support.hydrating import record_of

BODY = b"an image"
SHA512 = hashlib.sha512(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.mark.parametrize(
    ("fields", "algorithms"),
    [
        ({}, ["sha512", "md5"]),
        ({"os_hash_algo": "sha256", "os_hash_value": hashlib.sha256(BODY).hexdigest()}, ["sha256", "md5"]),
        ({"os_hash_value": SHA512.upper()}, ["sha512", "md5"]),
        ({"checksum": None}, ["sha512"]),
        ({"os_hash_algo": None}, ["md5"]),
        ({"os_hash_algo": "shake_128", "os_hash_value": "ab"}, ["md5"]),
        ({"os_hash_algo": "../sha512"}, ["md5"]),
        ({"os_hash_value": SHA512[:-1]}, ["md5"]),
        ({"os_hash_value": "z" * 128, "checksum": "multipart-3"}, []),
    ],
)
def test_only_what_can_be_right(fields: dict[str, str | None], algorithms: list[str]) -> None:
    """A record is written by others: algorithms of no fixed length, unknown ones and values that none can have are passed over."""
    assert [one.algorithm for one in whole_hashes(record_of(BODY, fields))] == algorithms


def test_a_hash_is_that_of_the_bytes() -> None:
    """What is computed is what the record names."""
    for wanted in whole_hashes(record_of(BODY)):
        running = wanted.begin()
        running.update(BODY)
        assert WholeHash(wanted.algorithm, running.hexdigest()) == wanted

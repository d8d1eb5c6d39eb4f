"""Enciphered data files: what lies in them, and that any read and write gives plain bytes."""

import dataclasses
import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.errors import NoSpace, StateDamaged
from imagefs.overlay.calls import CALLS, Calls
from imagefs.overlay.cipher import KEY_SIZE, BlockCipher, EncipheredFile
from imagefs.overlay.disk import OverlayDisk
from imagefs.units import BLOCK, KIB, MIB
from tests.support.overlay import NODE_KEY, PatternBase, new_disk, pattern

KEY = bytes(range(KEY_SIZE))
NOISE = bytes(range(1, 129)) * 32
CANARY = b"the guest's own plain words " * 3
OTHER_BOOT = Calls(boot_id=lambda: bytes(16))


def open_file(directory: Path, calls: Calls = CALLS) -> tuple[int, EncipheredFile]:
    fd = os.open(directory / "file", os.O_RDWR | os.O_CREAT, 0o600)
    return fd, EncipheredFile(calls, KEY, "vda")


def test_block_has_its_committed_ciphertext() -> None:
    """The form never changes: AES-256-XTS of each 4 KiB, the tweak being the block's number in little-endian order."""
    plain = NOISE + NOISE
    blocks = bytearray(plain)
    BlockCipher(KEY).encipher(memoryview(blocks), 7)
    expected = b"".join(Cipher(algorithms.AES(KEY), modes.XTS(bytes([number]) + bytes(15))).encryptor().update(NOISE) for number in (7, 8))
    assert blocks == expected
    assert blocks[:16].hex() == "4b3cab0856f7e4f4d9ee6f56ef9ae8f5"
    assert blocks[:BLOCK] != blocks[BLOCK:]
    BlockCipher(KEY).decipher(memoryview(blocks), 7)
    assert blocks == plain


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5 * BLOCK), st.integers(0, 3 * BLOCK), st.integers()), max_size=6))
def test_any_write_and_read_is_as_in_a_plain_file(tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int, int]]) -> None:
    """Bytes written at any offset over blocks that were written before read back, with all others as they were."""
    directory = tmp_path_factory.mktemp("cipher")
    fd, file = open_file(directory)
    expected = bytearray(pattern(0, 8 * BLOCK))
    file.pwrite(fd, bytes(expected), 0)
    for offset, length, seed in writes:
        body = random.Random(seed).randbytes(length)
        assert file.pwrite(fd, body, offset) == length
        expected[offset : offset + length] = body
        for start, size in ((0, 8 * BLOCK), (offset, length), (offset + 1, 5), (BLOCK, BLOCK)):
            found = bytearray(size)
            assert file.preadv(fd, (found,), start, 0) == size
            assert found == expected[start : start + size]
    os.close(fd)
    (directory / "file").unlink()


def test_hole_reads_as_zeros_and_parts_of_it_can_be_written(tmp_path: Path) -> None:
    """What was never enciphered, or punched, is zeros."""
    fd, file = open_file(tmp_path)
    os.ftruncate(fd, 3 * BLOCK)
    found = bytearray(NOISE * 3)
    assert file.preadv(fd, (found,), 0, 0) == 3 * BLOCK
    assert not any(found)
    file.pwrite(fd, b"x", BLOCK + 5)
    assert file.preadv(fd, (found,), 0, 0) == 3 * BLOCK
    assert found == bytes(BLOCK + 5) + b"x" + bytes(2 * BLOCK - 6)
    os.close(fd)


@pytest.mark.parametrize("flags", [0, os.RWF_NOWAIT])
def test_short_reads_give_whole_blocks_only(tmp_path: Path, flags: int) -> None:
    """A host that gives less than asked for never leaves a block half deciphered: without waiting the rest is missing, else it is fetched."""

    def preadv(fd: int, buffers: Sequence[bytearray | memoryview], offset: int, flags: int) -> int:
        return os.preadv(fd, [memoryview(buffers[0])[:6000]], offset, 0)

    fd, file = open_file(tmp_path, dataclasses.replace(CALLS, preadv=preadv))
    file.pwrite(fd, NOISE * 3, 0)
    found = bytearray(3 * BLOCK)
    got = file.preadv(fd, (found,), 0, flags)
    assert got == (BLOCK if flags else 3 * BLOCK)
    assert found[:got] == (NOISE * 3)[:got]
    assert file.preadv(fd, (found,), 2 * BLOCK + 10, flags) == BLOCK - 10
    os.close(fd)


def test_file_that_ends_within_a_block_gives_whole_blocks_only(tmp_path: Path) -> None:
    """The part of a block that a cut file has left is nobody's bytes; a write that needs the rest of it fails."""
    fd, file = open_file(tmp_path)
    file.pwrite(fd, NOISE * 2, 0)
    os.ftruncate(fd, BLOCK + 100)
    found = bytearray(2 * BLOCK)
    assert file.preadv(fd, (found,), 0, 0) == BLOCK
    assert file.preadv(fd, (found,), BLOCK + 10, 0) == 0
    with pytest.raises(OSError, match="cut short") as caught:
        file.pwrite(fd, b"x", BLOCK + 10)
    assert caught.value.errno == errno.EIO
    os.close(fd)


def test_short_writes_go_on_and_a_full_host_is_no_space(tmp_path: Path) -> None:
    """A write is whole or fails."""
    left = [3]

    def pwrite(fd: int, body: Any, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "full")
        return os.pwrite(fd, bytes(body)[:5000], offset)

    fd, file = open_file(tmp_path, dataclasses.replace(CALLS, pwrite=pwrite))
    assert file.pwrite(fd, NOISE * 3, 0) == 3 * BLOCK
    found = bytearray(3 * BLOCK)
    assert file.preadv(fd, (found,), 0, 0) == 3 * BLOCK
    assert found == NOISE * 3
    with pytest.raises(NoSpace, match="vda: cannot write"):
        file.pwrite(fd, NOISE, 0)
    os.close(fd)


# Disks.


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


async def test_encrypted_disk_stores_nothing_plain(tmp_path: Path) -> None:
    """Neither the guest's bytes nor the disk's key are found in any of its files, and the same bytes in two blocks look different."""
    disk = new_disk(tmp_path, 2 * MIB, PatternBase(MIB), node_key=NODE_KEY)
    assert disk.encrypted
    keys = [disk._files.data_calls.pwrite.__self__._cipher._aes.key]  # type: ignore[attr-defined]  # what it is made of
    assert len(keys[0]) == KEY_SIZE
    block = (CANARY * 100)[:BLOCK]
    disk.write_nowait(0, block * 2)
    await disk.write(10 * BLOCK + 100, CANARY)
    await disk.flush()
    disk.close()
    stored = files_of(tmp_path)
    assert set(stored) == {"vda.data", "vda.map", "vda.live", "vda.key"}
    for name, body in stored.items():
        for secret in (CANARY[:16], CANARY[5:21], keys[0][:16], keys[0][16:32], keys[0][32:], bytes(range(32))):
            assert secret not in body, name
    assert stored["vda.data"][:BLOCK] != stored["vda.data"][BLOCK : 2 * BLOCK]
    disk = OverlayDisk.open(tmp_path, "vda", PatternBase(MIB), OTHER_BOOT, node_key=NODE_KEY)
    assert disk.read_nowait(0, 2 * BLOCK) == block * 2
    around = pattern(10 * BLOCK, 100), pattern(10 * BLOCK + 100 + len(CANARY), 50)
    assert disk.read_nowait(10 * BLOCK, 150 + len(CANARY)) == around[0] + CANARY + around[1]
    disk.close()


async def test_two_disks_have_two_keys(tmp_path: Path) -> None:
    """The same bytes at the same place of two disks look different."""
    for name in ("vda", "vdb"):
        OverlayDisk.create(tmp_path, name, MIB, "", node_key=NODE_KEY)
        disk = OverlayDisk.open(tmp_path, name, None, node_key=NODE_KEY)
        disk.write_nowait(0, NOISE)
        disk.close()
    assert (tmp_path / "vda.data").read_bytes()[:BLOCK] != (tmp_path / "vdb.data").read_bytes()[:BLOCK]


def test_plain_disk_opens_with_a_node_key_too(tmp_path: Path) -> None:
    """A node key says nothing about the disk: the disk does."""
    new_disk(tmp_path, MIB, None).close()
    disk = OverlayDisk.open(tmp_path, "vda", None, node_key=NODE_KEY)
    assert not disk.encrypted
    disk.write_nowait(0, NOISE)
    disk.close()
    assert (tmp_path / "vda.data").read_bytes()[:BLOCK] == NOISE


async def test_parts_of_blocks_in_all_states(tmp_path: Path) -> None:
    """A write of a part of a block keeps the rest: of data, of zeros over old data, of the base, and where the disk ends within it."""
    size = 6 * BLOCK + 700
    disk = new_disk(tmp_path, size, PatternBase(size), node_key=NODE_KEY)
    disk.write_nowait(0, NOISE * 2)
    await disk.discard(BLOCK, BLOCK)
    for block in range(7):
        assert disk.write_nowait(block * BLOCK + 10, b"x" * 20) == 20
    assert disk.write_nowait(size - 1, b"y") == 1
    assert disk.read_nowait(0, BLOCK) == NOISE[:10] + b"x" * 20 + NOISE[30:]
    assert disk.read_nowait(BLOCK, BLOCK) == bytes(10) + b"x" * 20 + bytes(BLOCK - 30)
    assert disk.read_nowait(3 * BLOCK, BLOCK) == pattern(3 * BLOCK, 10) + b"x" * 20 + pattern(3 * BLOCK + 30, BLOCK - 30)
    assert disk.read_nowait(6 * BLOCK, BLOCK) == pattern(6 * BLOCK, 10) + b"x" * 20 + pattern(6 * BLOCK + 30, 669) + b"y"
    disk.close()


async def test_encrypted_data_that_is_not_in_memory_is_read_in_a_thread(tmp_path: Path) -> None:
    """As with a plain disk: without waiting there is nothing, and a part of a block is written once the block has been read."""

    def preadv(fd: int, buffers: Any, offset: int, flags: int) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        return os.preadv(fd, buffers, offset, flags)

    disk = new_disk(tmp_path, MIB, None, Calls(preadv=preadv), node_key=NODE_KEY)
    disk.write_nowait(0, NOISE * 2)
    assert disk.read_nowait(5, BLOCK) is None
    assert disk.write_nowait(5, b"x") is None
    assert await disk.write(5, b"x") == 1
    assert await disk.read(3, BLOCK) == NOISE[3:5] + b"x" + NOISE[6:] + NOISE[:3]
    disk.close()


async def test_filesystem_without_nowait_is_read_plainly(tmp_path: Path) -> None:
    """Where the host does not know RWF_NOWAIT, encrypted disks read without it too."""

    def preadv(fd: int, buffers: Any, offset: int, flags: int) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no such flag")
        return os.preadv(fd, buffers, offset, flags)

    disk = new_disk(tmp_path, MIB, None, Calls(preadv=preadv), node_key=NODE_KEY)
    disk.write_nowait(0, NOISE)
    assert disk.read_nowait(1, BLOCK) == NOISE[1:] + b"\0"
    disk.close()


async def test_data_file_that_shrank_is_damage(tmp_path: Path) -> None:
    """Bytes that the map promises and the data file has not are never made up."""
    disk = new_disk(tmp_path, MIB, None, node_key=NODE_KEY)
    disk.write_nowait(BLOCK, NOISE)
    os.truncate(tmp_path / "vda.data", BLOCK + KIB)
    assert disk.read_nowait(BLOCK, BLOCK) is None
    with pytest.raises(StateDamaged, match=r"vda\.data: cut short"):
        await disk.read(BLOCK, BLOCK)
    disk.close()

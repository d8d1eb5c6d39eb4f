"""Files that share blocks, on filesystems that can and on one that cannot."""

import os
from pathlib import Path

import pytest

from imagefs.reflinks import can_share, share
from imagefs.units import MIB, UNIT
from tests.support.fetched import noise
from tests.support.filesystems import mounted

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_equal_bytes_share(tmp_path: Path, kind: str) -> None:
    """Equal ranges share, unequal ones do not, and each keeps its bytes whatever happens to the other."""
    with mounted(kind, tmp_path, 320 * MIB) as where:
        assert can_share(where)
        assert os.listdir(where) == []
        one, other = where / "one", where / "other"
        body = noise(2 * UNIT)
        one.write_bytes(body)
        other.write_bytes(body[:UNIT] + noise(UNIT, 2))
        with one.open("r+b") as source, other.open("r+b") as target:
            assert share(source.fileno(), 0, target.fileno(), 0, UNIT) == UNIT
            assert share(source.fileno(), UNIT, target.fileno(), UNIT, UNIT) == 0
            with pytest.raises(OSError, match="Invalid argument"):
                share(source.fileno(), 1, target.fileno(), 0, UNIT)
        assert one.read_bytes() == body
        assert other.read_bytes() == body[:UNIT] + noise(UNIT, 2)


def test_filesystem_without_reflinks(tmp_path: Path) -> None:
    """ext4 has none, and is not asked twice."""
    with mounted("ext4", tmp_path, 32 * MIB) as where:
        assert not can_share(where)
    assert not can_share(tmp_path / "missing")

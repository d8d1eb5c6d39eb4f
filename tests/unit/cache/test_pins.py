"""Pins: durable, bounded, and never in the way of a mount."""

import os
from pathlib import Path

import pytest

from imagefs.cache import pins as module
from imagefs.cache.pins import MAGIC, VERSION, Pins
from imagefs.errors import NoSpace, QuotaExceeded
from imagefs.sealed import seal
from tests.support.caching import IMAGE, OTHER_IMAGE


def anything(image_id: str) -> bool:
    return True


async def test_pins_outlive_the_daemon(tmp_path: Path) -> None:
    """What was pinned is pinned for the next daemon; what was unpinned is not."""
    pins = Pins(tmp_path / "pins")
    await pins.load()
    assert pins.ids == frozenset()
    await pins.change(IMAGE, True, anything)
    await pins.change(OTHER_IMAGE, True, anything)
    await pins.change(IMAGE, False, anything)
    again = Pins(tmp_path / "pins")
    await again.load()
    assert again.ids == pins.ids == {OTHER_IMAGE}
    assert os.listdir(tmp_path) == ["pins"]


async def test_pins_of_images_that_are_gone_are_dropped(tmp_path: Path) -> None:
    """The next change forgets them."""
    pins = Pins(tmp_path / "pins")
    await pins.change(IMAGE, True, anything)
    await pins.change(OTHER_IMAGE, True, lambda image_id: image_id != IMAGE)
    assert pins.ids == {OTHER_IMAGE}


async def test_what_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    """Unpinning what is not pinned makes no file."""
    await Pins(tmp_path / "pins").change(IMAGE, False, anything)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("body", [b"", b"IMFSPINS", seal(MAGIC, VERSION, b"[1]"), seal(MAGIC, VERSION, b'["../x"]'), seal(MAGIC, 2, b"[]")])
async def test_damage(tmp_path: Path, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A record that is not sound pins nothing and says so; the next pin replaces it."""
    path = tmp_path / "pins"
    path.write_bytes(body)
    pins = Pins(path)
    await pins.load()
    assert pins.ids == frozenset()
    assert "no image is pinned" in caplog.text
    await pins.change(IMAGE, True, anything)
    await pins.load()
    assert pins.ids == {IMAGE}


async def test_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a limit, which says so."""
    monkeypatch.setattr(module, "LIMIT", 1)
    pins = Pins(tmp_path / "pins")
    await pins.change(IMAGE, True, anything)
    with pytest.raises(QuotaExceeded, match="unpin one"):
        await pins.change(OTHER_IMAGE, True, anything)
    assert pins.ids == {IMAGE}


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.rename", "os.open"])
async def test_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A pin that cannot be written down is refused, and all is as before, in memory and on the disk."""
    pins = Pins(tmp_path / "pins")
    await pins.change(IMAGE, True, anything)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(call, fail)
        with pytest.raises(NoSpace, match="cannot be written"):
            await pins.change(OTHER_IMAGE, True, anything)
    assert pins.ids == {IMAGE}
    again = Pins(tmp_path / "pins")
    await again.load()
    assert again.ids == {IMAGE}

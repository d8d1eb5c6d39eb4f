"""The whole life of instances, with real guests: a BIOS and a UEFI image, by the command and by plain files, in plain QEMU and under libvirt."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.libvirt import libvirt
from tests.support.mounted import Mounted, mounted, run_imagefs, write_config
from tests.support.user import open_the_way
from tools.guests import PlainQemu, UnderLibvirt
from tools.hands import ByCommand, ByFiles, Place
from tools.life import BIOS, SETTINGS, UEFI, Life, import_image, live_together, prove_gone
from tools.node import guest_image

pytestmark = [pytest.mark.mount, pytest.mark.qemu, pytest.mark.boot]
KINDS = (BIOS, UEFI)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """A mount with both images, which are proved to be what they were in the end."""
    config = write_config(tmp_path, extra=f"allow_other = true\n{SETTINGS}", cache="4GiB")  # libvirt's guests run as a user of their own
    place = Place(tmp_path / "mnt", tmp_path, lambda *words: run_imagefs(config, *words).stdout)
    images = {import_image(place, kind, guest_image(kind.firmware)): guest_image(kind.firmware) for kind in KINDS}
    open_the_way(tmp_path)
    with mounted(tmp_path, config) as made:
        yield made
        for image, guest in images.items():
            subprocess.run(["cmp", made.mountpoint / "images" / image, guest], check=True, timeout=300)
            subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", made.mountpoint / "raw" / image, guest], check=True, timeout=300)


def place_of(mount: Mounted, directory: Path) -> Place:
    imagefs: Callable[..., str] = lambda *words: mount.imagefs(*words).stdout  # noqa: E731 -- the type says more than a function would
    return Place(mount.mountpoint, directory, imagefs)


def test_life_in_plain_qemu(mount: Mounted, tmp_path: Path) -> None:
    """Two lives at the same time, UEFI by the command and BIOS by plain files: snapshots are of their moment, volumes outlive instances."""
    place = place_of(mount, tmp_path)
    lives = [Life(place, UEFI, ByCommand(place), PlainQemu(place)), Life(place, BIOS, ByFiles(place), PlainQemu(place))]
    live_together(lives)
    prove_gone(mount.state, lives)


def test_life_under_libvirt(mount: Mounted, tmp_path: Path) -> None:
    """The same with a real libvirtd, which runs the guests as another user, and with the hands changed."""
    place = place_of(mount, tmp_path)
    with libvirt(mount.mountpoint) as daemon:
        lives = [Life(place, UEFI, ByFiles(place), UnderLibvirt(place, daemon)), Life(place, BIOS, ByCommand(place), UnderLibvirt(place, daemon))]
        live_together(lives)
    prove_gone(mount.state, lives)

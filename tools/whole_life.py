"""This module is the long demonstration: the whole life of instances, with a BIOS and with UEFI, in plain QEMU and under libvirt."""

import time
from collections.abc import Callable, Sequence

from tests.support.libvirt import libvirt
from tools.guests import PlainQemu, Runner, UnderLibvirt
from tools.hands import ByCommand, ByFiles, Hands, Place
from tools.life import BIOS, UEFI, Kind, Life, import_image, live_together, prove_gone
from tools.node import Failed, Node, guest_image
from tools.stage import mib, prove_unchanged, shown, step


def demonstrate(node: Node) -> str:
    """Do everything step by step and return a summary. Raises Failed at the first thing that is not as it should be."""
    started = time.monotonic()
    step("The guest images, Debian 12 made of Debian packages, one for a BIOS and one for UEFI")
    guests = {kind: guest_image(kind.firmware) for kind in (UEFI, BIOS)}
    for kind, guest in guests.items():
        print(f"{kind.firmware}: {mib(guest.stat().st_size)} of compressed qcow2")
    step("Bringing them into the store, and mounting")
    place = Place(node.mountpoint, node.directory, node.imagefs, shown)
    images = {import_image(place, kind, guest): guest for kind, guest in guests.items()}
    shown(f"imagefs mount {node.mountpoint}")
    node.mount()
    for directory in (node.directory.parent, node.directory):  # libvirt's guests run as a user of their own
        directory.chmod(0o711)
    told = []
    step("In plain QEMU: UEFI by the imagefs command and BIOS by plain file operations, at the same time")
    explain()
    uefi, bios = _place(node, UEFI.firmware), _place(node, BIOS.firmware)
    told += live(node, [_life(uefi, UEFI, ByCommand, PlainQemu(uefi)), _life(bios, BIOS, ByFiles, PlainQemu(bios))])
    step("The same under libvirt, with the hands changed")
    with libvirt(node.mountpoint) as daemon:
        told += live(node, [_life(uefi, UEFI, ByFiles, UnderLibvirt(uefi, daemon)), _life(bios, BIOS, ByCommand, UnderLibvirt(bios, daemon))])
    step("The images are what they were: byte for byte in the store, sector for sector as disks")
    for image, guest in images.items():
        prove_unchanged(node, image, guest)
    shown(f"imagefs umount {node.mountpoint}")
    node.umount()
    print("\n" + "\n".join(told))
    seconds = time.monotonic() - started
    return f"{len(told)} lives in {seconds:.0f} s; volumes outlived their instances, nothing else is left, and the images are unchanged"


def explain() -> None:
    """Say what happens in a life."""
    print(
        "A guest writes to its vda, its ephemeral vdb and a volume, its vdc, and goes on writing while a snapshot of vda is made; it is deleted;\n"
        "another one is made of the snapshot, with the volume, and tells what it finds; it is deleted too, and the volume is read from outside."
    )


def live(node: Node, lives: Sequence[Life]) -> list[str]:
    """Go through lives at the same time, and prove that nothing of them is left."""
    told = live_together(lives)
    prove_gone(node.directory / "state", lives)
    left = [str(path) for name in ("instances", "volumes") for path in (node.mountpoint / name).iterdir()]
    if left:
        raise Failed(f"the mount still has {', '.join(left)}")
    print("nothing of these instances and volumes is left in the state directory")
    return told


def _life(place: Place, kind: Kind, hands: Callable[[Place], Hands], runner: Runner) -> Life:
    return Life(place, kind, hands(place), runner, lambda line: print(f"{kind.firmware}   | {line}", flush=True))


def _place(node: Node, firmware: str) -> Place:
    return Place(node.mountpoint, node.directory, node.imagefs, lambda line: print(f"{firmware} $ {line}", flush=True))

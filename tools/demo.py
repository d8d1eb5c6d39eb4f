"""This module is the demonstration of imagefs's main job: an image goes into a store, and a guest boots from its vda and writes to it."""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.seaweed import Seaweed
from tools import whole_life
from tools.boot import Boot, boot
from tools.life import SETTINGS
from tools.node import Failed, Node, guest_image, image_info, run
from tools.stage import command, mib, prove_unchanged, shown, step

BUCKET = "images"
FULL = "go through the whole life of instances instead: BIOS and UEFI, volumes, live snapshots, libvirt; takes five minutes, needs root"


def main() -> int:
    """Run the demonstration; return the exit status."""
    parser = argparse.ArgumentParser(prog="tools/demo", description=__doc__)
    parser.add_argument("--store", choices=("file", "s3"), default="file", help="a directory (default), or an S3 server that is started")
    parser.add_argument("--full", action="store_true", help=FULL)
    parser.add_argument("--keep", action="store_true", help="keep the working directory: configuration, state, log and the guest's consoles")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that being ended cleans up too
    directory = Path(tempfile.mkdtemp(prefix="imagefs-demo-"))
    try:
        with working(directory, wanted.store, for_all=wanted.full) as node:
            summary = whole_life.demonstrate(node) if wanted.full else demonstrate(node, guest_image())
    except Failed as error:
        print(f"tools/demo: FAILED: {error}", file=sys.stderr)
        _show_log(directory)
        return 1
    except KeyboardInterrupt:
        print("tools/demo: interrupted", file=sys.stderr)
        return 130
    finally:
        if wanted.keep:
            print(f"kept: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    print(f"\ntools/demo: passed ({wanted.store} store): {summary}")
    return 0


@contextlib.contextmanager
def working(directory: Path, store: str, *, for_all: bool) -> Iterator[Node]:
    """Hold a node with the kind of store that is asked for; whatever happens, nothing stays mounted or running.

    The node of the long demonstration is for libvirt's user too, and has the flavor of its guests.
    """
    flavors = SETTINGS if for_all else ""
    with contextlib.ExitStack() as cleanup:
        if store == "s3":
            step("Starting an S3 server (SeaweedFS) on loopback")
            server = Seaweed.start(directory / "seaweed")
            cleanup.callback(server.stop)
            server.create_bucket(BUCKET)
            settings = f'[store]\nurl = "s3://{BUCKET}/demo"\n[store.s3]\nendpoint_url = "{server.endpoint_url}"\n{flavors}'
            node = Node(directory / "node", settings, server.environment(), allow_other=for_all)
        else:
            (directory / "store").mkdir()
            node = Node(directory / "node", f'[store]\nurl = "{(directory / "store").as_uri()}"\n{flavors}', allow_other=for_all)
        cleanup.callback(node.take_down)
        yield node


def demonstrate(node: Node, guest: Path) -> str:
    """Do the main job step by step and return a summary. Raises Failed at the first thing that is not as it should be."""
    info = image_info(guest)
    step(
        f"The guest image, Debian 12 made of Debian packages: {mib(guest.stat().st_size)} of compressed qcow2, a disk of {mib(info['virtual-size'])}"
    )
    step("Bringing it into the store, and mounting")
    image_id = create(node, guest)
    shown(f"imagefs mount {node.mountpoint}")
    node.mount()
    step("The tree, and the image's properties as extended attributes")
    command(["ls", "-l", str(node.mountpoint / "images"), str(node.mountpoint / "raw"), str(node.mountpoint / "names")])
    command(["getfattr", "-d", str(node.mountpoint / "images" / image_id)])
    step("Making an instance: nothing is copied")
    shown("imagefs instance create web1 --image debian-12 --flavor m1.small")
    print(node.imagefs("instance", "create", "web1", "--image", "debian-12", "--flavor", "m1.small"), end="")
    command(["ls", "-l", str(node.mountpoint / "instances" / "web1")])
    first = boot_instance(node, "first")
    expect(first, 1)
    read = read_bytes(node, image_id)
    step("Booting it again: what it wrote is there")
    second = boot_instance(node, "second")
    expect(second, 2)
    step("Deleting the instance")
    shown("imagefs instance delete web1")
    node.imagefs("instance", "delete", "web1")
    if list((node.mountpoint / "instances").iterdir()):
        raise Failed("the instance is still there after its deletion")
    step("The image is what it was: byte for byte in the store, sector for sector as a disk")
    prove_unchanged(node, image_id, guest)
    shown(f"imagefs umount {node.mountpoint}")
    node.umount()
    if os.path.ismount(node.mountpoint):
        raise Failed(f"{node.mountpoint} is still mounted after imagefs umount")
    times = f"{first.seconds:.0f} s and {second.seconds:.0f} s"
    return f"booted twice from vda, in {times}; the first boot read {read} of the image; the image is unchanged"


def create(node: Node, guest: Path) -> str:
    """Store the guest's image and return its id."""
    properties = ("hw_machine_type=pc", "hw_disk_bus=virtio", "os_distro=debian")
    options = ["--public", "--min-ram", "256", *(word for value in properties for word in ("--property", value))]
    shown(f"imagefs image create debian-12 --file {guest} {shlex.join(options)}")
    return node.create_image("debian-12", guest, *options)


def boot_instance(node: Node, name: str) -> Boot:
    """Boot web1 by the command line that imagefs gives for it."""
    shown("imagefs instance qemu web1 --accel tcg")
    line = node.imagefs("instance", "qemu", "web1", "--accel", "tcg").strip()
    print(f"{line}\n")
    print("booting without hardware virtualisation, which takes 15 to 40 s; the guest's serial console:")
    done = boot(shlex.split(line), node.directory / f"console-{name}", lambda text: print(f"  | {text}", flush=True))
    print(f"the guest reported after {done.seconds:.1f} s and ended after {done.seconds_to_end:.1f} s")
    return done


def expect(done: Boot, number: int) -> None:
    """Raise Failed unless the guest counts this boot as `number` by the marker on its disk."""
    if (done.number, done.marker_lines) != (number, number):
        raise Failed(f"the guest should have found {number - 1} marker lines and written one more, but reports: {done.report}")


def read_bytes(node: Node, image_id: str) -> str:
    """Show how much of the image was read, and return it in words."""
    step("How much of the image the boot has read")
    raw = node.mountpoint / "raw" / image_id
    words = ["getfattr", "--only-values", "--absolute-names", "-n", "user.imagefs.cached", str(raw)]
    shown(shlex.join(words))
    with raw.open("rb"):  # of an image that nobody has open, the daemon keeps no count at hand
        printed = run(words).strip()
    print(printed)
    cached, _, whole = printed.partition("/")
    if not 0 < int(cached) < int(whole):
        raise Failed(f"a boot reads a part of the image, but {raw} says that {printed} bytes are cached")
    statistics = node.statistics()
    print(f"of the disk's {mib(int(whole))}, {mib(int(cached))} are in the cache: {int(cached) / int(whole):.1%}")
    names = ("store_requests", "store_data_requests", "store_bytes", "reads", "read_bytes", "writes", "written_bytes", "flushes")
    print("from .imagefs/stats: " + ", ".join(f"{name} {statistics[name]:.0f}" for name in names if name in statistics))
    return f"{mib(int(cached))} ({int(cached) / int(whole):.1%})"


def _show_log(directory: Path) -> None:
    log = directory / "node" / "state" / "imagefs.log"
    if log.exists():
        print(f"the end of imagefs's log:\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

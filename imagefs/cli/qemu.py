"""This module makes a QEMU command line from a flavor, an image's properties and the disks of an instance. Pure: it asks nothing.

Properties mean what they mean to Nova's libvirt driver. A value that Nova would refuse is refused, and so is one that asks
for something which this version cannot give: a guest that lacks what its image requires is worse than none.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from imagefs.errors import InvalidInput, Unsupported
from imagefs.store.record import is_image_id

DEFAULT_RAM: Final = 512
"""MiB for a guest without a flavor, unless its image asks for more."""
_BINARIES: Final = {"x86_64": "qemu-system-x86_64", "i686": "qemu-system-i386"}
_MACHINE: Final = re.compile(r"pc|q35|pc-(?:i440fx|q35)-[A-Za-z0-9._-]+")
_TRUE: Final = frozenset({"1", "t", "true", "on", "y", "yes"})
_FALSE: Final = frozenset({"0", "f", "false", "off", "n", "no"})
_DISK_BUSES: Final = ("virtio", "scsi", "sata", "ide", "usb")
_SCSI_CONTROLLERS: Final = {
    "virtio-scsi": "virtio-scsi-pci", "lsilogic": "lsi53c895a", "lsisas1068": "mptsas1068", "lsisas1078": "megasas", "vmpvscsi": "pvscsi",
}  # fmt: skip
_NETWORK_CARDS: Final = {
    "virtio": "virtio-net-pci", "e1000": "e1000", "e1000e": "e1000e", "igb": "igb", "rtl8139": "rtl8139", "ne2k_pci": "ne2k_pci", "pcnet": "pcnet",
    "vmxnet3": "vmxnet3",
}  # fmt: skip
_VIDEO_CARDS: Final = {
    "cirrus": "cirrus-vga", "qxl": "qxl-vga", "vga": "VGA", "vmvga": "vmware-svga", "virtio": "virtio-vga", "bochs": "bochs-display", "none": None,
}  # fmt: skip
_WATCHDOG_ACTIONS: Final = {"disabled": None, "reset": "reset", "poweroff": "poweroff", "pause": "pause", "none": "none"}
_DISK_LIMITS: Final = {"ide": 4, "sata": 6}
_ALIASES: Final = {"architecture": "hw_architecture", "vm_mode": "hw_vm_mode", "hypervisor_type": "img_hv_type"}


@dataclasses.dataclass(frozen=True, slots=True)
class Guest:
    """What is to run: `ram` in MiB, `disks` by name in the order in which the guest sees them."""

    name: str
    uuid: str
    vcpus: int
    ram: int
    disks: Mapping[str, Path]
    attributes: Mapping[str, str]
    """The image's attributes and properties, as its extended attributes have them."""
    images: Path
    """The mount's images/, where a kernel and a ramdisk are."""


def choose_accelerator(cpuinfo: str, *, kvm_usable: bool) -> str:
    """Return kvm or tcg. In a virtual machine KVM is nested, which is not trusted unless it is asked for."""
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return "kvm" if kvm_usable and "hypervisor" not in flags.split() else "tcg"


def command_line(guest: Guest, accelerator: str) -> list[str]:
    """Return the words of the command. Raises InvalidInput for a property's bad value, Unsupported for one that cannot be met."""
    image = _Properties({_ALIASES.get(name, name): value for name, value in guest.attributes.items()})
    _refuse_unmet(image)
    machine = image.matching("hw_machine_type", _MACHINE, "pc", "a machine type pc, q35, pc-i440fx-* or pc-q35-*")
    is_q35 = "q35" in machine
    return [
        _BINARIES[image.choice("hw_architecture", _BINARIES, "x86_64")],
        *("-name", f"guest={_escaped(guest.name)}"),
        *("-uuid", guest.uuid),
        *("-machine", _joined(machine, image.switch("hw_time_hpet", "hpet"))),
        *("-accel", accelerator),
        *("-cpu", _cpu(image, accelerator)),
        *("-smp", str(guest.vcpus)),
        *("-m", str(guest.ram)),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none", "-serial", "mon:stdio"),
        *("-boot", _joined("strict=on", image.switch("hw_boot_menu", "menu"))),
        *_clock(image),
        *_kernel(image, guest.images),
        *_disks(image, guest.disks, is_q35=is_q35),
        *_network(image, guest.uuid),
        *_devices(image),
    ]


class _Properties:
    """An image's properties, each read as what it must be."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def text(self, name: str) -> str | None:
        return self._values.get(name)

    def choice(self, name: str, choices: Mapping[str, object] | Sequence[str], default: str) -> str:
        value = self._values.get(name, default)
        if value not in choices:
            raise InvalidInput(f"the image's {name} is '{value}': it must be one of {', '.join(choices)}")
        return value

    def matching(self, name: str, pattern: re.Pattern[str], default: str, what: str) -> str:
        value = self._values.get(name, default)
        if pattern.fullmatch(value) is None:
            raise InvalidInput(f"the image's {name} is '{value}': it must be {what}")
        return value

    def boolean(self, name: str) -> bool | None:
        value = self._values.get(name)
        if value is None:
            return None
        if value.lower() in _TRUE | _FALSE:
            return value.lower() in _TRUE
        raise InvalidInput(f"the image's {name} is '{value}': it must be yes or no")

    def switch(self, name: str, option: str) -> str | None:
        """Return `option=on` or `option=off` as the property says; None if it says nothing."""
        value = self.boolean(name)
        return None if value is None else f"{option}={'on' if value else 'off'}"


def _refuse_unmet(image: _Properties) -> None:
    if image.choice("hw_firmware_type", ("bios", "uefi"), "bios") == "uefi":
        raise Unsupported("the image's hw_firmware_type is uefi: this version starts guests with a BIOS only")
    if image.choice("os_secure_boot", ("required", "optional", "disabled"), "disabled") == "required":
        raise Unsupported("the image's os_secure_boot is required: this version starts guests with a BIOS only, without secure boot")
    if image.text("hw_tpm_version") is not None:
        raise Unsupported("the image's hw_tpm_version asks for a TPM: this version gives guests none")
    if image.boolean("hw_mem_encryption"):
        raise Unsupported("the image's hw_mem_encryption asks for encrypted memory: this version gives guests none")
    image.choice("hw_vm_mode", ("hvm",), "hvm")
    image.choice("img_hv_type", ("kvm", "qemu"), "qemu")


def _cpu(image: _Properties, accelerator: str) -> str:
    if accelerator == "tcg":
        return _joined("max", image.switch("hw_pmu", "pmu"))
    return _joined("host", image.switch("hw_pmu", "pmu"), "kvm=off" if image.boolean("img_hide_hypervisor_id") else None)


def _clock(image: _Properties) -> Sequence[str]:
    return ("-rtc", "base=localtime") if image.text("os_type") == "windows" else ()


def _kernel(image: _Properties, images: Path) -> Iterator[str]:
    for name, option in (("kernel_id", "-kernel"), ("ramdisk_id", "-initrd")):
        image_id = image.text(name)
        if not image_id:
            continue
        if not is_image_id(image_id):
            raise InvalidInput(f"the image's {name} is '{image_id}': it must be the id of an image")
        yield from (option, str(images / image_id))
    if image.text("kernel_id"):
        yield from ("-append", image.text("os_command_line") or "root=/dev/vda console=tty0 console=ttyS0")


def _disks(image: _Properties, disks: Mapping[str, Path], *, is_q35: bool) -> Iterator[str]:
    bus = image.choice("hw_disk_bus", _DISK_BUSES, "virtio")
    buses = dict.fromkeys(disks, bus)
    if image.text("disk_format") == "iso" and "vda" in buses:
        buses["vda"] = image.choice("hw_cdrom_bus", _DISK_BUSES[1:], "sata" if is_q35 else "ide")
    if is_q35 and "ide" in buses.values():
        raise InvalidInput("the image's hw_disk_bus or hw_cdrom_bus is ide, and a q35 machine has no IDE: set it to sata")
    for used in dict.fromkeys(buses.values()):
        yield from _controller(image, used)
    counts = dict.fromkeys(_DISK_BUSES, 0)
    for index, (name, path) in enumerate(disks.items()):
        own = buses[name]
        if counts[own] >= _DISK_LIMITS.get(own, 26):
            raise InvalidInput(f"the instance has more disks than fit the {own} bus: set the image's hw_disk_bus to virtio")
        # A format is always named: the bytes are the guest's, and QEMU would believe what they look like. cache=none because
        # the host keeps these bytes already; aio=threads because with native a read that waits for the store stops the whole guest;
        # and a guest whose store is down for long is stopped, to be continued from the monitor, and sees no I/O error.
        is_cdrom = name == "vda" and image.text("disk_format") == "iso"
        media = ",media=cdrom,readonly=on" if is_cdrom else ""
        yield from ("-drive", f"file={_escaped(str(path))},format=raw,if=none,id=drive-{name},cache=none,aio=threads,werror=stop,rerror=stop{media}")
        device = _disk_device(own, counts[own], is_cdrom=is_cdrom)
        yield from ("-device", _joined(device, f"drive=drive-{name},id={name},bootindex={index + 1}", _packed(image) if own == "virtio" else None))
        counts[own] += 1


def _controller(image: _Properties, bus: str) -> Sequence[str]:
    if bus == "scsi":
        model = image.choice("hw_scsi_model", _SCSI_CONTROLLERS, "lsilogic")
        return ("-device", f"{_SCSI_CONTROLLERS[model]},id=scsi0")
    return {"sata": ("-device", "ich9-ahci,id=sata0"), "usb": ("-device", "qemu-xhci,id=usb0")}.get(bus, ())


def _disk_device(bus: str, position: int, *, is_cdrom: bool) -> str:
    kind = "cd" if is_cdrom else "hd"
    return {
        "virtio": "virtio-blk-pci",
        "scsi": f"scsi-{kind},bus=scsi0.0",
        "sata": f"ide-{kind},bus=sata0.{position}",
        "ide": f"ide-{kind},bus=ide.{position // 2},unit={position % 2}",
        "usb": "usb-storage,bus=usb0.0",
    }[bus]


def _network(image: _Properties, instance_uuid: str) -> Sequence[str]:
    model = image.choice("hw_vif_model", _NETWORK_CARDS, "virtio")
    # the same address at each start: guests name their interfaces by it, and DHCP servers know them by it
    digest = hashlib.blake2b(instance_uuid.encode(), digest_size=3).hexdigest()
    address = f"fa:16:3e:{digest[:2]}:{digest[2:4]}:{digest[4:]}"
    card = _joined(f"{_NETWORK_CARDS[model]},netdev=net0,mac={address}", _packed(image) if model == "virtio" else None)
    return ("-netdev", "user,id=net0", "-device", card)


def _devices(image: _Properties) -> Iterator[str]:
    image.choice("hw_rng_model", ("virtio",), "virtio")
    yield from ("-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0")
    video = _VIDEO_CARDS[image.choice("hw_video_model", _VIDEO_CARDS, "vga")]
    if video is not None:
        yield from ("-device", video)
    action = _WATCHDOG_ACTIONS[image.choice("hw_watchdog_action", _WATCHDOG_ACTIONS, "disabled")]
    if action is not None:
        yield from ("-device", "i6300esb", "-action", f"watchdog={action}")
    pointer = image.text("hw_pointer_model")
    if pointer is not None:
        image.choice("hw_pointer_model", ("usbtablet",), "usbtablet")
        yield from ("-device", "qemu-xhci,id=input0", "-device", "usb-tablet,bus=input0.0")


def _packed(image: _Properties) -> str | None:
    return "packed=on" if image.boolean("hw_virtio_packed_ring") else None


def _joined(*options: str | None) -> str:
    return ",".join(option for option in options if option)


def _escaped(text: str) -> str:
    """Return text as a value among QEMU's options, where a comma stands for itself when it is doubled."""
    return text.replace(",", ",,")

"""This module plans a machine: it makes a `Machine` of what a guest is, with Nova's meanings and defaults. Pure: it asks nothing.

The firmware, the disks and the devices of an image that says nothing are those that Nova's libvirt driver gives it, but for the video
card: VGA, since nobody looks at it.
"""

import hashlib
import re
from typing import Final

from imagefs.cli.machine.disks import DISK_BUSES, plan_disks, scsi_model
from imagefs.cli.machine.model import Firmware, Guest, Kernel, Machine, Network, Surroundings, Tpm, Video
from imagefs.cli.machine.processor import plan_memory, plan_processor
from imagefs.errors import InvalidInput, Unsupported
from imagefs.instances.properties import Properties
from imagefs.store.record import is_image_id

ARCHITECTURES: Final = ("x86_64", "i686")
_MACHINE: Final = re.compile(r"pc|q35|pc-(?:i440fx|q35)-[A-Za-z0-9._-]+")
_NETWORK_CARDS: Final = ("virtio", "e1000", "e1000e", "rtl8139", "ne2k_pci", "pcnet", "vmxnet3")
_VIDEO_CARDS: Final = ("cirrus", "qxl", "vga", "vmvga", "virtio", "bochs", "none")
_SOUND_CARDS: Final = ("sb16", "es1370", "pcspk", "ac97", "ich6", "ich9", "usb")
_WATCHDOG_ACTIONS: Final = ("disabled", "reset", "poweroff", "pause", "none")
_SERIAL_PORTS: Final = 4
"""What a PC has addresses for."""
_VIDEO_RAM: Final = 256
"""MiB: what QEMU's VGA takes at most."""
_LATER: Final = "QEMU has it from version {} on, and this version of imagefs speaks to 7.2"


def plan_machine(guest: Guest, surroundings: Surroundings) -> Machine:
    """Return the machine. Raises InvalidInput for a property's bad value, Unsupported for one that cannot be met."""
    image = Properties(guest.attributes)
    _refuse_unmet(image)
    architecture = _architecture(image)
    firmware, machine_type = _firmware(image, guest, architecture)
    is_q35 = "q35" in machine_type
    processor = plan_processor(image, guest.vcpus, guest.ram)
    disks = plan_disks(image, [disk for disk in guest.disks if disk.kind != "nvram"], is_q35=is_q35)
    input_bus = image.optional("hw_input_bus", ("usb", "virtio"))
    has_keyboard = input_bus is not None
    if image.optional("hw_pointer_model", ("usbtablet",)) is not None:
        input_bus = input_bus or "usb"
    sound = image.optional("hw_sound_model", (*_SOUND_CARDS, "virtio"), lacking={"virtio": _LATER.format("8.2")})
    needs_usb = "usb" in (input_bus, sound, *(disk.bus for disk in disks))
    action = image.choice("hw_watchdog_action", _WATCHDOG_ACTIONS, "disabled")
    image.choice("hw_rng_model", ("virtio",), "virtio")
    image.boolean("os_require_quiesce")  # a snapshot's matter: it fails unless the guest agent freezes the file systems
    return Machine(
        name=guest.name,
        uuid=guest.uuid,
        surroundings=surroundings,
        architecture=architecture,
        type=machine_type,
        firmware=firmware,
        processor=processor,
        memory=plan_memory(image, guest.ram, processor.nodes),
        localtime=image.optional("os_type", ("linux", "windows")) == "windows",
        hpet=image.boolean("hw_time_hpet"),
        hyperv=image.text("os_type") == "windows" and surroundings.accelerator == "kvm",
        boot_menu=image.boolean("hw_boot_menu"),
        kernel=_kernel(image, guest),
        disks=disks,
        scsi_model=scsi_model(image) if any(disk.bus == "scsi" for disk in disks) else "",
        network=_network(image, guest),
        packed=image.is_on("hw_virtio_packed_ring"),
        video=_video(image),
        serial_ports=image.number("hw_serial_port_count", 0, _SERIAL_PORTS) or 1,
        watchdog=None if action == "disabled" else action,
        has_agent=image.is_on("hw_qemu_guest_agent"),
        tpm=_tpm(image, surroundings),
        usb_model=_usb_model(image, needs_usb=needs_usb),
        input_bus=input_bus,
        has_keyboard=has_keyboard,
        sound=sound,
        iommu=_iommu(image, is_q35=is_q35),
    )


def _refuse_unmet(image: Properties) -> None:
    if image.is_on("hw_mem_encryption"):
        raise Unsupported("the image's hw_mem_encryption asks for encrypted memory: this version gives guests none")
    if image.number("hw_redirected_usb_ports", 0, 15):
        raise Unsupported("the image's hw_redirected_usb_ports asks for ports that only a SPICE console has: this version gives guests none")
    image.choice("hw_vm_mode", ("hvm",), "hvm")
    image.choice("img_hv_type", ("kvm", "qemu"), "qemu")
    image.optional("hw_rescue_device", ("cdrom", "disk", "floppy", *DISK_BUSES))


def _architecture(image: Properties) -> str:
    """Return the guest's architecture. Others than x86 are refused: they would need firmware and device models of their own."""
    own = image.choice("hw_architecture", ARCHITECTURES, "x86_64")
    return image.choice("hw_emulation_architecture", ARCHITECTURES, own)


def _firmware(image: Properties, guest: Guest, architecture: str) -> tuple[Firmware | None, str]:
    """Return the firmware, None for a BIOS, and the machine's type: q35 for UEFI unless the image names one, else pc."""
    is_uefi = image.choice("hw_firmware_type", ("bios", "uefi"), "bios") == "uefi"
    what = "a machine type pc, q35, pc-i440fx-* or pc-q35-*"
    machine_type = image.matching("hw_machine_type", _MACHINE, "q35" if is_uefi else "pc", what)
    secure_boot = image.choice("os_secure_boot", ("required", "optional", "disabled"), "disabled")
    is_stateless = image.is_on("hw_firmware_stateless")
    if not is_uefi:
        if secure_boot == "required":
            raise Unsupported("the image's os_secure_boot is required, and a BIOS has none: set its hw_firmware_type to uefi")
        if is_stateless:
            raise InvalidInput("the image's hw_firmware_stateless is on: it needs the hw_firmware_type uefi")
        return None, machine_type
    if architecture != "x86_64":
        raise Unsupported(f"the image's hw_firmware_type is uefi, and its architecture {architecture}: there is a UEFI for x86_64 only")
    if guest.firmware_code is None:
        raise Unsupported("the image's hw_firmware_type is uefi, and the instance was made without one: make the instance anew")
    if secure_boot == "required" and not guest.secure_boot:
        raise Unsupported("the image's os_secure_boot is required, and the instance was made without it: make the instance anew")
    if guest.secure_boot and "q35" not in machine_type:
        raise Unsupported(f"secure boot needs a q35 machine: set the image's hw_machine_type from {machine_type} to q35")
    if guest.secure_boot and is_stateless:
        raise Unsupported("the image's hw_firmware_stateless is on: secure boot keeps its keys in variables, which such a firmware has not")
    variables = next((disk.path for disk in guest.disks if disk.kind == "nvram"), None)
    if variables is None and not is_stateless:
        raise Unsupported("the image's hw_firmware_type is uefi, and the instance has no nvram.fd: make the instance anew")
    return Firmware(guest.firmware_code, None if is_stateless else variables, guest.secure_boot), machine_type


def _kernel(image: Properties, guest: Guest) -> Kernel | None:
    paths = {}
    for name in ("kernel_id", "ramdisk_id"):
        image_id = image.text(name)
        if image_id and not is_image_id(image_id):
            raise InvalidInput(f"the image's {name} is '{image_id}': it must be the id of an image")
        paths[name] = guest.images / image_id if image_id else None
    kernel = paths["kernel_id"]
    if kernel is None:  # os_command_line and a ramdisk mean nothing without a kernel
        return None
    return Kernel(kernel, paths["ramdisk_id"], image.text("os_command_line") or "root=/dev/vda console=tty0 console=ttyS0")


def _network(image: Properties, guest: Guest) -> Network:
    model = image.choice("hw_vif_model", (*_NETWORK_CARDS, "igb"), "virtio", lacking={"igb": _LATER.format("8.0")})
    # the same address at each start: guests name their interfaces by it, and DHCP servers know them by it
    digest = hashlib.blake2b(guest.uuid.encode(), digest_size=3).hexdigest()
    address = f"fa:16:3e:{digest[:2]}:{digest[2:4]}:{digest[4:]}"
    has_queues = image.is_on("hw_vif_multiqueue_enabled") and model == "virtio"
    return Network(model, address, guest.vcpus if has_queues else 1)


def _video(image: Properties) -> Video | None:
    model = image.choice("hw_video_model", _VIDEO_CARDS, "vga")
    ram = image.number("hw_video_ram", 0, _VIDEO_RAM)
    if model == "none":
        return None
    return Video(model, 1 << (ram - 1).bit_length() if ram else None)  # QEMU takes powers of two only


def _tpm(image: Properties, surroundings: Surroundings) -> Tpm | None:
    version = image.optional("hw_tpm_version", ("1.2", "2.0"))
    model = image.choice("hw_tpm_model", ("tpm-tis", "tpm-crb"), "tpm-tis")
    if version is None:
        return None
    if model == "tpm-crb" and version != "2.0":
        raise InvalidInput(f"the image's hw_tpm_model is 'tpm-crb': it needs the hw_tpm_version 2.0, not {version}")
    return Tpm(version, model, surroundings.tpm_state)


def _usb_model(image: Properties, *, needs_usb: bool) -> str | None:
    model = image.optional("hw_usb_model", ("none", "nec-xhci", "qemu-xhci"))
    if model == "none" and needs_usb:
        raise InvalidInput("the image's hw_usb_model is 'none', and other properties ask for devices on USB: unset one or the other")
    return (model or "qemu-xhci") if needs_usb or model not in (None, "none") else None


def _iommu(image: Properties, *, is_q35: bool) -> str | None:
    model = image.optional("hw_viommu_model", ("intel", "virtio", "auto", "smmuv3"), lacking={"smmuv3": "only ARM has it: set it to virtio"})
    if model is not None and not is_q35:
        raise InvalidInput(f"the image's hw_viommu_model is '{model}': it needs a q35 machine: set hw_machine_type to q35")
    return "virtio" if model == "auto" else model

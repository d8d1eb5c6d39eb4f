"""This module says a machine as libvirt's domain XML, with the meaning that `cli.qemu` gives it. Pure.

Host devices that belong to no instance are left to libvirt: sockets, the TPM's state, security labels. There is no network unless one is
named, since networks are the host's.
"""

import re
from typing import Final
from xml.etree import ElementTree as ET

from imagefs.cli.machine.model import Disk, Machine
from imagefs.errors import InvalidInput

USER_NETWORK: Final = "user"
"""The name that means QEMU's own user-mode network, behind the host's."""
_TARGETS: Final = {"virtio": "vd", "ide": "hd"}
"""How guests call the first disks of a bus; disks on all others are sda, sdb..."""
_HYPERV: Final = ("relaxed", "vapic", "vpindex", "runtime", "synic", "reset", "frequencies", "tlbflush", "ipi")
_NO_VIDEO_RAM: Final = frozenset({"cirrus", "virtio"})
_NO_XML: Final = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def domain_xml(machine: Machine, network: str | None = None, console_log: str | None = None) -> str:
    """Return the definition of the domain, to be given to virsh define.

    `network` is a network of libvirt's, or `user`; None for no network card. `console_log` is a file to which the console is copied.
    Raises InvalidInput for what XML cannot say.
    """
    domain = ET.Element("domain", type="kvm" if machine.surroundings.accelerator == "kvm" else "qemu")
    _text(domain, "name", machine.name)
    _text(domain, "uuid", machine.uuid)
    _text(domain, "memory", str(machine.memory.ram), unit="MiB")
    _add_memory(domain, machine)
    _text(domain, "vcpu", str(machine.processor.vcpus))
    _add_boot(domain, machine)
    _add_features(domain, machine)
    _add_processor(domain, machine)
    _add_clock(domain, machine)
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _text(domain, event, action)
    devices = ET.SubElement(domain, "devices")
    used: dict[str, int] = {}
    for disk in machine.disks:
        _add_disk(devices, disk, used, packed=machine.packed)
    _add_controllers(devices, machine)
    if network is not None:
        _add_network(devices, machine, network)
    _add_consoles(devices, machine, console_log)
    _add_devices(devices, machine)
    ET.indent(domain)
    text = ET.tostring(domain, encoding="unicode")
    if (found := _NO_XML.search(text)) is not None:
        raise InvalidInput(f"a path or a property of the guest has the character {found[0]!r}, which XML cannot have: use instance qemu")
    return text


def _text(parent: ET.Element, name: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, name, attributes).text = text


def _on(value: bool) -> str:
    return "on" if value else "off"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _add_memory(domain: ET.Element, machine: Machine) -> None:
    memory = machine.memory
    if memory.page is None and not memory.locked:
        return
    backing = ET.SubElement(domain, "memoryBacking")
    if memory.page is not None:
        pages = ET.SubElement(backing, "hugepages")
        if memory.page:
            ET.SubElement(pages, "page", size=str(memory.page), unit="KiB")
    if memory.locked:
        ET.SubElement(backing, "locked")


def _add_boot(domain: ET.Element, machine: Machine) -> None:
    boot = ET.SubElement(domain, "os")
    _text(boot, "type", "hvm", arch=machine.architecture, machine=machine.type)
    firmware = machine.firmware
    if firmware is not None:
        kind = {"readonly": "yes", "type": "pflash"}
        if firmware.secure:
            kind["secure"] = "yes"
        if firmware.variables is None:
            kind["stateless"] = "yes"
        _text(boot, "loader", str(firmware.code), **kind)
        if firmware.variables is not None:
            _text(boot, "nvram", str(firmware.variables))
    if machine.kernel is not None:
        _text(boot, "kernel", str(machine.kernel.kernel))
        if machine.kernel.ramdisk is not None:
            _text(boot, "initrd", str(machine.kernel.ramdisk))
        _text(boot, "cmdline", machine.kernel.command_line)
    if machine.boot_menu is not None:
        ET.SubElement(boot, "bootmenu", enable=_yes(machine.boot_menu))


def _add_features(domain: ET.Element, machine: Machine) -> None:
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    is_kvm = machine.surroundings.accelerator == "kvm"
    if machine.hyperv:
        hyperv = ET.SubElement(features, "hyperv", mode="custom")
        for name in _HYPERV:
            ET.SubElement(hyperv, name, state="on")
        ET.SubElement(hyperv, "spinlocks", state="on", retries="8191")
        if machine.processor.hide_hypervisor:
            ET.SubElement(hyperv, "vendor_id", state="on", value="1234567890ab")
    if is_kvm and machine.processor.hide_hypervisor:
        ET.SubElement(ET.SubElement(features, "kvm"), "hidden", state="on")
    if machine.processor.pmu is not None:
        ET.SubElement(features, "pmu", state=_on(machine.processor.pmu))
    if machine.firmware is not None and machine.firmware.secure:
        ET.SubElement(features, "smm", state="on")
    if is_kvm and machine.iommu == "intel":
        ET.SubElement(features, "ioapic", driver="qemu")


def _add_processor(domain: ET.Element, machine: Machine) -> None:
    processor = machine.processor
    is_kvm = machine.surroundings.accelerator == "kvm"
    element = ET.SubElement(domain, "cpu", mode="host-passthrough" if is_kvm else "maximum", check="none")
    topology = {"sockets": processor.sockets, "dies": 1, "cores": processor.cores, "threads": processor.threads}
    ET.SubElement(element, "topology", {name: str(number) for name, number in topology.items()})
    if processor.address_bits is not None:
        ET.SubElement(element, "maxphysaddr", mode="emulate", bits=str(processor.address_bits))
    elif processor.address_mode == "passthrough" and is_kvm:
        ET.SubElement(element, "maxphysaddr", mode="passthrough")
    if processor.nodes:
        numa = ET.SubElement(element, "numa")
        for number, node in enumerate(processor.nodes):
            ET.SubElement(numa, "cell", id=str(number), cpus=",".join(map(str, node.vcpus)), memory=str(node.ram), unit="MiB")


def _add_clock(domain: ET.Element, machine: Machine) -> None:
    clock = ET.SubElement(domain, "clock", offset="localtime" if machine.localtime else "utc")
    if machine.hpet is not None:
        ET.SubElement(clock, "timer", name="hpet", present=_yes(machine.hpet))
    if machine.hyperv:
        ET.SubElement(clock, "timer", name="hypervclock", present="yes")


def _add_disk(devices: ET.Element, disk: Disk, used: dict[str, int], *, packed: bool) -> None:
    """Add a disk; `used` counts those under each prefix of guests' names. For what is said of formats, caches and errors see `cli.qemu`."""
    is_block = disk.path.is_relative_to("/dev")
    element = ET.SubElement(devices, "disk", type="block" if is_block else "file", device="cdrom" if disk.is_cdrom else "disk")
    driver = {"name": "qemu", "type": disk.format, "cache": "none", "io": "threads", "error_policy": "stop", "rerror_policy": "stop"}
    if disk.format == "qcow2":
        driver["discard"] = "unmap"
    if packed and disk.bus == "virtio":
        driver["packed"] = "on"
    ET.SubElement(element, "driver", driver)
    ET.SubElement(element, "source", {"dev" if is_block else "file": str(disk.path)})
    if disk.backing is not None:
        backing = ET.SubElement(element, "backingStore", type="file")
        ET.SubElement(backing, "format", type="raw")
        ET.SubElement(backing, "source", file=str(disk.backing))
        ET.SubElement(backing, "backingStore")
    elif disk.format == "qcow2":
        ET.SubElement(element, "backingStore")
    prefix = _TARGETS.get(disk.bus, "sd")
    number = used[prefix] = used.get(prefix, -1) + 1
    ET.SubElement(element, "target", dev=f"{prefix}{'abcdefghijklmnopqrstuvwxyz'[number]}", bus=disk.bus)
    if disk.is_cdrom or disk.is_readonly:
        ET.SubElement(element, "readonly")
    if disk.boot is not None:
        ET.SubElement(element, "boot", order=str(disk.boot))
    ET.SubElement(element, "alias", name=f"ua-{disk.name}")
    if disk.bus in ("scsi", "sata"):
        ET.SubElement(element, "address", type="drive", controller="0", bus="0", target="0", unit=str(disk.position))
    elif disk.bus == "ide":
        ET.SubElement(element, "address", type="drive", controller="0", bus=str(disk.position // 2), target="0", unit=str(disk.position % 2))


def _add_controllers(devices: ET.Element, machine: Machine) -> None:
    ET.SubElement(devices, "controller", type="usb", index="0", model=machine.usb_model or "none")
    if "scsi" in machine.buses:
        controller = ET.SubElement(devices, "controller", type="scsi", index="0", model=machine.scsi_model)
        if machine.packed and machine.scsi_model == "virtio-scsi":
            ET.SubElement(controller, "driver", packed="on")


def _add_network(devices: ET.Element, machine: Machine, network: str) -> None:
    is_user = network == USER_NETWORK
    element = ET.SubElement(devices, "interface", type="user" if is_user else "network")
    ET.SubElement(element, "mac", address=machine.network.address)
    if not is_user:
        ET.SubElement(element, "source", network=network)
    ET.SubElement(element, "model", type=machine.network.model)
    driver = {}
    if machine.network.queues > 1 and not is_user:
        driver["queues"] = str(machine.network.queues)
    if machine.packed and machine.network.model == "virtio":
        driver["packed"] = "on"
    if driver:
        ET.SubElement(element, "driver", driver)


def _add_consoles(devices: ET.Element, machine: Machine, console_log: str | None) -> None:
    for number in range(machine.serial_ports):
        serial = ET.SubElement(devices, "serial", type="pty")
        if number == 0 and console_log is not None:
            ET.SubElement(serial, "log", file=console_log, append="on")
        ET.SubElement(serial, "target", port=str(number))
    console = ET.SubElement(devices, "console", type="pty")
    if console_log is not None:
        ET.SubElement(console, "log", file=console_log, append="on")
    ET.SubElement(console, "target", type="serial", port="0")
    if machine.has_agent:
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")


def _add_devices(devices: ET.Element, machine: Machine) -> None:
    for kind in ("keyboard", "tablet") if machine.has_keyboard else ("tablet",):
        if machine.input_bus is not None:
            ET.SubElement(devices, "input", type=kind, bus=machine.input_bus)
    if machine.tpm is not None:
        tpm = ET.SubElement(devices, "tpm", model=machine.tpm.model)
        ET.SubElement(tpm, "backend", type="emulator", version=machine.tpm.version)
    if machine.sound is not None:
        ET.SubElement(devices, "sound", model=machine.sound)
        ET.SubElement(devices, "audio", id="1", type="none")
    video = ET.SubElement(devices, "video")
    model = {"type": machine.video.model if machine.video is not None else "none"}
    if machine.video is not None and machine.video.ram is not None and machine.video.model not in _NO_VIDEO_RAM:
        is_qxl = machine.video.model == "qxl"
        model |= {"vram": str(machine.video.ram * (2048 if is_qxl else 1024))} | ({"vgamem": str(machine.video.ram * 1024)} if is_qxl else {})
    ET.SubElement(video, "model", model)
    if machine.watchdog is not None:
        ET.SubElement(devices, "watchdog", model="i6300esb", action=machine.watchdog)
    ET.SubElement(devices, "memballoon", model="none")
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    if machine.iommu is not None:
        iommu = ET.SubElement(devices, "iommu", model=machine.iommu)
        if machine.iommu == "intel":
            options = {"caching_mode": "on", "iotlb": "on", "aw_bits": "48"}
            if machine.surroundings.accelerator == "kvm":  # libvirt remaps interrupts with the split IOAPIC of KVM only
                options |= {"intremap": "on", "eim": "on"}
            ET.SubElement(iommu, "driver", options)

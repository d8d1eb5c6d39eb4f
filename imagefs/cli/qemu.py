"""This module says a machine in QEMU's words. Pure: what the words ask for was decided in `cli.machine.plan`.

Everything is named in full, and nothing is left to QEMU's defaults or to what bytes look like.
"""

from collections.abc import Iterator
from typing import Final

from imagefs.cli.machine.model import Disk, Machine, Tpm
from imagefs.errors import InvalidInput, Unsupported

SOCKET_LIMIT: Final = 107
"""Bytes of a Unix socket's path."""
_BINARIES: Final = {"x86_64": "qemu-system-x86_64", "i686": "qemu-system-i386"}
_SCSI_CONTROLLERS: Final = {
    "virtio-scsi": "virtio-scsi-pci", "lsilogic": "lsi53c895a", "lsisas1068": "mptsas1068", "lsisas1078": "megasas", "vmpvscsi": "pvscsi",
}  # fmt: skip
_USB_CONTROLLERS: Final = {"qemu-xhci": "qemu-xhci", "nec-xhci": "nec-usb-xhci"}
_VIDEO_CARDS: Final = {
    "cirrus": "cirrus-vga", "qxl": "qxl-vga", "vga": "VGA", "vmvga": "vmware-svga", "virtio": "virtio-vga", "bochs": "bochs-display",
}  # fmt: skip
_VIDEO_RAM: Final = {"vga": "vgamem_mb={0}", "vmvga": "vgamem_mb={0}", "qxl": "vgamem_mb={0},vram_size_mb={1}", "bochs": "vgamem={0}M"}
"""For the cards that have memory of their own. qxl needs as much again for what it draws with."""
_SOUND_CARDS: Final = {"sb16": "sb16", "es1370": "ES1370", "ac97": "AC97", "usb": "usb-audio,bus=usb0.0"}
_HDA: Final = {"ich6": "intel-hda", "ich9": "ich9-intel-hda"}
_HYPERV: Final = (
    "hv_relaxed=on", "hv_spinlocks=0x1fff", "hv_vapic=on", "hv_vpindex=on", "hv_runtime=on", "hv_synic=on", "hv_reset=on", "hv_frequencies=on",
    "hv_tlbflush=on", "hv_ipi=on", "hv_time=on",
)  # fmt: skip
"""What Nova tells Windows of."""


def choose_accelerator(cpuinfo: str, *, kvm_usable: bool) -> str:
    """Return kvm or tcg. In a virtual machine KVM is nested, which is not trusted unless it is asked for."""
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return "kvm" if kvm_usable and "hypervisor" not in flags.split() else "tcg"


def command_line(machine: Machine) -> list[str]:
    """Return the words of the command. Raises Unsupported for a TPM without a directory, InvalidInput for a socket's path that is too long."""
    return [
        _BINARIES[machine.architecture],
        *("-name", f"guest={_escaped(machine.name)}"),
        *("-uuid", machine.uuid),
        *("-machine", _machine(machine)),
        *("-accel", machine.surroundings.accelerator),
        *("-cpu", _cpu(machine)),
        *("-smp", _smp(machine)),
        *_memory(machine),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none", "-serial", "mon:stdio"),
        *("-serial", "pty") * (machine.serial_ports - 1),
        *("-boot", _joined("strict=on", _switch("menu", machine.boot_menu))),
        *(("-rtc", "base=localtime") if machine.localtime else ()),
        *_monitor(machine),
        *_firmware(machine),
        *_kernel(machine),
        *_iommu(machine),
        *_disks(machine),
        *_network(machine),
        *_devices(machine),
        *_agent(machine),
        *_tpm(machine),
    ]


def tpm_command(tpm: Tpm) -> list[str]:
    """Return the words of the command that starts the TPM's emulator in the background: it ends with QEMU. Raises Unsupported, InvalidInput."""
    socket = _tpm_socket(tpm)
    version = ("--tpm2",) if tpm.version == "2.0" else ()
    return ["swtpm", "socket", *version, "--tpmstate", f"dir={tpm.state}", "--ctrl", f"type=unixio,path={socket}", "--terminate", "--daemon"]


def _machine(machine: Machine) -> str:
    return _joined(
        machine.type,
        _switch("hpet", machine.hpet),
        "smm=on" if machine.firmware is not None and machine.firmware.secure else None,
        "kernel-irqchip=split" if _has_split_irqchip(machine) else None,
        "pcspk-audiodev=sound0" if machine.sound == "pcspk" else None,
        "memory-backend=ram0" if machine.memory.page is not None and not machine.processor.nodes else None,
    )


def _has_split_irqchip(machine: Machine) -> bool:
    """Tell whether KVM leaves the IOAPIC to QEMU, which remaps interrupts there."""
    return machine.iommu == "intel" and machine.surroundings.accelerator == "kvm"


def _cpu(machine: Machine) -> str:
    processor = machine.processor
    is_kvm = machine.surroundings.accelerator == "kvm"
    return _joined(
        "host" if is_kvm else "max",
        _switch("pmu", processor.pmu),
        "kvm=off" if is_kvm and processor.hide_hypervisor else None,
        "host-phys-bits=on" if is_kvm and processor.address_mode == "passthrough" else None,
        f"phys-bits={processor.address_bits}" if processor.address_bits is not None else None,
        *(_HYPERV if machine.hyperv else ()),
        "hv_vendor_id=1234567890ab" if machine.hyperv and processor.hide_hypervisor else None,  # as Nova: drivers look for Microsoft's
    )


def _smp(machine: Machine) -> str:
    processor = machine.processor
    return f"{processor.vcpus},sockets={processor.sockets},cores={processor.cores},threads={processor.threads}"


def _memory(machine: Machine) -> Iterator[str]:
    yield from ("-m", str(machine.memory.ram))
    if machine.memory.locked:
        yield from ("-overcommit", "mem-lock=on")
    nodes = machine.processor.nodes
    if not nodes and machine.memory.page is not None:
        yield from ("-object", _backend(machine, "ram0", machine.memory.ram))
    for number, node in enumerate(nodes):
        yield from ("-object", _backend(machine, f"ram{number}", node.ram))
        vcpus = "".join(f",cpus={vcpu}" for vcpu in node.vcpus)
        yield from ("-numa", f"node,nodeid={number}{vcpus},memdev=ram{number}")


def _backend(machine: Machine, name: str, ram: int) -> str:
    page = machine.memory.page
    if page is None:
        return f"memory-backend-ram,id={name},size={ram}M"
    return _joined("memory-backend-memfd", f"id={name},size={ram}M,hugetlb=on", f"hugetlbsize={page}K" if page else None, "prealloc=on")


def _monitor(machine: Machine) -> Iterator[str]:
    if machine.surroundings.qmp_socket is not None:
        yield from ("-qmp", f"unix:{_escaped(_socket(str(machine.surroundings.qmp_socket), '--qmp'))},server=on,wait=off")


def _firmware(machine: Machine) -> Iterator[str]:
    firmware = machine.firmware
    if firmware is None:
        return
    if firmware.secure:  # only code in system management mode may write variables: else the guest's kernel could enrol keys of its own
        yield from ("-global", "driver=cfi.pflash01,property=secure,value=on")
    yield from ("-drive", f"file={_escaped(str(firmware.code))},format=raw,if=pflash,unit=0,readonly=on")
    if firmware.variables is not None:
        yield from ("-drive", f"file={_escaped(str(firmware.variables))},format=raw,if=pflash,unit=1")


def _kernel(machine: Machine) -> Iterator[str]:
    if machine.kernel is None:
        return
    yield from ("-kernel", str(machine.kernel.kernel))
    if machine.kernel.ramdisk is not None:
        yield from ("-initrd", str(machine.kernel.ramdisk))
    yield from ("-append", machine.kernel.command_line)


def _iommu(machine: Machine) -> Iterator[str]:
    """An IOMMU has to be there before the devices behind it."""
    if machine.iommu == "intel":
        eim = "eim=on" if _has_split_irqchip(machine) else None
        yield from ("-device", _joined("intel-iommu,intremap=on,caching-mode=on,device-iotlb=on,aw-bits=48", eim))
    elif machine.iommu == "virtio":
        yield from ("-device", "virtio-iommu-pci")


def _disks(machine: Machine) -> Iterator[str]:
    if machine.usb_model is not None:
        yield from ("-device", f"{_USB_CONTROLLERS[machine.usb_model]},id=usb0")
    if "scsi" in machine.buses:
        packed = "packed=on" if machine.packed and machine.scsi_model == "virtio-scsi" else None
        yield from ("-device", _joined(f"{_SCSI_CONTROLLERS[machine.scsi_model]},id=scsi0", packed))
    if "sata" in machine.buses:
        yield from ("-device", "ich9-ahci,id=sata0")
    for disk in machine.disks:
        yield from ("-drive", _drive(disk))
        yield from ("-device", _disk_device(disk, packed=machine.packed))


def _drive(disk: Disk) -> str:
    # A format is always named: the bytes are the guest's, and QEMU would believe what they look like. So is a backing file: who owns
    # the disk may write any name into its header. cache=none because the host keeps these bytes already; aio=threads because with
    # native a read that waits for the store, and a write that makes a sparse file grow, stops the whole guest; and a guest whose
    # store is down for long is stopped, to be continued from the monitor, and sees no I/O error.
    return _joined(
        f"file={_escaped(str(disk.path))},format={disk.format},if=none,id=drive-{disk.name},cache=none,aio=threads,werror=stop,rerror=stop",
        f"backing.driver=raw,backing.file.driver=file,backing.file.filename={_escaped(str(disk.backing))}" if disk.backing is not None else None,
        "discard=unmap" if disk.format == "qcow2" else None,
        "media=cdrom" if disk.is_cdrom else None,
        "readonly=on" if disk.is_cdrom or disk.is_readonly else None,
    )


def _disk_device(disk: Disk, *, packed: bool) -> str:
    kind = "cd" if disk.is_cdrom else "hd"
    device = {
        "virtio": "virtio-blk-pci",
        "scsi": f"scsi-{kind},bus=scsi0.0",
        "sata": f"ide-{kind},bus=sata0.{disk.position}",
        "ide": f"ide-{kind},bus=ide.{disk.position // 2},unit={disk.position % 2}",
        "usb": "usb-storage,bus=usb0.0",
    }[disk.bus]
    boot = f"bootindex={disk.boot}" if disk.boot is not None else None
    return _joined(device, f"drive=drive-{disk.name},id={disk.name}", boot, "packed=on" if packed and disk.bus == "virtio" else None)


def _network(machine: Machine) -> Iterator[str]:
    network = machine.network
    model = "virtio-net-pci" if network.model == "virtio" else network.model
    is_packed = machine.packed and network.model == "virtio"
    yield from ("-netdev", "user,id=net0")
    yield from ("-device", _joined(f"{model},netdev=net0,mac={network.address}", "packed=on" if is_packed else None))


def _devices(machine: Machine) -> Iterator[str]:
    yield from ("-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0")
    video = machine.video
    if video is not None:
        ram = _VIDEO_RAM[video.model].format(video.ram, 2 * video.ram) if video.ram is not None and video.model in _VIDEO_RAM else None
        yield from ("-device", _joined(_VIDEO_CARDS[video.model], ram))
    if machine.watchdog is not None:
        yield from ("-device", "i6300esb", "-action", f"watchdog={machine.watchdog}")
    for kind in ("keyboard", "tablet") if machine.has_keyboard else ("tablet",):
        if machine.input_bus == "usb":
            yield from ("-device", f"usb-{'kbd' if kind == 'keyboard' else kind},bus=usb0.0")
        elif machine.input_bus == "virtio":
            yield from ("-device", f"virtio-{kind}-pci")
    yield from _sound(machine)


def _sound(machine: Machine) -> Iterator[str]:
    """Say the sound card; what it plays is heard nowhere."""
    if machine.sound is None:
        return
    yield from ("-audiodev", "none,id=sound0")
    if machine.sound in _HDA:
        yield from ("-device", _HDA[machine.sound], "-device", "hda-duplex,audiodev=sound0")
    elif machine.sound in _SOUND_CARDS:
        yield from ("-device", f"{_SOUND_CARDS[machine.sound]},audiodev=sound0")


def _agent(machine: Machine) -> Iterator[str]:
    if not machine.has_agent:
        return
    path = machine.surroundings.agent_socket
    if path is None:
        raise InvalidInput("the image's hw_qemu_guest_agent is on, and there is no directory for its socket: name one with --agent-socket PATH")
    yield from ("-chardev", f"socket,id=agent0,path={_escaped(_socket(str(path), '--agent-socket'))},server=on,wait=off")
    yield from ("-device", "virtio-serial-pci,id=serial0", "-device", "virtserialport,bus=serial0.0,chardev=agent0,name=org.qemu.guest_agent.0")


def _tpm(machine: Machine) -> Iterator[str]:
    if machine.tpm is None:
        return
    yield from ("-chardev", f"socket,id=tpm0-socket,path={_escaped(_tpm_socket(machine.tpm))}")
    yield from ("-tpmdev", "emulator,id=tpm0,chardev=tpm0-socket", "-device", f"{machine.tpm.model},tpmdev=tpm0")


def _tpm_socket(tpm: Tpm) -> str:
    if tpm.state is None:
        raise Unsupported(
            f"the image's hw_tpm_version is {tpm.version}, and a TPM's state is kept beside the instance: name a directory for it with --tpm-state,"
            " or use instance libvirt"
        )
    if "," in str(tpm.state):
        raise InvalidInput(f"--tpm-state '{tpm.state}': swtpm takes no path with a comma: name another directory")
    return _socket(f"{tpm.state}/socket", "--tpm-state")


def _socket(path: str, option: str) -> str:
    if len(path.encode(errors="surrogateescape")) > SOCKET_LIMIT:
        raise InvalidInput(f"{option} '{path}': a socket's path has at most {SOCKET_LIMIT} bytes: choose a shorter one")
    return path


def _switch(option: str, value: bool | None) -> str | None:
    """Return `option=on` or `option=off`; None if there is nothing to say."""
    return None if value is None else f"{option}={'on' if value else 'off'}"


def _joined(*options: str | None) -> str:
    return ",".join(option for option in options if option)


def _escaped(text: str) -> str:
    """Return text as a value among QEMU's options, where a comma stands for itself when it is doubled."""
    return text.replace(",", ",,")

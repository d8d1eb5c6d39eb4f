"""This module is the model of a virtual machine: what is to run, and the hardware that it gets. It has no logic and asks nothing.

A `Guest` is what an instance says of itself. `plan.plan_machine` makes a `Machine` of it, in which every wish is checked and every
default chosen; `cli.qemu` and `cli.libvirt` only say the same Machine in two languages.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True)
class GuestDisk:
    """A disk as user.imagefs.disks has it: `kind` is root, ephemeral, swap, config, nvram or volume."""

    name: str
    path: Path
    """Where its bytes are, absolute: a link of the instance's directory is resolved."""
    kind: str = "root"
    format: str = "raw"
    device: str = "disk"
    """`disk` or `cdrom`."""
    backing: Path | None = None
    """The raw file that a qcow2 stands on."""


@dataclasses.dataclass(frozen=True, slots=True)
class Guest:
    """What is to run: `ram` in MiB, `disks` in the order in which the guest sees them."""

    name: str
    uuid: str
    vcpus: int
    ram: int
    disks: tuple[GuestDisk, ...]
    attributes: Mapping[str, str]
    """The image's attributes and properties, as its extended attributes have them."""
    images: Path
    """The mount's images/, where a kernel and a ramdisk are."""
    firmware_code: Path | None = None
    """user.firmware_code: the UEFI that the instance was made for."""
    secure_boot: bool = False
    """user.secure_boot: whether that firmware and the variables enforce secure boot."""


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """What is asked for when a guest is started, and is no property of it."""

    accelerator: str
    """`kvm` or `tcg`."""
    agent_socket: Path | None = None
    """Where the guest agent's socket is to be, if the guest has an agent; None where the runner of the guest chooses."""
    qmp_socket: Path | None = None
    tpm_state: Path | None = None
    """The directory of the TPM's state, if the guest has a TPM."""


@dataclasses.dataclass(frozen=True, slots=True)
class Firmware:
    """UEFI. `variables` is the instance's own variable store, None for a stateless firmware; `secure` protects it from the guest's kernel."""

    code: Path
    variables: Path | None
    secure: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A NUMA node: its vCPUs, and `ram` in MiB."""

    vcpus: tuple[int, ...]
    ram: int


@dataclasses.dataclass(frozen=True, slots=True)
class Processor:
    """The vCPUs; their number is sockets * cores * threads. None means what the accelerator gives by itself."""

    sockets: int
    cores: int
    threads: int
    pmu: bool | None = None
    hide_hypervisor: bool = False
    address_mode: str | None = None
    """`passthrough` or `emulate`: where the width of physical addresses comes from."""
    address_bits: int | None = None
    nodes: tuple[Node, ...] = ()

    @property
    def vcpus(self) -> int:
        """The number of vCPUs."""
        return self.sockets * self.cores * self.threads


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """The guest's memory: `ram` in MiB; `page` in KiB, 0 for huge pages of the host's default size, None for ordinary ones."""

    ram: int
    locked: bool = False
    page: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that is started without a boot loader."""

    kernel: Path
    ramdisk: Path | None
    command_line: str


@dataclasses.dataclass(frozen=True, slots=True)
class Disk:
    """A disk in its place: `position` counts on its bus, `boot` is its turn to be booted from (from 1), None for never."""

    name: str
    path: Path
    format: str
    backing: Path | None
    bus: str
    position: int
    boot: int | None
    is_cdrom: bool
    is_readonly: bool = False
    """For disks; what is a CD is so anyway."""


@dataclasses.dataclass(frozen=True, slots=True)
class Network:
    """The network card. `queues` is for a host network that has as many; QEMU's own user-mode network has one."""

    model: str
    address: str
    """The MAC address."""
    queues: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Video:
    """The video card; `ram` in MiB, None for the card's default."""

    model: str
    ram: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Tpm:
    """An emulated TPM: `version` is 1.2 or 2.0, `model` tpm-tis or tpm-crb, `state` the directory of its state if the guest's runner is told."""

    version: str
    model: str
    state: Path | None


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """A virtual machine with every wish checked. The fields without a type's own words are None or empty where there is no such thing."""

    name: str
    uuid: str
    surroundings: Surroundings
    architecture: str
    type: str
    """QEMU's machine type: pc, q35 or one of their versions."""
    firmware: Firmware | None
    processor: Processor
    memory: Memory
    localtime: bool
    hpet: bool | None
    hyperv: bool
    """Whether the guest is told of a Hyper-V, which makes Windows faster under KVM."""
    boot_menu: bool | None
    kernel: Kernel | None
    disks: tuple[Disk, ...]
    scsi_model: str
    network: Network
    packed: bool
    """Whether virtio devices use packed rings."""
    video: Video | None
    serial_ports: int
    watchdog: str | None
    """What the watchdog does when it fires."""
    has_agent: bool
    tpm: Tpm | None
    usb_model: str | None
    input_bus: str | None
    """`usb` or `virtio`: where the tablet is, and with `has_keyboard` the keyboard."""
    has_keyboard: bool
    sound: str | None
    iommu: str | None

    @property
    def is_q35(self) -> bool:
        """Whether the machine is a Q35, with PCI Express and SATA, and not an i440FX with PCI and IDE."""
        return "q35" in self.type

    @property
    def buses(self) -> frozenset[str]:
        """The buses that have disks."""
        return frozenset(disk.bus for disk in self.disks)

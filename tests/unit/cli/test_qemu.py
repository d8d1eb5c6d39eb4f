"""The QEMU command line: what each property does to it, and what is refused."""

import dataclasses
from pathlib import Path

import pytest

from imagefs.cli.machine.model import Guest, Surroundings
from imagefs.cli.machine.plan import plan_machine
from imagefs.cli.qemu import choose_accelerator, command_line, tpm_command
from imagefs.errors import InvalidInput, Unsupported
from tests.support.guests import CODE, UUID, config_drive, direct, guest, nvram


def words(attributes: dict[str, str] | None = None, accelerator: str = "tcg", disks: tuple[str, ...] = ("vda",)) -> list[str]:
    return command_line(plan_machine(guest(disks, **(attributes or {})), Surroundings(accelerator, Path("/run/agent"))))


def values(found: list[str], option: str) -> list[str]:
    return [found[index + 1] for index, word in enumerate(found) if word == option]


def test_an_image_without_properties_gets_novas_defaults() -> None:
    """A pc with virtio disk and network, the flavor's sizes, and the serial console on the terminal."""
    found = words()
    assert found[0] == "qemu-system-x86_64"
    assert [values(found, option) for option in ("-name", "-uuid", "-machine", "-accel", "-cpu", "-smp", "-m")] == [
        ["guest=web1"], [UUID], ["pc"], ["tcg"], ["max"], ["2,sockets=2,cores=1,threads=1"], ["1024"],
    ]  # fmt: skip
    assert values(found, "-drive") == ["file=/mnt/instances/web1/vda,format=raw,if=none,id=drive-vda,cache=none,aio=threads,werror=stop,rerror=stop"]
    assert values(found, "-serial") == ["mon:stdio"]
    devices = values(found, "-device")
    assert devices[0] == "virtio-blk-pci,drive=drive-vda,id=vda,bootindex=1"
    assert devices[1].startswith("virtio-net-pci,netdev=net0,mac=fa:16:3e:")
    assert devices[2:] == ["virtio-rng-pci,rng=rng0", "VGA"]


def test_every_disk_has_its_format_named() -> None:
    """A guest may write any header into its disk: QEMU must never look."""
    assert all("format=raw" in drive for drive in values(words(disks=("vda", "vdb", "vdc")), "-drive"))


def test_a_network_card_keeps_its_address() -> None:
    """The same instance always has the same one, and another instance another one."""
    first = values(words(), "-device")[1]
    assert first == values(words(), "-device")[1]
    other = dataclasses.replace(guest(), uuid=UUID.replace("9", "8"))
    assert first not in values(command_line(plan_machine(other, Surroundings("tcg"))), "-device")


@pytest.mark.parametrize(
    ("bus", "devices"),
    [
        ("virtio", ["virtio-blk-pci,drive=drive-vda,id=vda,bootindex=1", "virtio-blk-pci,drive=drive-vdb,id=vdb,bootindex=2"]),
        (
            "scsi",
            [
                "lsi53c895a,id=scsi0",
                "scsi-hd,bus=scsi0.0,drive=drive-vda,id=vda,bootindex=1",
                "scsi-hd,bus=scsi0.0,drive=drive-vdb,id=vdb,bootindex=2",
            ],
        ),
        (
            "sata",
            ["ich9-ahci,id=sata0", "ide-hd,bus=sata0.0,drive=drive-vda,id=vda,bootindex=1", "ide-hd,bus=sata0.1,drive=drive-vdb,id=vdb,bootindex=2"],
        ),
        ("ide", ["ide-hd,bus=ide.0,unit=0,drive=drive-vda,id=vda,bootindex=1", "ide-hd,bus=ide.0,unit=1,drive=drive-vdb,id=vdb,bootindex=2"]),
        (
            "usb",
            [
                "qemu-xhci,id=usb0",
                "usb-storage,bus=usb0.0,drive=drive-vda,id=vda,bootindex=1",
                "usb-storage,bus=usb0.0,drive=drive-vdb,id=vdb,bootindex=2",
            ],
        ),
    ],
)
def test_hw_disk_bus_chooses_controller_and_disks(bus: str, devices: list[str]) -> None:
    """Each bus has its controller once, and each disk its place on it."""
    assert values(words({"hw_disk_bus": bus}, disks=("vda", "vdb")), "-device")[: len(devices)] == devices


def test_an_iso_is_a_cdrom() -> None:
    """As in Nova: read-only, on hw_cdrom_bus, by default ide on a pc and sata on a q35."""
    found = words({"disk_format": "iso"}, disks=("vda", "vdb"))
    assert values(found, "-drive")[0].endswith(",media=cdrom,readonly=on")
    assert "readonly" not in values(found, "-drive")[1]
    assert values(found, "-device")[0] == "ide-cd,bus=ide.0,unit=0,drive=drive-vda,id=vda,bootindex=1"
    assert "ide-cd,bus=sata0.0,drive=drive-vda,id=vda,bootindex=1" in values(words({"disk_format": "iso", "hw_machine_type": "q35"}), "-device")


@pytest.mark.parametrize(
    ("attributes", "option", "expected"),
    [
        ({"hw_scsi_model": "virtio-scsi", "hw_disk_bus": "scsi"}, "-device", "virtio-scsi-pci,id=scsi0"),
        ({"hw_vif_model": "e1000"}, "-device", "e1000,netdev=net0"),
        ({"hw_virtio_packed_ring": "yes"}, "-device", "virtio-blk-pci,drive=drive-vda,id=vda,bootindex=1,packed=on"),
        ({"hw_video_model": "qxl"}, "-device", "qxl-vga"),
        ({"hw_watchdog_action": "reset"}, "-action", "watchdog=reset"),
        ({"hw_pointer_model": "usbtablet"}, "-device", "usb-tablet,bus=usb0.0"),
        ({"hw_boot_menu": "True"}, "-boot", "strict=on,menu=on"),
        ({"hw_time_hpet": "false"}, "-machine", "pc,hpet=off"),
        ({"hw_machine_type": "pc-q35-7.2"}, "-machine", "pc-q35-7.2"),
        ({"hw_pmu": "off"}, "-cpu", "max,pmu=off"),
        ({"os_type": "windows"}, "-rtc", "base=localtime"),
        ({"kernel_id": UUID}, "-kernel", f"/mnt/images/{UUID}"),
        ({"kernel_id": UUID}, "-append", "root=/dev/vda console=tty0 console=ttyS0"),
        ({"kernel_id": UUID, "ramdisk_id": UUID, "os_command_line": "quiet"}, "-append", "quiet"),
        ({"kernel_id": UUID, "ramdisk_id": UUID}, "-initrd", f"/mnt/images/{UUID}"),
    ],
)
def test_properties_do_what_they_do_in_nova(attributes: dict[str, str], option: str, expected: str) -> None:
    """One property, one option."""
    assert any(value.startswith(expected) for value in values(words(attributes), option))


def test_some_properties_matter_with_kvm_only() -> None:
    """The host's CPU is passed through, and KVM hidden on request."""
    assert values(words(accelerator="kvm"), "-cpu") == ["host"]
    assert values(words({"img_hide_hypervisor_id": "yes"}, accelerator="kvm"), "-cpu") == ["host,kvm=off"]
    assert values(words({"img_hide_hypervisor_id": "yes"}, accelerator="tcg"), "-cpu") == ["max"]


def test_the_architecture_chooses_the_binary() -> None:
    """Also by its old name."""
    assert words({"hw_architecture": "i686"})[0] == words({"architecture": "i686"})[0] == "qemu-system-i386"


def test_no_video_card_and_no_command_line_without_a_kernel() -> None:
    """hw_video_model none gives none; os_command_line is honoured only with kernel_id."""
    assert "VGA" not in words({"hw_video_model": "none"})
    assert "-append" not in words({"os_command_line": "quiet"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hw_disk_bus", "xen"), ("hw_disk_bus", "fdc"), ("hw_disk_bus", "nvme"), ("hw_vif_model", "lan9118"), ("hw_video_model", "voodoo"),
        ("hw_machine_type", "virt"), ("hw_machine_type", "pc,kernel=/etc/shadow"), ("hw_architecture", "aarch64"), ("hw_firmware_type", "coreboot"),
        ("os_secure_boot", "maybe"), ("hw_boot_menu", "perhaps"), ("hw_watchdog_action", "explode"), ("hw_vm_mode", "xen"), ("img_hv_type", "vmware"),
        ("hw_rng_model", "egd"), ("kernel_id", "../../etc/shadow"), ("hw_pointer_model", "mouse"),
    ],
)  # fmt: skip
def test_values_that_nova_or_qemu_would_refuse_are_refused(name: str, value: str) -> None:
    """The line names the property and its value; nothing of an image gets into QEMU's options unchecked."""
    with pytest.raises(InvalidInput, match=f"the image's {name} is "):
        words({name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("hw_firmware_type", "uefi"), ("os_secure_boot", "required"), ("hw_tpm_version", "2.0"), ("hw_mem_encryption", "true")]
)
def test_what_cannot_be_met_yet_is_refused(name: str, value: str) -> None:
    """A guest that asks for firmware, a TPM or encryption does not silently run without."""
    with pytest.raises(Unsupported, match=name):
        words({name: value})


def test_impossible_combinations_are_refused() -> None:
    """No IDE on a q35, a controller that QEMU has not, more disks than a bus takes."""
    with pytest.raises(InvalidInput, match="q35 machine has no IDE"):
        words({"hw_machine_type": "q35", "hw_disk_bus": "ide"})
    with pytest.raises(InvalidInput, match="hw_scsi_model"):
        words({"hw_disk_bus": "scsi", "hw_scsi_model": "buslogic"})
    with pytest.raises(InvalidInput, match="more disks than fit the ide bus"):
        words({"hw_disk_bus": "ide"}, disks=("vda", "vdb", "vdc", "vdd", "vde"))


def test_commas_do_not_end_an_option() -> None:
    """A name with a comma stays one value."""
    found = command_line(plan_machine(guest(name="a,readonly=on"), Surroundings("tcg")))
    assert values(found, "-name") == ["guest=a,,readonly=on"]
    assert values(found, "-drive")[0].startswith("file=/mnt/instances/a,,readonly=on/vda,format=raw,")


@pytest.mark.parametrize(
    ("cpuinfo", "usable", "accelerator"),
    [
        ("processor: 0\nflags\t\t: fpu vmx\n", True, "kvm"),
        ("processor: 0\nflags\t\t: fpu vmx hypervisor lahf\n", True, "tcg"),
        ("flags: fpu", False, "tcg"),
        ("", True, "kvm"),
    ],
)
def test_kvm_is_used_where_it_is_not_nested(cpuinfo: str, usable: bool, accelerator: str) -> None:
    """KVM in a virtual machine has to be asked for."""
    assert choose_accelerator(cpuinfo, kvm_usable=usable) == accelerator


def command(plain: Guest, surroundings: Surroundings | None = None) -> list[str]:
    return command_line(plan_machine(plain, surroundings or Surroundings("tcg")))


@pytest.mark.parametrize(
    ("attributes", "accelerator", "option", "expected"),
    [
        ({"os_type": "windows"}, "kvm", "-cpu", "host,hv_relaxed=on,hv_spinlocks=0x1fff,hv_vapic=on"),
        ({"os_type": "windows", "img_hide_hypervisor_id": "yes"}, "kvm", "-cpu", "host,kvm=off,hv_relaxed=on"),
        ({"hw_maxphysaddr_mode": "passthrough"}, "kvm", "-cpu", "host,host-phys-bits=on"),
        ({"hw_maxphysaddr_mode": "emulate", "hw_maxphysaddr_bits": "42"}, "kvm", "-cpu", "host,phys-bits=42"),
        ({"hw_cpu_cores": "2"}, "tcg", "-smp", "2,sockets=1,cores=2,threads=1"),
        ({"hw_mem_page_size": "2048"}, "tcg", "-object", "memory-backend-memfd,id=ram0,size=1024M,hugetlb=on,hugetlbsize=2048K,prealloc=on"),
        ({"hw_mem_page_size": "large"}, "tcg", "-machine", "pc,memory-backend=ram0"),
        ({"hw_mem_page_size": "large"}, "tcg", "-object", "memory-backend-memfd,id=ram0,size=1024M,hugetlb=on,prealloc=on"),
        ({"hw_mem_page_size": "any", "hw_locked_memory": "yes"}, "tcg", "-overcommit", "mem-lock=on"),
        ({"hw_numa_nodes": "2"}, "tcg", "-numa", "node,nodeid=0,cpus=0,memdev=ram0"),
        ({"hw_numa_nodes": "2"}, "tcg", "-object", "memory-backend-ram,id=ram1,size=512M"),
        ({"hw_viommu_model": "intel", "hw_machine_type": "q35"}, "kvm", "-machine", "q35,kernel-irqchip=split"),
        (
            {"hw_viommu_model": "intel", "hw_machine_type": "q35"},
            "kvm",
            "-device",
            "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on,aw-bits=48,eim=on",
        ),
        ({"hw_viommu_model": "auto", "hw_machine_type": "q35"}, "tcg", "-device", "virtio-iommu-pci"),
        ({"hw_serial_port_count": "2"}, "tcg", "-serial", "pty"),
        ({"hw_input_bus": "virtio"}, "tcg", "-device", "virtio-keyboard-pci"),
        ({"hw_input_bus": "usb", "hw_usb_model": "nec-xhci"}, "tcg", "-device", "nec-usb-xhci,id=usb0"),
        ({"hw_input_bus": "usb"}, "tcg", "-device", "usb-kbd,bus=usb0.0"),
        ({"hw_sound_model": "ich6"}, "tcg", "-device", "hda-duplex,audiodev=sound0"),
        ({"hw_sound_model": "pcspk"}, "tcg", "-machine", "pc,pcspk-audiodev=sound0"),
        ({"hw_video_ram": "24"}, "tcg", "-device", "VGA,vgamem_mb=32"),
        ({"hw_video_ram": "32", "hw_video_model": "qxl"}, "tcg", "-device", "qxl-vga,vgamem_mb=32,vram_size_mb=64"),
        ({"hw_qemu_guest_agent": "yes"}, "tcg", "-chardev", "socket,id=agent0,path=/run/agent,server=on,wait=off"),
        ({"hw_qemu_guest_agent": "yes"}, "tcg", "-device", "virtserialport,bus=serial0.0,chardev=agent0,name=org.qemu.guest_agent.0"),
        (
            {"hw_virtio_packed_ring": "1", "hw_disk_bus": "scsi", "hw_scsi_model": "virtio-scsi"},
            "tcg",
            "-device",
            "virtio-scsi-pci,id=scsi0,packed=on",
        ),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_more_properties_do_what_they_do_in_nova(attributes: dict[str, str], accelerator: str, option: str, expected: str) -> None:
    """One property, one option."""
    assert any(value.startswith(expected) for value in values(words(attributes, accelerator), option))


def test_an_iommu_comes_before_all_other_devices() -> None:
    """QEMU puts only those behind it that come later."""
    assert values(words({"hw_viommu_model": "intel", "hw_machine_type": "q35", "hw_disk_bus": "scsi"}), "-device")[0].startswith("intel-iommu,")


def test_uefi_is_two_flash_devices() -> None:
    """Code that nobody writes, and the instance's variables."""
    drives = values(command(nvram(guest(hw_firmware_type="uefi"))), "-drive")
    assert drives[:2] == [f"file={CODE},format=raw,if=pflash,unit=0,readonly=on", "file=/mnt/instances/web1/nvram.fd,format=raw,if=pflash,unit=1"]
    secure = command(nvram(guest(hw_firmware_type="uefi"), secure_boot=True))
    assert values(secure, "-machine") == ["q35,smm=on"]
    assert values(secure, "-global") == ["driver=cfi.pflash01,property=secure,value=on"]
    stateless = command(nvram(guest(hw_firmware_type="uefi", hw_firmware_stateless="1")))
    assert [drive for drive in values(stateless, "-drive") if "pflash" in drive] == drives[:1]


def test_a_direct_disk_is_a_qcow2_whose_backing_file_is_named() -> None:
    """Neither its own nor its backing file's format is looked at."""
    assert values(command(direct(guest())), "-drive") == [
        "file=/state/direct/u/vda.qcow2,format=qcow2,if=none,id=drive-vda,cache=none,aio=threads,werror=stop,rerror=stop,"
        "backing.driver=raw,backing.file.driver=file,backing.file.filename=/mnt/raw/an-image,discard=unmap"
    ]


def test_a_config_drive_is_a_cdrom_that_is_not_booted() -> None:
    """Or a disk, as user.config_drive says."""
    assert values(command(config_drive(guest())), "-device")[1] == "ide-cd,bus=ide.0,unit=0,drive=drive-vdz,id=vdz"
    disk = command(config_drive(guest(), "disk"))
    assert values(disk, "-device")[1] == "virtio-blk-pci,drive=drive-vdz,id=vdz"
    assert values(disk, "-drive")[1].endswith(",readonly=on")


def test_a_control_socket() -> None:
    """It waits for nobody."""
    assert values(command(guest(), Surroundings("tcg", qmp_socket=Path("/run/a,b"))), "-qmp") == ["unix:/run/a,,b,server=on,wait=off"]


def test_an_agent_needs_a_place_for_its_socket() -> None:
    """The line says how to name one; paths that no socket can have are refused."""
    with pytest.raises(InvalidInput, match="--agent-socket PATH"):
        command(guest(hw_qemu_guest_agent="yes"))
    with pytest.raises(InvalidInput, match="at most 107 bytes"):
        command(guest(hw_qemu_guest_agent="yes"), Surroundings("tcg", Path("/" + "x" * 107)))
    assert command(guest(hw_qemu_guest_agent="yes"), Surroundings("tcg", Path("/" + "x" * 106)))


def test_a_tpm_needs_a_place_for_its_state() -> None:
    """Without one it is refused; with one the emulator's command goes before QEMU's."""
    plain = guest(hw_tpm_version="2.0", hw_tpm_model="tpm-crb")
    with pytest.raises(Unsupported, match="--tpm-state"):
        command(plain)
    machine = plan_machine(plain, Surroundings("tcg", tpm_state=Path("/tpm")))
    assert machine.tpm is not None
    assert tpm_command(machine.tpm) == [
        "swtpm", "socket", "--tpm2", "--tpmstate", "dir=/tpm", "--ctrl", "type=unixio,path=/tpm/socket", "--terminate", "--daemon",
    ]  # fmt: skip
    found = command_line(machine)
    assert values(found, "-tpmdev") == ["emulator,id=tpm0,chardev=tpm0-socket"]
    assert values(found, "-chardev") == ["socket,id=tpm0-socket,path=/tpm/socket"]
    assert values(found, "-device")[-1] == "tpm-crb,tpmdev=tpm0"
    with pytest.raises(InvalidInput, match="comma"):
        command(plain, Surroundings("tcg", tpm_state=Path("/a,b")))

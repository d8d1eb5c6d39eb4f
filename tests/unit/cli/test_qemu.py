"""The QEMU command line: what each property does to it, and what is refused."""

from pathlib import Path

import pytest

from imagefs.cli.qemu import Guest, choose_accelerator, command_line
from imagefs.errors import InvalidInput, Unsupported

UUID = "9f0a2f5c-6f2e-4c0b-9d43-8a1d6c7b9e21"


def guest(disks: tuple[str, ...] = ("vda",), /, name: str = "web1", **attributes: str) -> Guest:
    return Guest(name, UUID, 2, 1024, {disk: Path(f"/mnt/instances/{name}/{disk}") for disk in disks}, attributes, Path("/mnt/images"))


def words(attributes: dict[str, str] | None = None, accelerator: str = "tcg", disks: tuple[str, ...] = ("vda",)) -> list[str]:
    return command_line(guest(disks, **(attributes or {})), accelerator)


def values(found: list[str], option: str) -> list[str]:
    return [found[index + 1] for index, word in enumerate(found) if word == option]


def test_an_image_without_properties_gets_novas_defaults() -> None:
    """A pc with virtio disk and network, the flavor's sizes, and the serial console on the terminal."""
    found = words()
    assert found[0] == "qemu-system-x86_64"
    assert [values(found, option) for option in ("-name", "-uuid", "-machine", "-accel", "-cpu", "-smp", "-m")] == [
        ["guest=web1"], [UUID], ["pc"], ["tcg"], ["max"], ["2"], ["1024"],
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
    other = Guest("web1", UUID.replace("9", "8"), 1, 1, {"vda": Path("/x")}, {}, Path("/i"))
    assert first not in values(command_line(other, "tcg"), "-device")


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
        ({"hw_pointer_model": "usbtablet"}, "-device", "usb-tablet,bus=input0.0"),
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
    found = command_line(guest(name="a,readonly=on"), "tcg")
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

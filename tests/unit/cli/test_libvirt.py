"""The domain XML says what the QEMU command line says."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from imagefs.cli.libvirt import domain_xml
from imagefs.cli.machine.model import Guest, GuestDisk, Surroundings
from imagefs.cli.machine.plan import plan_machine
from imagefs.errors import InvalidInput
from tests.support.guests import CODE, UUID, config_drive, direct, guest, nvram, with_disk


def domain(plain: Guest, accelerator: str = "tcg", network: str | None = None, console_log: str | None = None) -> ET.Element:
    return ET.fromstring(domain_xml(plan_machine(plain, Surroundings(accelerator)), network, console_log))


def one(element: ET.Element, path: str) -> dict[str, str]:
    found = element.findall(path)
    assert len(found) == 1, path
    return found[0].attrib


def test_a_plain_guest() -> None:
    """Name, uuid, sizes and one disk: raw, uncached, stopped at errors; no network, no labels, the console on a pty."""
    found = domain(guest())
    assert found.attrib == {"type": "qemu"}
    assert [found.findtext(name) for name in ("name", "uuid", "memory", "vcpu", "os/type")] == ["web1", UUID, "1024", "2", "hvm"]
    assert one(found, "os/type") == {"arch": "x86_64", "machine": "pc"}
    assert one(found, "devices/disk") == {"type": "file", "device": "disk"}
    driver = {"name": "qemu", "type": "raw", "cache": "none", "io": "threads", "error_policy": "stop", "rerror_policy": "stop"}
    assert one(found, "devices/disk/driver") == driver
    assert one(found, "devices/disk/source") == {"file": "/mnt/instances/web1/vda"}
    assert one(found, "devices/disk/target") == {"dev": "vda", "bus": "virtio"}
    assert one(found, "devices/disk/boot") == {"order": "1"}
    assert one(found, "devices/console") == one(found, "devices/serial") == {"type": "pty"}
    assert one(found, "devices/rng/backend") == {"model": "random"}
    assert one(found, "devices/memballoon") == {"model": "none"}
    assert one(found, "devices/controller") == {"type": "usb", "index": "0", "model": "none"}
    assert found.find("devices/interface") is None
    assert found.find("seclabel") is None
    assert domain(guest(), "kvm").attrib == {"type": "kvm"}


@pytest.mark.parametrize(
    ("attributes", "path", "expected"),
    [
        ({"hw_machine_type": "q35"}, "os/type", {"arch": "x86_64", "machine": "q35"}),
        ({"hw_architecture": "i686"}, "os/type", {"arch": "i686", "machine": "pc"}),
        ({"hw_boot_menu": "yes"}, "os/bootmenu", {"enable": "yes"}),
        ({"hw_time_hpet": "no"}, "clock/timer", {"name": "hpet", "present": "no"}),
        ({"os_type": "windows"}, "clock", {"offset": "localtime"}),
        ({"hw_pmu": "off"}, "features/pmu", {"state": "off"}),
        ({"hw_cpu_cores": "2"}, "cpu/topology", {"sockets": "1", "dies": "1", "cores": "2", "threads": "1"}),
        ({"hw_maxphysaddr_mode": "emulate", "hw_maxphysaddr_bits": "42"}, "cpu/maxphysaddr", {"mode": "emulate", "bits": "42"}),
        ({"hw_mem_page_size": "2048"}, "memoryBacking/hugepages/page", {"size": "2048", "unit": "KiB"}),
        ({"hw_mem_page_size": "any", "hw_locked_memory": "yes"}, "memoryBacking/locked", {}),
        ({"hw_video_model": "none"}, "devices/video/model", {"type": "none"}),
        ({"hw_video_ram": "32"}, "devices/video/model", {"type": "vga", "vram": "32768"}),
        ({"hw_video_ram": "32", "hw_video_model": "qxl"}, "devices/video/model", {"type": "qxl", "vram": "65536", "vgamem": "32768"}),
        ({"hw_video_ram": "32", "hw_video_model": "virtio"}, "devices/video/model", {"type": "virtio"}),
        ({"hw_watchdog_action": "reset"}, "devices/watchdog", {"model": "i6300esb", "action": "reset"}),
        ({"hw_pointer_model": "usbtablet"}, "devices/input", {"type": "tablet", "bus": "usb"}),
        ({"hw_pointer_model": "usbtablet"}, "devices/controller", {"type": "usb", "index": "0", "model": "qemu-xhci"}),
        ({"hw_qemu_guest_agent": "yes"}, "devices/channel/target", {"type": "virtio", "name": "org.qemu.guest_agent.0"}),
        ({"hw_sound_model": "ich9"}, "devices/sound", {"model": "ich9"}),
        ({"hw_sound_model": "ich9"}, "devices/audio", {"id": "1", "type": "none"}),
        ({"hw_viommu_model": "virtio", "hw_machine_type": "q35"}, "devices/iommu", {"model": "virtio"}),
        ({"hw_tpm_version": "2.0", "hw_tpm_model": "tpm-crb"}, "devices/tpm", {"model": "tpm-crb"}),
        ({"hw_tpm_version": "1.2"}, "devices/tpm/backend", {"type": "emulator", "version": "1.2"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_properties_have_their_elements(attributes: dict[str, str], path: str, expected: dict[str, str]) -> None:
    """One property, one element."""
    assert one(domain(guest(**attributes)), path) == expected


def test_secure_uefi() -> None:
    """The code is read-only flash in system management mode; the variables are the instance's file."""
    found = domain(nvram(guest(hw_firmware_type="uefi", os_secure_boot="required"), secure_boot=True))
    assert one(found, "os/loader") == {"readonly": "yes", "type": "pflash", "secure": "yes"}
    assert (found.findtext("os/loader"), found.findtext("os/nvram")) == (str(CODE), "/mnt/instances/web1/nvram.fd")
    assert one(found, "features/smm") == {"state": "on"}


def test_stateless_uefi() -> None:
    """No variables."""
    found = domain(nvram(guest(hw_firmware_type="uefi", hw_firmware_stateless="yes")))
    assert one(found, "os/loader") == {"readonly": "yes", "type": "pflash", "stateless": "yes"}
    assert found.find("os/nvram") is None


def test_disks_of_several_buses_have_names_and_places_of_their_own() -> None:
    """Guests' names are unique, and drives stand where QEMU's command line puts them."""
    found = domain(
        config_drive(guest(("vda", "vdb"), hw_disk_bus="scsi", hw_scsi_model="virtio-scsi", hw_cdrom_bus="sata", hw_virtio_packed_ring="1"))
    )
    disks = found.findall("devices/disk")
    assert [one(disk, "target") for disk in disks] == [
        {"dev": "sda", "bus": "scsi"}, {"dev": "sdb", "bus": "scsi"}, {"dev": "sdc", "bus": "sata"},
    ]  # fmt: skip
    assert [one(disk, "address")["unit"] for disk in disks] == ["0", "1", "0"]
    assert (disks[2].attrib["device"], disks[2].find("readonly") is not None, disks[2].find("boot")) == ("cdrom", True, None)
    assert one(found, "devices/controller[@type='scsi']") == {"type": "scsi", "index": "0", "model": "virtio-scsi"}
    assert one(found, "devices/controller[@type='scsi']/driver") == {"packed": "on"}


def test_a_config_drive_as_a_disk_is_read_only() -> None:
    """Its mode lets nobody write to it, and libvirt's guests are not root."""
    root, config = domain(config_drive(guest(), "disk")).findall("devices/disk")
    assert (config.attrib["device"], config.find("readonly") is not None, root.find("readonly")) == ("disk", True, None)


def test_ide_disks_are_two_on_a_bus() -> None:
    """As everywhere."""
    found = domain(guest(("vda", "vdb", "vdc"), hw_disk_bus="ide"))
    assert [(place.attrib["bus"], place.attrib["unit"]) for place in found.findall("devices/disk/address")] == [("0", "0"), ("0", "1"), ("1", "0")]


def test_a_direct_disk_names_its_backing_file() -> None:
    """Libvirt need not look into the header, where the disk's owner may have written any name."""
    disk = domain(direct(guest())).find("devices/disk")
    assert disk is not None
    assert (one(disk, "driver")["type"], one(disk, "driver")["discard"]) == ("qcow2", "unmap")
    assert (one(disk, "backingStore/format"), one(disk, "backingStore/source")) == ({"type": "raw"}, {"file": "/mnt/raw/an-image"})
    assert one(disk, "backingStore/backingStore") == {}


def test_a_block_device_is_one() -> None:
    """A LUN of a volume service."""
    found = domain(with_disk(guest(), GuestDisk("vdc", Path("/dev/sdq"), "volume"))).findall("devices/disk")[1]
    assert (found.attrib["type"], one(found, "source")) == ("block", {"dev": "/dev/sdq"})


def test_networks() -> None:
    """QEMU's own has one queue; one of the host's has as many as the image asks for."""
    plain = guest(hw_vif_multiqueue_enabled="yes", hw_virtio_packed_ring="yes")
    user, host = (domain(plain, network=name) for name in ("user", "default"))
    assert one(user, "devices/interface") == {"type": "user"}
    assert one(user, "devices/interface/driver") == {"packed": "on"}
    assert (one(host, "devices/interface"), one(host, "devices/interface/source")) == ({"type": "network"}, {"network": "default"})
    assert one(host, "devices/interface/driver") == {"queues": "2", "packed": "on"}
    assert one(host, "devices/interface/mac")["address"].startswith("fa:16:3e:")
    assert "devices" not in one(domain(guest(), network="user"), "devices/interface/model")


def test_kvm_has_what_only_kvm_can() -> None:
    """Hyper-V's words for Windows, a hidden hypervisor, remapped interrupts; none of them without KVM."""
    plain = guest(os_type="windows", img_hide_hypervisor_id="yes", hw_machine_type="q35", hw_viommu_model="intel", hw_maxphysaddr_mode="passthrough")
    found = domain(plain, "kvm")
    assert one(found, "features/kvm/hidden") == {"state": "on"}
    assert one(found, "features/hyperv/spinlocks") == {"state": "on", "retries": "8191"}
    assert one(found, "features/hyperv/vendor_id")["state"] == "on"
    assert one(found, "features/ioapic") == {"driver": "qemu"}
    assert one(found, "devices/iommu/driver")["intremap"] == "on"
    assert one(found, "cpu/maxphysaddr") == {"mode": "passthrough"}
    assert one(found, "clock/timer") == {"name": "hypervclock", "present": "yes"}
    without = domain(plain, "tcg")
    assert all(without.find(path) is None for path in ("features/kvm", "features/hyperv", "features/ioapic", "cpu/maxphysaddr", "clock/timer"))
    assert "intremap" not in one(without, "devices/iommu/driver")


def test_nodes_ports_and_a_kernel() -> None:
    """The rest of the machine."""
    found = domain(guest(hw_numa_nodes="2", hw_serial_port_count="2", kernel_id=UUID, ramdisk_id=UUID, os_command_line="a <b>"), console_log="/x.log")
    assert [cell.attrib["cpus"] for cell in found.findall("cpu/numa/cell")] == ["0", "1"]
    assert [port.attrib["port"] for port in found.findall("devices/serial/target")] == ["0", "1"]
    assert [one(found, path) for path in ("devices/serial/log", "devices/console/log")] == [{"file": "/x.log", "append": "on"}] * 2
    assert [found.findtext(f"os/{name}") for name in ("kernel", "initrd", "cmdline")] == [f"/mnt/images/{UUID}"] * 2 + ["a <b>"]


@pytest.mark.parametrize("text", ["a\x01b", "a\udcffb", "a\ufffeb"])
def test_what_xml_cannot_say_is_refused(text: str) -> None:
    """No file that libvirt could not read."""
    with pytest.raises(InvalidInput, match="which XML cannot have"):
        domain(guest(kernel_id=UUID, os_command_line=text))

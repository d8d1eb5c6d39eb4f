"""The domain XML that `imagefs instance libvirt` prints is what libvirt's own schema wants."""

import subprocess
from pathlib import Path

import pytest

from imagefs.cli.libvirt import domain_xml
from imagefs.cli.machine.model import Guest, GuestDisk, Surroundings
from imagefs.cli.machine.plan import plan_machine
from tests.support.guests import UUID, config_drive, direct, guest, nvram, with_disk

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
@pytest.mark.parametrize(
    "plain",
    [
        config_drive(guest(("vda", "vdb"))),
        guest(disk_format="iso", hw_disk_bus="scsi", hw_scsi_model="vmpvscsi", hw_virtio_packed_ring="yes", hw_vif_multiqueue_enabled="yes"),
        guest(hw_disk_bus="ide", os_type="windows", img_hide_hypervisor_id="yes", hw_time_hpet="no", hw_boot_menu="yes", hw_pmu="off"),
        guest(hw_machine_type="q35", hw_viommu_model="intel", hw_sound_model="ich9", hw_input_bus="usb", hw_serial_port_count="2"),
        guest(hw_machine_type="q35", hw_viommu_model="virtio", hw_video_model="qxl", hw_video_ram="32", hw_watchdog_action="pause"),
        guest(hw_numa_nodes="2", hw_mem_page_size="2048", hw_locked_memory="yes", hw_maxphysaddr_mode="emulate", hw_maxphysaddr_bits="42"),
        guest(hw_mem_page_size="large", hw_maxphysaddr_mode="passthrough", hw_tpm_version="2.0", hw_tpm_model="tpm-crb"),
        guest(kernel_id=UUID, ramdisk_id=UUID, hw_qemu_guest_agent="yes", hw_architecture="i686", hw_disk_bus="usb"),
        nvram(guest(hw_firmware_type="uefi")),
        nvram(guest(hw_firmware_type="uefi", hw_firmware_stateless="yes")),
        nvram(guest(hw_firmware_type="uefi", os_secure_boot="required"), secure_boot=True),
        with_disk(direct(guest()), GuestDisk("vdc", Path("/dev/sdq"), "volume")),
    ],
    ids=["plain", "iso", "ide", "intel", "virtio-iommu", "numa", "tpm", "kernel", "uefi", "stateless", "secure", "direct"],
)
def test_the_schema_of_libvirt_takes_it(tmp_path: Path, plain: Guest, accelerator: str) -> None:
    """virt-xml-validate finds nothing to say, with and without a network."""
    machine = plan_machine(plain, Surroundings(accelerator))
    for name, network, log in (("none", None, None), ("user", "user", "/var/log/web1"), ("host", "default", None)):
        path = tmp_path / f"{name}.xml"
        path.write_text(domain_xml(machine, network, log))
        checked = subprocess.run(["virt-xml-validate", path, "domain"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr

"""A machine is what the image's properties ask for, or it is refused."""

import dataclasses
from pathlib import Path

import pytest

from imagefs.cli.machine.model import Guest, Machine, Surroundings
from imagefs.cli.machine.plan import plan_machine
from imagefs.errors import InvalidInput, Unsupported
from tests.support.guests import CODE, guest, nvram


def planned(plain: Guest, accelerator: str = "tcg") -> Machine:
    return plan_machine(plain, Surroundings(accelerator))


def test_uefi_is_a_q35_with_code_and_variables() -> None:
    """Unless the image names another machine; nvram.fd is no disk."""
    found = planned(nvram(guest(hw_firmware_type="uefi")))
    assert found.firmware is not None
    assert (found.type, found.firmware.code, found.firmware.variables) == ("q35", CODE, Path("/mnt/instances/web1/nvram.fd"))
    assert [disk.name for disk in found.disks] == ["vda"]
    assert planned(nvram(guest(hw_firmware_type="uefi", hw_machine_type="pc"))).type == "pc"


def test_secure_boot_is_what_the_instance_was_made_with() -> None:
    """Optional takes either; required takes no other."""
    assert planned(nvram(guest(hw_firmware_type="uefi", os_secure_boot="required"), secure_boot=True)).firmware is not None
    for secure_boot in (True, False):
        found = planned(nvram(guest(hw_firmware_type="uefi", os_secure_boot="optional"), secure_boot=secure_boot))
        assert found.firmware is not None
        assert found.firmware.secure is secure_boot


def test_a_stateless_firmware_has_no_variables() -> None:
    """Even if the instance has a file for them."""
    found = planned(nvram(guest(hw_firmware_type="uefi", hw_firmware_stateless="yes")))
    assert found.firmware is not None
    assert found.firmware.variables is None


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        (guest(hw_firmware_type="uefi"), "was made without one"),
        (dataclasses.replace(guest(hw_firmware_type="uefi"), firmware_code=CODE), "has no nvram.fd"),
        (nvram(guest(hw_firmware_type="uefi", os_secure_boot="required")), "made without it"),
        (nvram(guest(hw_firmware_type="uefi", hw_machine_type="pc"), secure_boot=True), "needs a q35 machine"),
        (nvram(guest(hw_firmware_type="uefi", hw_firmware_stateless="on"), secure_boot=True), "keeps its keys in variables"),
        (nvram(guest(hw_firmware_type="uefi", hw_architecture="i686")), "for x86_64 only"),
        (guest(os_secure_boot="required"), "a BIOS has none"),
        (guest(hw_vif_model="igb"), "from version 8.0 on"),
        (guest(hw_sound_model="virtio"), "from version 8.2 on"),
        (guest(hw_viommu_model="smmuv3"), "only ARM has it"),
        (guest(hw_redirected_usb_ports="2"), "SPICE"),
        (guest(hw_mem_encryption="yes"), "encrypted memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_given_is_refused_with_a_reason(plain: Guest, reason: str) -> None:
    """A guest that lacks what its image requires is worse than none."""
    with pytest.raises(Unsupported, match=reason):
        planned(plain)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"hw_firmware_stateless": "yes"}, "needs the hw_firmware_type uefi"),
        ({"hw_tpm_version": "1.2", "hw_tpm_model": "tpm-crb"}, "needs the hw_tpm_version 2.0"),
        ({"hw_tpm_version": "3.0"}, "1.2, 2.0"),
        ({"hw_tpm_model": "tpm-spapr"}, "tpm-tis, tpm-crb"),
        ({"hw_usb_model": "none", "hw_disk_bus": "usb"}, "devices on USB"),
        ({"hw_usb_model": "none", "hw_pointer_model": "usbtablet"}, "devices on USB"),
        ({"hw_usb_model": "uhci"}, "nec-xhci"),
        ({"hw_viommu_model": "intel"}, "needs a q35 machine"),
        ({"hw_serial_port_count": "5"}, "from 0 to 4"),
        ({"hw_video_ram": "512"}, "from 0 to 256"),
        ({"hw_sound_model": "tracker"}, "sb16"),
        ({"hw_input_bus": "ps2"}, "usb, virtio"),
        ({"hw_rescue_device": "tape"}, "cdrom"),
        ({"hw_emulation_architecture": "aarch64"}, "x86_64, i686"),
        ({"os_type": "beos"}, "linux, windows"),
        ({"os_require_quiesce": "sometimes"}, "yes or no"),
        ({"hw_qemu_guest_agent": "?"}, "yes or no"),
        ({"hw_vif_multiqueue_enabled": "?"}, "yes or no"),
    ],
    ids=str,
)
def test_bad_values_are_refused(attributes: dict[str, str], reason: str) -> None:
    """The line names what can be chosen."""
    with pytest.raises(InvalidInput, match=reason):
        planned(guest(**attributes))


def test_devices_that_properties_ask_for() -> None:
    """One property, one device."""
    assert planned(guest(hw_vif_multiqueue_enabled="yes")).network.queues == 2
    assert planned(guest(hw_vif_multiqueue_enabled="yes", hw_vif_model="e1000")).network.queues == 1
    assert planned(guest(hw_serial_port_count="0")).serial_ports == 1
    assert planned(guest(hw_serial_port_count="3")).serial_ports == 3
    assert planned(guest(hw_emulation_architecture="i686", hw_architecture="x86_64")).architecture == "i686"
    assert planned(guest(hw_viommu_model="auto", hw_machine_type="q35")).iommu == "virtio"
    video = planned(guest(hw_video_ram="24")).video
    assert video is not None
    assert video.ram == 32
    assert planned(guest(hw_video_ram="0")).video == planned(guest()).video
    assert planned(guest(os_type="Windows"), "kvm").hyperv
    assert not planned(guest(os_type="windows"), "tcg").hyperv


def test_usb_is_there_for_those_who_need_it() -> None:
    """And for who asks for a controller, but for nobody else."""
    assert planned(guest()).usb_model is None
    assert planned(guest(hw_usb_model="none")).usb_model is None
    assert planned(guest(hw_usb_model="nec-xhci")).usb_model == "nec-xhci"
    assert planned(guest(hw_sound_model="usb")).usb_model == "qemu-xhci"
    assert planned(guest(hw_input_bus="virtio", hw_pointer_model="usbtablet")).usb_model is None


def test_an_input_bus_has_a_keyboard_a_pointer_has_none() -> None:
    """As in Nova."""
    found = [planned(guest(**{name: value})) for name, value in (("hw_input_bus", "virtio"), ("hw_pointer_model", "usbtablet"))]
    assert [(machine.input_bus, machine.has_keyboard) for machine in found] == [("virtio", True), ("usb", False)]


def test_properties_that_nobody_knows_are_ignored() -> None:
    """So are those of others' clouds."""
    assert planned(guest(hw_turbo="yes", os_distro="debian", x_billing="1")) == planned(guest())

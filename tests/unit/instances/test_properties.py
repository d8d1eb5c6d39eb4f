"""Properties are read as Nova reads them."""

import re

import pytest

from imagefs.errors import InvalidInput, Unsupported
from imagefs.instances.properties import Properties


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"architecture": "amd64"}, "hw_architecture", "x86_64"),
        ({"hw_architecture": "I386"}, "hw_architecture", "i686"),
        ({"vm_mode": "HV"}, "hw_vm_mode", "hvm"),
        ({"hypervisor_type": "KVM"}, "img_hv_type", "kvm"),
        ({"hw_scsi_model": "lsiLogicsas"}, "hw_scsi_model", "lsisas1068"),
        ({"hw_vif_model": "VirtualE1000"}, "hw_vif_model", "e1000"),
        ({"os_type": "Windows"}, "os_type", "windows"),
        ({"vmware_adaptertype": "ide"}, "hw_disk_bus", "ide"),
        ({"vmware_adaptertype": "paraVirtual"}, "hw_disk_bus", "scsi"),
        ({"vmware_adaptertype": "paraVirtual"}, "hw_scsi_model", "vmpvscsi"),
        ({"hw_disk_bus": "SCSI"}, "hw_disk_bus", "SCSI"),
    ],
)
def test_old_names_and_other_words_are_known(given: dict[str, str], name: str, value: str) -> None:
    """Where Nova takes any case or an old word, so does this; elsewhere it does not."""
    assert Properties(given).text(name) == value


@pytest.mark.parametrize("turned", [False, True])
def test_the_present_name_counts_beside_an_old_one(*, turned: bool) -> None:
    """Whichever comes first."""
    given = [("hw_vm_mode", "hvm"), ("vm_mode", "xen"), ("vmware_adaptertype", "ide"), ("hw_disk_bus", "usb")]
    found = Properties(dict(reversed(given) if turned else given))
    assert (found.text("hw_vm_mode"), found.text("hw_disk_bus")) == ("hvm", "usb")


@pytest.mark.parametrize(
    ("text", "value"),
    [(text, index < 6) for index, text in enumerate(["1", "t", "True", "on", "y", "YES", "0", "f", "false", "OFF", "n", "no"])] + [(" yes ", True)],
)
def test_booleans_have_many_words(text: str, *, value: bool) -> None:
    """As in Nova, blanks and case aside."""
    assert Properties({"x": text}).boolean("x") is value


@pytest.mark.parametrize("text", ["", "maybe", "2", "ye s"])
def test_other_words_are_no_booleans(text: str) -> None:
    """What cannot be understood is refused, not taken for no."""
    with pytest.raises(InvalidInput, match="it must be yes or no"):
        Properties({"x": text}).boolean("x")


@pytest.mark.parametrize("text", ["-1", "", "1.5", "ten", "11", "٣", "1e1", "9999999999"])
def test_numbers_are_plain_and_within_their_bounds(text: str) -> None:
    """Digits only; no more than the most."""
    with pytest.raises(InvalidInput, match="it must be a number from 0 to 10"):
        Properties({"x": text}).number("x", 0, 10)
    assert Properties({"x": "10"}).number("x", 0, 10) == 10


def test_nothing_is_said_by_what_is_not_there() -> None:
    """None, and the default."""
    found = Properties({})
    assert (found.text("x"), found.boolean("x"), found.number("x", 0, 1), found.optional("x", ("a",))) == (None, None, None, None)
    assert found.choice("x", ("a", "b"), "b") == "b"
    assert found.matching("x", re.compile("b+"), "bb", "bees") == "bb"


def test_what_is_right_and_not_to_be_had_has_its_reason() -> None:
    """An enumeration's value without a device is another error than a wrong value."""
    with pytest.raises(Unsupported, match="the image's x is 'c': too new"):
        Properties({"x": "c"}).choice("x", ("a",), "a", lacking={"c": "too new"})
    with pytest.raises(InvalidInput, match="it must be one of a, b"):
        Properties({"x": "d"}).optional("x", ("a", "b"))

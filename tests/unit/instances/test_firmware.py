"""The firmware of an instance: which files are chosen, what is refused, and the template of its variables."""

import os
from pathlib import Path

import pytest

from imagefs.config import InstancesConfig
from imagefs.errors import InvalidInput
from imagefs.instances.firmware import (
    DEBIAN_CODE,
    DEBIAN_SECURE_CODE,
    DEBIAN_SECURE_VARS,
    DEBIAN_VARS,
    MAX_VARIABLES,
    MIN_VARIABLES,
    Firmware,
    choose_firmware,
    is_regular_file,
    load_variables,
)

PLAIN = Firmware(DEBIAN_CODE, DEBIAN_VARS, secure_boot=False)
SECURE = Firmware(DEBIAN_SECURE_CODE, DEBIAN_SECURE_VARS, secure_boot=True)
OWN = InstancesConfig(
    ovmf_code=Path("/own/code"), ovmf_vars=Path("/own/vars"), ovmf_secure_code=Path("/own/secure"), ovmf_secure_vars=Path("/own/keys")
)


def always(_: Path) -> bool:
    return True


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, None),
        ({"hw_firmware_type": "bios"}, None),
        ({"hw_firmware_type": "bios", "os_secure_boot": "optional"}, None),
        ({"hw_firmware_stateless": "no"}, None),
        ({"hw_firmware_type": "uefi"}, PLAIN),
        ({"hw_firmware_type": "uefi", "os_secure_boot": "disabled", "hw_firmware_stateless": "False"}, PLAIN),
        ({"hw_firmware_type": "uefi", "os_secure_boot": "optional"}, SECURE),
        ({"hw_firmware_type": "uefi", "os_secure_boot": "required"}, SECURE),
        ({"hw_firmware_type": "uefi", "os_secure_boot": "required", "hw_machine_type": "pc-q35-7.2"}, SECURE),
        ({"hw_firmware_type": "uefi", "os_secure_boot": "optional", "hw_machine_type": "pc"}, PLAIN),
        ({"hw_firmware_type": "uefi", "hw_machine_type": "pc"}, PLAIN),
        ({"hw_firmware_type": "uefi", "hw_firmware_stateless": "true"}, Firmware(DEBIAN_CODE, None, secure_boot=False)),
        (
            {"hw_firmware_type": "uefi", "hw_firmware_stateless": "1", "os_secure_boot": "optional"},
            Firmware(DEBIAN_CODE, None, secure_boot=False),
        ),
    ],
)
def test_properties_choose_the_firmware(properties: dict[str, str], expected: Firmware | None) -> None:
    """Properties mean what they mean to Nova; without them there is a BIOS."""
    assert choose_firmware(properties, InstancesConfig(), always) == expected


def test_configured_files_take_the_place_of_debians() -> None:
    """Each of the four paths can be set."""
    assert choose_firmware({"hw_firmware_type": "uefi"}, OWN, always) == Firmware(Path("/own/code"), Path("/own/vars"), secure_boot=False)
    secure = choose_firmware({"hw_firmware_type": "uefi", "os_secure_boot": "required"}, OWN, always)
    assert secure == Firmware(Path("/own/secure"), Path("/own/keys"), secure_boot=True)


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"hw_firmware_type": "UEFI"}, "one of bios, uefi"),
        ({"hw_firmware_type": ""}, "one of bios, uefi"),
        ({"os_secure_boot": "yes"}, "one of required, optional, disabled"),
        ({"hw_firmware_type": "uefi", "hw_firmware_stateless": "maybe\nso"}, r"'maybe\\nso': it must be yes or no"),
        ({"hw_firmware_stateless": "yes"}, "hw_firmware_type is not uefi"),
        ({"os_secure_boot": "required"}, "hw_firmware_type is not uefi"),
        ({"hw_firmware_type": "uefi", "os_secure_boot": "required", "hw_machine_type": "pc"}, "set that to q35"),
        ({"hw_firmware_type": "uefi", "os_secure_boot": "required", "hw_firmware_stateless": "yes"}, "keys are in the variables"),
    ],
)
def test_what_nova_refuses_is_refused(properties: dict[str, str], reason: str) -> None:
    """Values outside their enums, and properties that contradict each other."""
    with pytest.raises(InvalidInput, match=reason):
        choose_firmware(properties, InstancesConfig(), always)


@pytest.mark.parametrize(
    ("secure_boot", "missing", "key"),
    [
        ("disabled", DEBIAN_CODE, "ovmf_code"),
        ("disabled", DEBIAN_VARS, "ovmf_vars"),
        ("required", DEBIAN_SECURE_CODE, "ovmf_secure_code"),
        ("required", DEBIAN_SECURE_VARS, "ovmf_secure_vars"),
    ],
)
def test_missing_files_name_the_package_and_the_key(secure_boot: str, missing: Path, key: str) -> None:
    """Without the file the message says what to install or to set."""
    with pytest.raises(InvalidInput, match=rf"{missing} is not there: install the Debian package ovmf, or set \[instances\] {key}$"):
        choose_firmware({"hw_firmware_type": "uefi", "os_secure_boot": secure_boot}, InstancesConfig(), lambda path: path != missing)


def test_stateless_needs_the_code_alone() -> None:
    """A missing template matters to nobody who keeps no variables."""
    properties = {"hw_firmware_type": "uefi", "hw_firmware_stateless": "yes"}
    found = choose_firmware(properties, InstancesConfig(), lambda path: path == DEBIAN_CODE)
    assert found == Firmware(DEBIAN_CODE, None, secure_boot=False)
    with pytest.raises(InvalidInput, match="ovmf_code"):
        choose_firmware(properties, InstancesConfig(), lambda _: False)


@pytest.mark.parametrize("missing", [DEBIAN_SECURE_CODE, DEBIAN_SECURE_VARS])
def test_optional_secure_boot_gives_way(missing: Path) -> None:
    """Without the files for it an image that does not insist boots without it."""
    properties = {"hw_firmware_type": "uefi", "os_secure_boot": "optional"}
    assert choose_firmware(properties, InstancesConfig(), lambda path: path != missing) == PLAIN


def test_debians_files_are_there_and_sound() -> None:
    """The paths that are built in are those of the package, and its templates are within bounds."""
    assert choose_firmware({"hw_firmware_type": "uefi"}, InstancesConfig()) == PLAIN
    assert choose_firmware({"hw_firmware_type": "uefi", "os_secure_boot": "required"}, InstancesConfig()) == SECURE
    for path in (DEBIAN_VARS, DEBIAN_SECURE_VARS):
        assert load_variables(path) == path.read_bytes()


def test_only_a_file_is_there(tmp_path: Path) -> None:
    """Neither a directory nor a symlink to nothing is a firmware; a symlink to a file is."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nothing")
    assert [is_regular_file(tmp_path / name) for name in ("file", "link", "dangling", "", "file/below")] == [True, True, False, False, False]


@pytest.mark.parametrize("size", [MIN_VARIABLES, MAX_VARIABLES])
def test_templates_within_bounds_are_loaded(tmp_path: Path, size: int) -> None:
    """Both bounds are within."""
    path = tmp_path / "vars.fd"
    path.write_bytes(os.urandom(16) * (size // 16))
    assert load_variables(path) == path.read_bytes()


@pytest.mark.parametrize(("size", "reason"), [(0, "0 bytes, below"), (MIN_VARIABLES - 1, "below 64.0 KiB"), (MAX_VARIABLES + 1, "above 16.0 MiB")])
def test_templates_out_of_bounds_are_refused(tmp_path: Path, size: int, reason: str) -> None:
    """A template that is too small or too large is some other file."""
    path = tmp_path / "vars.fd"
    with path.open("wb") as file:
        file.truncate(size)
    with pytest.raises(InvalidInput, match=reason):
        load_variables(path)


def test_what_is_no_file_is_no_template(tmp_path: Path) -> None:
    """A missing file, a directory and a pipe that nobody writes to are told apart from a template, without waiting."""
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        load_variables(tmp_path / "missing")
    with pytest.raises(InvalidInput, match="correct \\[instances\\]"):
        load_variables(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match="is not a file"):
        load_variables(tmp_path / "pipe")

"""This module chooses the UEFI firmware of an instance, and what its variable store begins with, from its image's properties.

The properties mean what they mean to Nova. Secure boot takes a firmware of its own, which trusts the keys in its variable template and
works on a q35 machine with system management mode only; on any other the guest would stop without a word. Tried with Debian's ovmf 2022.11
and QEMU 7.2: the plain pair starts on pc and q35, and so does the code without variables, which then lie in memory until the guest ends.
"""

import dataclasses
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from imagefs.config import InstancesConfig
from imagefs.errors import InvalidInput
from imagefs.instances.properties import Properties
from imagefs.units import KIB, MIB, format_size

DEBIAN_CODE: Final = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
DEBIAN_VARS: Final = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
DEBIAN_SECURE_CODE: Final = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
DEBIAN_SECURE_VARS: Final = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
"""The template with Microsoft's keys, which installers and shims of distributions are signed with."""

MIN_VARIABLES: Final = 64 * KIB
MAX_VARIABLES: Final = 16 * MIB
"""Bounds of a variable template in bytes; OVMF's have 128 or 528 KiB, and what QEMU maps as flash ends at 16 MiB."""

_FIRMWARE_TYPES: Final = ("bios", "uefi")
_SECURE_BOOT: Final = ("required", "optional", "disabled")


@dataclasses.dataclass(frozen=True, slots=True)
class Firmware:
    """A firmware: its code's path, its variable template's (None: stateless, the instance keeps no variables), and whether it boots securely."""

    code: Path
    variables: Path | None
    secure_boot: bool


def is_regular_file(path: Path) -> bool:
    """Tell whether there is a file at `path`, which may be a symlink."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def choose_firmware(properties: Mapping[str, str], config: InstancesConfig, is_there: Callable[[Path], bool] = is_regular_file) -> Firmware | None:
    """Return the UEFI firmware that an instance of an image with these properties gets; None: a BIOS.

    Secure boot that is `optional` is left out where its files are not there, or the image asks for a machine that has it not; whoever starts
    a guest that boots securely gives it a q35 machine. Raises InvalidInput for values that Nova refuses, for properties that contradict
    each other, and for files that are not there.
    """
    image = Properties(properties)
    firmware_type = image.choice("hw_firmware_type", _FIRMWARE_TYPES, "bios")
    secure_boot = image.choice("os_secure_boot", _SECURE_BOOT, "disabled")
    stateless = image.is_on("hw_firmware_stateless")
    if firmware_type == "bios":
        if stateless:
            raise InvalidInput("the image's hw_firmware_stateless is true, and its hw_firmware_type is not uefi: set that to uefi")
        if secure_boot == "required":
            raise InvalidInput("the image's os_secure_boot is required, and its hw_firmware_type is not uefi: set that to uefi")
        return None
    machine = properties.get("hw_machine_type", "q35")
    if secure_boot == "required" and "q35" not in machine:
        raise InvalidInput(f"the image's os_secure_boot is required and its hw_machine_type {machine[:80]!r}: set that to q35, which alone has it")
    if stateless and secure_boot == "required":
        raise InvalidInput(
            "the image's os_secure_boot is required and its hw_firmware_stateless true: the keys are in the variables, so set one to another value"
        )
    plain = _Pair(config.ovmf_code or DEBIAN_CODE, config.ovmf_vars or DEBIAN_VARS, "ovmf_code", "ovmf_vars")
    if stateless:
        _require(plain.code, plain.code_key, is_there)
        return Firmware(plain.code, None, secure_boot=False)
    secure = _Pair(
        config.ovmf_secure_code or DEBIAN_SECURE_CODE, config.ovmf_secure_vars or DEBIAN_SECURE_VARS, "ovmf_secure_code", "ovmf_secure_vars"
    )
    possible = "q35" in machine and is_there(secure.code) and is_there(secure.variables)
    wanted = secure_boot == "required" or (secure_boot == "optional" and possible)
    pair = secure if wanted else plain
    _require(pair.code, pair.code_key, is_there)
    _require(pair.variables, pair.variables_key, is_there)
    return Firmware(pair.code, pair.variables, secure_boot=wanted)


def load_variables(path: Path) -> bytes:
    """Return the content of a variable template. Blocks. Raises InvalidInput if it cannot be read or is out of bounds."""
    what = f"the UEFI variable template {path}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # whatever it is, opening it does not wait
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidInput(f"{what} is not a file: correct [instances] ovmf_vars or ovmf_secure_vars")
            content = file.read(MAX_VARIABLES + 1)
    except OSError as error:
        raise InvalidInput(f"{what} cannot be read: {error.strerror}: correct [instances] ovmf_vars or ovmf_secure_vars") from error
    if not MIN_VARIABLES <= len(content) <= MAX_VARIABLES:
        found = f"above {format_size(MAX_VARIABLES)}" if len(content) > MAX_VARIABLES else f"{len(content)} bytes, below {format_size(MIN_VARIABLES)}"
        raise InvalidInput(f"{what} is {found}: it is not what it should be: correct [instances] ovmf_vars or ovmf_secure_vars")
    return content


@dataclasses.dataclass(frozen=True, slots=True)
class _Pair:
    """Code and variable template, with the keys that configure them."""

    code: Path
    variables: Path
    code_key: str
    variables_key: str


def _require(path: Path, key: str, is_there: Callable[[Path], bool]) -> None:
    if not is_there(path):
        raise InvalidInput(f"the image wants UEFI, and {path} is not there: install the Debian package ovmf, or set [instances] {key}")

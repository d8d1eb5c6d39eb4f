"""This module reads an image's properties as Nova reads them: old names, words that mean the same, and values outside an enumeration.

A value that Nova would refuse is refused, and so is one that asks for what this version cannot give: a guest that lacks what its
image requires is worse than none. Properties that nobody asks for are never looked at.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from imagefs.errors import InvalidInput, Unsupported

_TRUE: Final = frozenset({"1", "t", "true", "on", "y", "yes"})
_FALSE: Final = frozenset({"0", "f", "false", "off", "n", "no"})
_ALIASES: Final = {
    "architecture": "hw_architecture", "vm_mode": "hw_vm_mode", "hypervisor_type": "img_hv_type", "root_device_name": "img_root_device_name",
}  # fmt: skip
_SAME: Final[Mapping[str, Mapping[str, str]]] = {
    "hw_architecture": {"amd64": "x86_64", **dict.fromkeys(("i386", "i486", "i586", "x86_32", "x86_32p"), "i686")},
    "hw_scsi_model": {"lsilogicsas": "lsisas1068", "paravirtual": "vmpvscsi"},
    "hw_vif_model": {"virtuale1000": "e1000", "virtuale1000e": "e1000e", "virtualpcnet32": "pcnet", "virtualvmxnet3": "vmxnet3"},
    "hw_vm_mode": {"hv": "hvm", "baremetal": "hvm"},
    "img_hv_type": {},
    "os_type": {},
}
"""Properties of which Nova takes any case, with the words that it takes for others."""


class Properties:
    """An image's properties under their present names, each read as what it must be. All methods raise InvalidInput for a bad value."""

    def __init__(self, values: Mapping[str, str]) -> None:
        """Take names and values; where an old and a present name are both there, the present one counts."""
        renamed = {_ALIASES[name]: value for name, value in values.items() if name in _ALIASES}
        adapter = values.get("vmware_adaptertype")
        if adapter:
            renamed |= {"hw_disk_bus": "ide"} if adapter == "ide" else {"hw_disk_bus": "scsi", "hw_scsi_model": adapter}
        found = renamed | {name: value for name, value in values.items() if name not in _ALIASES}
        self._values = {name: _SAME[name].get(value.lower(), value.lower()) if name in _SAME else value for name, value in found.items()}

    def text(self, name: str) -> str | None:
        """Return a property as it is, None if there is none."""
        return self._values.get(name)

    def choice(self, name: str, choices: Iterable[str], default: str, *, lacking: Mapping[str, str] | None = None) -> str:
        """Return one of `choices`. Raises Unsupported with the reason for a value in `lacking`: those are right, and not to be had."""
        value = self._values.get(name, default)
        if lacking is not None and value in lacking:
            raise Unsupported(f"the image's {name} is {value[:80]!r}: {lacking[value]}")
        choices = tuple(choices)
        if value not in choices:
            raise InvalidInput(f"the image's {name} is {value[:80]!r}: it must be one of {', '.join(choices)}")
        return value

    def optional(self, name: str, choices: Iterable[str], *, lacking: Mapping[str, str] | None = None) -> str | None:
        """Return one of `choices`, None if the image says nothing. Raises as `choice` does."""
        return None if self._values.get(name) is None else self.choice(name, choices, "", lacking=lacking)

    def matching(self, name: str, pattern: re.Pattern[str], default: str, what: str) -> str:
        """Return a value that is like `pattern`, which the message calls `what`."""
        value = self._values.get(name, default)
        if pattern.fullmatch(value) is None:
            raise InvalidInput(f"the image's {name} is {value[:80]!r}: it must be {what}")
        return value

    def number(self, name: str, least: int, most: int) -> int | None:
        """Return a whole number from `least` to `most`, None if the image says nothing."""
        value = self._values.get(name)
        if value is None:
            return None
        if not value.isascii() or not value.isdigit() or len(value) > 9 or not least <= int(value) <= most:
            raise InvalidInput(f"the image's {name} is {value[:80]!r}: it must be a number from {least} to {most}")
        return int(value)

    def boolean(self, name: str) -> bool | None:
        """Return a truth in any of the words for it, None if the image says nothing."""
        value = self._values.get(name)
        if value is None:
            return None
        word = value.strip().lower()
        if word not in _TRUE | _FALSE:
            raise InvalidInput(f"the image's {name} is {value[:80]!r}: it must be yes or no")
        return word in _TRUE

    def is_on(self, name: str) -> bool:
        """Tell whether the image says yes."""
        return self.boolean(name) is True

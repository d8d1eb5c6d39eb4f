"""This module goes through a TOML document and overrides, key by key, and gathers values and mistakes. Pure."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from imagefs.config.sections import (
    FLAVOR_KEYS,
    FLAVOR_NEEDS,
    MAP,
    MAP_SUBJECTS,
    SECTIONS,
    MapEntry,
    Read,
    all_keys,
    keys_of,
    listed_keys,
    section_keys,
)
from imagefs.errors import InvalidInput
from imagefs.flavors import Flavor, check_name, make_flavor

_KNOWN: Final = [*SECTIONS, *all_keys(), "flavors", MAP]


class Reader:
    """Gathers values by section, flavors, the map's entries and all mistakes from a document and from overrides."""

    def __init__(self, directory: Path | None) -> None:
        """`directory` is the configuration file's, which relative paths in it start from; None: there is no file."""
        self._directory = directory
        self.values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        self.flavors: dict[str, Flavor] = {}
        self.map: list[MapEntry] = []
        self.mistakes: list[str] = []

    def document(self, document: Mapping[str, object]) -> None:
        """Take in what the file says."""
        for name, value in document.items():
            if name == "flavors":
                self._flavors(value)
            elif name in SECTIONS:
                self._section(name, value)
            else:
                self._unknown(name)

    def overrides(self, overrides: Mapping[str, str]) -> None:
        """Take in what -o options say, by dotted key; they win over what was taken in before."""
        for dotted, text in overrides.items():
            section, _, key = dotted.rpartition(".")
            if section in SECTIONS and key in listed_keys(section):
                self.mistakes.append(f"-o {dotted}: takes a list, which can be set in the configuration file only")
            elif section in SECTIONS and key in section_keys(section):
                # the command line has no types: the two words that are values of their own in TOML are so here too
                self._value(section, key, {"true": True, "false": False}.get(text, text), "-o ")
            elif dotted.startswith("flavors."):
                self.mistakes.append(f"-o {dotted}: flavors can be set in the configuration file only")
            elif dotted.startswith(MAP):
                self.mistakes.append(f"-o {dotted}: the map can be set in the configuration file only: write [[{MAP}]] there")
            else:
                self._unknown(dotted, "-o ")

    def _section(self, section: str, value: object) -> None:
        if not isinstance(value, dict):
            self.mistakes.append(f"{section}: is a section: write [{section}] and its keys below it")
            return
        known = section_keys(section)
        for key, item in value.items():
            if key in known:
                self._value(section, key, item)
            elif f"{section}.{key}" in SECTIONS:
                self._section(f"{section}.{key}", item)
            elif f"{section}.{key}" == MAP:
                self._map(item)
            else:
                self._unknown(f"{section}.{key}")

    def _value(self, section: str, key: str, value: object, origin: str = "") -> None:
        try:
            found = section_keys(section)[key](value)
            self.values[section][key] = self._located(found, origin) if isinstance(found, Path) else found
        except InvalidInput as error:
            self.mistakes.append(f"{origin}{section}.{key}: {error}")

    def _located(self, path: Path, origin: str) -> Path:
        """Return an absolute path. A relative one is only right in a file: the daemon does not run where the command line was typed."""
        if not path.is_absolute() and (origin or self._directory is None):
            raise InvalidInput(f"'{path}' is not an absolute path: begin it with /")
        return path if self._directory is None else self._directory / path

    def _map(self, entries: object) -> None:
        if not isinstance(entries, list):
            self.mistakes.append(f"{MAP}: is a list of tables: write [[{MAP}]] above each entry, with two brackets")
            return
        for number, entry in enumerate(entries, 1):
            self._entry(f"{MAP}[{number}]", entry)

    def _entry(self, dotted: str, table: object) -> None:
        if not isinstance(table, dict):
            self.mistakes.append(f"{dotted}: is not a table: write [[{MAP}]] and its keys below it")
            return
        before = len(self.mistakes)
        values = self._table(dotted, table, keys_of(MapEntry))
        subjects = [key for key in MAP_SUBJECTS if key in table]
        if len(subjects) != 1:
            reason = f"is for {' and '.join(subjects)}: write an entry for each" if subjects else "is for nobody"
            self.mistakes.append(f"{dotted}: {reason}: one of {', '.join(MAP_SUBJECTS)} says whom it is for")
        if "roles" not in table:
            self.mistakes.append(f"{dotted}.roles: is missing: list every role, or write [] for none")
        if len(self.mistakes) == before:
            self.map.append(MapEntry(**values))

    def _flavors(self, table: object) -> None:
        if not isinstance(table, dict):
            self.mistakes.append('flavors: is a section: write [flavors."NAME"] and its keys below it')
            return
        for name, value in table.items():
            dotted = f'flavors."{name}"'
            try:
                check_name(name)
            except InvalidInput as error:
                self.mistakes.append(f"{dotted}: {error}")
            if not isinstance(value, dict):
                self.mistakes.append(f'{dotted}: is a flavor: write [flavors."{name}"] and its keys below it')
            elif nested := [key for key, item in value.items() if isinstance(item, dict)]:
                self.mistakes.append(f'{dotted}: put the whole name in quotes: [flavors."{name}.{nested[0]}"]')
            else:
                self._flavor(name, dotted, value)

    def _flavor(self, name: str, dotted: str, table: Mapping[str, object]) -> None:
        before = len(self.mistakes)
        values = self._table(dotted, table, FLAVOR_KEYS)
        self.mistakes += [f"{dotted}.{key}: is missing: a flavor needs {', '.join(FLAVOR_NEEDS)}" for key in FLAVOR_NEEDS if key not in table]
        if values.get("projects") and values.get("is_public", True):
            self.mistakes.append(f"{dotted}.projects: everybody sees a public flavor: add is_public = false, or remove the projects")
        if len(self.mistakes) == before:
            self.flavors[name] = make_flavor(name, **values)

    def _table(self, dotted: str, table: Mapping[str, object], known: Mapping[str, Read]) -> dict[str, Any]:
        """Return the values of a table that is one of several of its kind."""
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key not in known:
                self.mistakes.append(f"{dotted}.{key}: unknown key{_meant(key, known)}")
                continue
            try:
                values[key] = known[key](value)
            except InvalidInput as error:
                self.mistakes.append(f"{dotted}.{key}: {error}")
        return values

    def _unknown(self, dotted: str, origin: str = "") -> None:
        kind = "unknown key" if "." in dotted or origin else "unknown section"
        self.mistakes.append(f"{origin}{dotted}: {kind}{_meant(dotted, _KNOWN)}")


def _meant(word: str, known: Iterable[str]) -> str:
    """Return ": did you mean ...?" for the known word that is most like `word`, or that ends in it; else nothing."""
    known = list(known)
    last = word.rpartition(".")[2]
    close = difflib.get_close_matches(word, known, 1, 0.75) or [key for key in known if key.endswith(f".{last}")]
    close = close or [key for key in known if difflib.get_close_matches(last, [key.rpartition(".")[2]], 1, 0.8)]
    return f": did you mean {close[0]}?" if close else ""

"""This module does what users do to instances and volumes, in two ways: by the imagefs command, and by plain tools on the files of the mount."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from tools.node import run


@dataclasses.dataclass(frozen=True)
class Place:
    """A mount, a directory for files beside it, and how the imagefs command is run for it. `show` gets each command as a user would type it."""

    mountpoint: Path
    directory: Path
    imagefs: Callable[..., str]
    show: Callable[[str], None] = lambda line: None

    def instance(self, name: str) -> Path:
        """Return the directory of an instance."""
        return self.mountpoint / "instances" / name

    def command(self, *words: str) -> str:
        """Show and run the imagefs command. Raises Failed."""
        self.show(f"imagefs {shlex.join(words)}")
        return self.imagefs(*words)

    def plain(self, *words: str) -> str:
        """Show and run any other command. Raises Failed."""
        self.show(shlex.join(words))
        return run(list(words))


class Hands(Protocol):
    """What is done. Sizes are in words such as 128M; `choices` are attributes of an instance by name. Everything raises Failed."""

    def make_volume(self, name: str, size: str) -> None: ...

    def grow_volume(self, name: str, size: str) -> None: ...

    def delete_volume(self, name: str) -> None: ...

    def make_instance(self, name: str, image: str, choices: Mapping[str, str]) -> None: ...

    def delete_instance(self, name: str) -> None: ...

    def attach(self, instance: str, volume: str) -> None:
        """Attach a volume as vdc."""

    def detach(self, instance: str, volume: str) -> None: ...

    def snapshot(self, instance: str, image: str, agent: Path | None) -> str:
        """Ask for a snapshot, and return the new image's id, at once; the guest is frozen for it through the agent's socket, if one is given."""


class ByCommand:
    """Everything by the imagefs command."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def make_volume(self, name: str, size: str) -> None:
        self._place.command("volume", "create", name, "--size", size)

    def grow_volume(self, name: str, size: str) -> None:
        self._place.command("volume", "set", name, "--size", size)

    def delete_volume(self, name: str) -> None:
        self._place.command("volume", "delete", name)

    def make_instance(self, name: str, image: str, choices: Mapping[str, str]) -> None:
        words = []
        file = self._place.directory / f"{name}.user-data"
        for key, value in choices.items():
            if key == "user_data":
                file.write_text(value)
            words += [f"--{key.replace('_', '-')}", str(file) if key == "user_data" else value]
        self._place.command("instance", "create", name, "--image", image, *words)

    def delete_instance(self, name: str) -> None:
        self._place.command("instance", "delete", name)

    def attach(self, instance: str, volume: str) -> None:
        self._place.command("volume", "attach", instance, volume)

    def detach(self, instance: str, volume: str) -> None:
        self._place.command("volume", "detach", instance, volume)

    def snapshot(self, instance: str, image: str, agent: Path | None) -> str:
        words = [] if agent is None else ["--agent", str(agent)]
        return self._place.command("instance", "snapshot", instance, "--name", image, *words).strip()


class ByFiles:
    """Everything by truncate, mkdir, setfattr, ln, rm and rmdir."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def make_volume(self, name: str, size: str) -> None:
        self._place.plain("truncate", "-s", size, str(self._volume(name)))

    def grow_volume(self, name: str, size: str) -> None:
        self._place.plain("truncate", "-s", size, str(self._volume(name)))

    def delete_volume(self, name: str) -> None:
        self._place.plain("rm", str(self._volume(name)))

    def make_instance(self, name: str, image: str, choices: Mapping[str, str]) -> None:
        self._place.plain("mkdir", str(self._place.instance(name)))
        for key, value in {**choices, "image": image}.items():
            self._set(name, key, value)

    def delete_instance(self, name: str) -> None:
        self._place.plain("rmdir", str(self._place.instance(name)))

    def attach(self, instance: str, volume: str) -> None:
        self._place.plain("ln", "-s", f"../../volumes/{volume}", str(self._place.instance(instance) / "vdc"))

    def detach(self, instance: str, volume: str) -> None:
        self._place.plain("rm", str(self._place.instance(instance) / "vdc"))

    def snapshot(self, instance: str, image: str, agent: Path | None) -> str:
        request = {"name": image} | ({} if agent is None else {"agent": str(agent)})
        self._set(instance, "imagefs.snapshot", json.dumps(request))
        return str(snapshot_state(self._place, instance)["id"])

    def _set(self, instance: str, attribute: str, value: str) -> None:
        self._place.plain("setfattr", "-n", f"user.{attribute}", "-v", value, str(self._place.instance(instance)))

    def _volume(self, name: str) -> Path:
        return self._place.mountpoint / "volumes" / name


def snapshot_state(place: Place, instance: str) -> dict[str, object]:
    """Return what the mount says of an instance's last snapshot."""
    words = ["getfattr", "--only-values", "--absolute-names", "-n", "user.imagefs.snapshot", str(place.instance(instance))]
    state: dict[str, object] = json.loads(run(words))
    return state

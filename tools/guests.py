"""This module runs the guest of an instance in two ways: by the QEMU command that imagefs prints, and by libvirt with the XML that it prints."""

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

from tests.support.libvirt import Libvirt
from tools.boot import end, running
from tools.console import TIMEOUT, Console
from tools.hands import Place
from tools.node import Failed

_OVER: Final = "nothing more is run"


class Running(Protocol):
    """A guest that runs, and its console."""

    console: Console

    def finish(self) -> None:
        """Wait for a guest that is about to end by itself. Raises Failed."""

    def stop(self) -> None:
        """End a guest that waits for the word `end` on its console. Raises Failed."""


class Runner(Protocol):
    """A way to run guests."""

    name: str

    def run(self, instance: str, agent: Path | None, show: Callable[[str], None]) -> AbstractContextManager[Running]:
        """Hold an instance's running guest; `agent` is where its agent's socket is to be. Raises Failed."""

    def kill(self) -> None:
        """End all guests at once, and those that are started from now on, so that whoever waits for one gives up."""


class _PlainGuest:
    def __init__(self, process: "subprocess.Popen[bytes]", console: Console) -> None:
        self.process = process
        self.console = console

    def finish(self) -> None:
        end(self.process, self.console)

    def stop(self) -> None:
        self.console.say("end")
        self.finish()


class PlainQemu:
    """Guests run by `imagefs instance qemu`."""

    name = "qemu"

    def __init__(self, place: Place) -> None:
        self._place = place
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_over = False

    @contextlib.contextmanager
    def run(self, instance: str, agent: Path | None, show: Callable[[str], None]) -> Iterator[_PlainGuest]:
        socket = [] if agent is None else ["--agent-socket", str(agent)]
        line = self._place.command("instance", "qemu", instance, "--accel", "tcg", *socket).strip()
        self._place.show(line)
        with running(shlex.split(line), self._place.directory / f"{instance}.console", show) as (process, console):
            self._processes.append(process)
            if self._is_over:
                raise Failed(_OVER)
            yield _PlainGuest(process, console)

    def kill(self) -> None:
        self._is_over = True
        for process in self._processes:
            process.kill()


class _Domain:
    def __init__(self, place: Place, libvirt: Libvirt, name: str, console: Console) -> None:
        self._place = place
        self._libvirt = libvirt
        self._name = name
        self.console = console

    def finish(self) -> None:
        self.console.wait_for_end()
        deadline = time.monotonic() + TIMEOUT
        while (state := self._libvirt.state(self._name)) != "shut off":
            if time.monotonic() > deadline:
                raise Failed(f"the guest of {self._name} has ended, and libvirt still calls it {state}")
            time.sleep(0.1)

    def stop(self) -> None:
        self._place.show(f"virsh destroy {self._name}")
        self._libvirt.virsh("destroy", self._name)


class UnderLibvirt:
    """Guests run by libvirt, as its own user for guests."""

    name = "libvirt"

    def __init__(self, place: Place, libvirt: Libvirt) -> None:
        self._place = place
        self._libvirt = libvirt
        self._is_over = False

    @contextlib.contextmanager
    def run(self, instance: str, agent: Path | None, show: Callable[[str], None]) -> Iterator[_Domain]:
        """The agent's socket is libvirt's own: `agent` is left alone."""
        xml = self._place.directory / f"{instance}.xml"
        xml.write_text(self._place.command("instance", "libvirt", instance, "--accel", "tcg"))
        self._place.plain("chmod", "o+x", str(self._place.instance(instance)))
        self._virsh("define", str(xml))
        try:
            self._virsh("start", instance)
            try:
                if self._is_over:
                    raise Failed(_OVER)
                terminal = os.open(self._libvirt.virsh("ttyconsole", instance).strip(), os.O_RDWR | os.O_NOCTTY)
                with Console(terminal, terminal, self._place.directory / f"{instance}.console", show) as console:
                    yield _Domain(self._place, self._libvirt, instance, console)
            finally:
                if self._libvirt.state(instance) != "shut off":
                    self._virsh("destroy", instance)
        finally:
            self._virsh("undefine", instance, "--keep-nvram")

    def kill(self) -> None:
        self._is_over = True
        for domain in self._libvirt.virsh("list", "--name").split():
            with contextlib.suppress(Failed):  # it has just ended by itself
                self._libvirt.virsh("destroy", domain)

    def _virsh(self, *words: str) -> None:
        self._place.show(f"virsh {shlex.join(words)}")
        self._libvirt.virsh(*words)

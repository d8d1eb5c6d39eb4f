"""This module is `imagefs instance qemu` and `imagefs instance libvirt`: how an instance is run."""

import os
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Final

import click

from imagefs.cli.errors import print_line
from imagefs.cli.instance_guest import instance_directory, read_guest
from imagefs.cli.invocation import PATH, Invocation, pass_invocation
from imagefs.cli.libvirt import domain_xml
from imagefs.cli.machine.model import Machine, Surroundings
from imagefs.cli.machine.plan import plan_machine
from imagefs.cli.mountpoint import explained, find_mount
from imagefs.cli.qemu import choose_accelerator, command_line, tpm_command
from imagefs.errors import ImagefsError, NotFound

_CPUINFO: Final = Path("/proc/cpuinfo")
_KVM: Final = Path("/dev/kvm")
_RUN: Final = Path("/run")
_ACCELERATOR_HELP: Final = "The accelerator; by default kvm if this host can use it and is not itself a guest."


@click.command("qemu", short_help="Print or run a QEMU command that runs an instance.")
@click.argument("name")
@click.option("--accel", type=click.Choice(["kvm", "tcg"]), help=_ACCELERATOR_HELP)
@click.option("--qmp", type=PATH, metavar="PATH", help="Have a control socket at PATH; snapshots of direct disks need one.")
@click.option("--agent-socket", type=PATH, metavar="PATH", help="Where the guest agent's socket is to be, if the image has an agent.")
@click.option("--tpm-state", type=PATH, metavar="DIRECTORY", help="Where the TPM's state is kept, if the image asks for a TPM.")
@click.option("--exec", "is_run", is_flag=True, help="Run the command in place of this one.")
@pass_invocation
def instance_qemu(
    invocation: Invocation, name: str, accel: str | None, qmp: Path | None, agent_socket: Path | None, tpm_state: Path | None, *, is_run: bool
) -> None:
    """Print a shell command that runs the instance NAME in QEMU, or run it.

    It is made from the flavor, the image's properties and the disks. The guest's serial console is on the terminal; Ctrl-A X ends it.
    """
    what = f"instance qemu {name}"
    mount = find_mount(invocation)
    with explained(what, mount):
        guest = read_guest(mount, name, what)
    surroundings = Surroundings(
        accel or _accelerator(), _absolute(agent_socket) or default_agent_socket(guest.uuid), _absolute(qmp), _absolute(tpm_state)
    )
    machine = plan_machine(guest, surroundings)
    command = command_line(machine)
    if is_run:
        _run(machine, command, what)
    before = ""
    if machine.tpm is not None:
        before = f"{shlex.join(['mkdir', '-p', '-m', '0700', str(machine.tpm.state)])} && {shlex.join(tpm_command(machine.tpm))} && exec "
    click.echo(before + shlex.join(command))


@click.command("libvirt", short_help="Print libvirt's domain XML for an instance.")
@click.argument("name")
@click.option("--accel", type=click.Choice(["kvm", "tcg"]), help=_ACCELERATOR_HELP)
@click.option("--network", metavar="NETWORK", help="Connect libvirt's network of that name, or QEMU's own with the name user; by default none.")
@click.option("--console-log", type=PATH, metavar="FILE", help="Copy what the guest says on its serial console to FILE.")
@pass_invocation
def instance_libvirt(invocation: Invocation, name: str, accel: str | None, network: str | None, console_log: Path | None) -> None:
    """Print libvirt's domain XML for the instance NAME, with the meaning of instance qemu: virsh define takes it."""
    what = f"instance libvirt {name}"
    mount = find_mount(invocation)
    with explained(what, mount):
        guest = read_guest(mount, name, what)
        mode = instance_directory(mount, name).stat().st_mode
    machine = plan_machine(guest, Surroundings(accel or _accelerator()))
    if not mode & stat.S_IXOTH:
        print_line(f"note: {what}: libvirt runs guests as a user of its own: let it pass with chmod o+x {mount / 'instances' / name}")
    log = _absolute(console_log)
    click.echo(domain_xml(machine, network, str(log) if log is not None else None))


def default_agent_socket(uuid: str) -> Path | None:
    """Return where the guest agent's socket of an instance is unless the user names another place: a directory that is there, and private.

    None if there is none: everybody may take names in /tmp.
    """
    directory = os.environ.get("XDG_RUNTIME_DIR") or (str(_RUN) if os.geteuid() == 0 else None)
    return Path(directory) / f"imagefs-{uuid}.agent" if directory and Path(directory).is_dir() else None


def _run(machine: Machine, command: list[str], what: str) -> None:
    """Become QEMU. Returns never; raises ImagefsError."""
    try:
        if machine.tpm is not None and machine.tpm.state is not None:
            machine.tpm.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            subprocess.run(tpm_command(machine.tpm), check=True)
        os.execvp(command[0], command)  # noqa: S606 -- a fixed program with a list of words
    except FileNotFoundError as error:
        raise NotFound(f"{what}: there is no {command[0]} or, for a TPM, no swtpm here: install Debian's qemu-system-x86 and swtpm") from error
    except (OSError, subprocess.CalledProcessError) as error:
        raise ImagefsError(f"{what}: it cannot be run: {error}") from error


def _absolute(path: Path | None) -> Path | None:
    return path.absolute() if path is not None else None


def _accelerator() -> str:
    return choose_accelerator(_CPUINFO.read_text(encoding="utf-8"), kvm_usable=_can_use_kvm())


def _can_use_kvm() -> bool:
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True

"""Errors become one line and an exit status."""

import signal
import subprocess
import sys

import click
import pytest

from imagefs import errors as domain
from imagefs.cli.errors import exit_status, lines_of, run
from imagefs.cli.main import COMMANDS, imagefs


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (domain.NotFound("x"), 1),
        (domain.ConfigError("f", ["x"]), 1),
        (OSError(5, "x"), 1),
        (ValueError("x"), 1),
        (click.UsageError("x"), 2),
        (click.BadParameter("x"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_status_is_by_class(error: BaseException, status: int) -> None:
    """0, 1, 2 and 130 are all there is."""
    assert exit_status(error) == status


def test_a_configuration_has_a_line_for_each_mistake() -> None:
    """Each line names the file."""
    assert lines_of(domain.ConfigError("/x", ["a: b", "c: d"])) == ["configuration /x: a: b", "configuration /x: c: d"]


def test_os_errors_name_their_file() -> None:
    """What the system says comes with what it is about, not with a number."""
    assert lines_of(FileNotFoundError(2, "No such file", "/x/y")) == ["/x/y: No such file"]
    assert lines_of(OSError(28, "No space left")) == ["No space left"]


@pytest.mark.parametrize("text", ["one\ntwo", "\x1b[31mred", "left\u202eright", "tab\there"])
def test_a_message_is_one_line_and_moves_no_cursor(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Names in messages are somebody else's: their control characters are escaped."""

    @click.command()
    def failing() -> None:
        raise domain.NotFound(text)

    assert run(failing, "imagefs", []) == 1
    said = capsys.readouterr().err
    assert said.startswith("imagefs: ")
    assert said.count("\n") == 1
    assert said.rstrip("\n").isprintable()


def test_the_unexpected_has_no_traceback_unless_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of imagefs's own is one line; IMAGEFS_DEBUG adds where it happened."""

    @click.command()
    def failing() -> None:
        raise KeyError("oops")

    assert run(failing, "imagefs", []) == 1
    said = capsys.readouterr().err
    assert said.splitlines() == ["imagefs: unexpected KeyError: 'oops': run it again with IMAGEFS_DEBUG=1 for a traceback, and report that"]
    monkeypatch.setenv("IMAGEFS_DEBUG", "1")
    assert run(failing, "imagefs", []) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "ignored"), [(signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGHUP, True)])
def test_a_signal_lets_a_command_clean_up(number: signal.Signals, ignored: bool) -> None:
    """A terminal that goes away ends a command as SIGTERM does, however often it says so; under nohup it does not."""
    program = """
import os, signal, sys
from imagefs.cli.errors import end_on_sigterm
end_on_sigterm()
try:
    os.kill(os.getpid(), int(sys.argv[1]))
finally:
    if sys.argv[1] == str(int(signal.SIGHUP)):
        os.kill(os.getpid(), signal.SIGHUP)
    print("cleaned up")
"""

    def ignore() -> None:
        if ignored:
            signal.signal(number, signal.SIG_IGN)

    command = [sys.executable, "-c", program, str(int(number))]
    child = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=ignore)
    assert (child.returncode, child.stdout) == (0 if ignored else 128 + number, "cleaned up\n")


def test_an_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends a command with 130."""

    @click.command()
    def waiting() -> None:
        raise KeyboardInterrupt

    assert run(waiting, "imagefs", []) == 130
    assert capsys.readouterr().err.strip() == "imagefs: interrupted"


@pytest.mark.parametrize(
    ("arguments", "command", "reason"),
    [
        (["imag"], "imagefs", "No such command 'imag'"),
        (["image", "list", "--colour"], "imagefs image list", "No such option"),
        (["image", "list", "-f", "xml"], "imagefs image list", "Invalid value for '-f'"),
        (["instance", "create", "x"], "imagefs instance create", "Missing option '--image'"),
        (["mount"], "imagefs mount", "no MOUNTPOINT is given"),
    ],
)
def test_usage_errors_are_one_line_with_a_way_on(arguments: list[str], command: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line has status 2 and a line that leads to --help."""
    assert run(imagefs, "imagefs", arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"imagefs: {command.removeprefix('imagefs').strip()}".rstrip())
    assert reason in said
    assert said.endswith(f": see {command} --help\n")


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command of the table can be imported, and its --help ends with 0."""
    for group, commands in COMMANDS.items():
        for command in commands:
            path = [command] if group == "imagefs" else [*group.split(), command]
            assert run(imagefs, "imagefs", [*path, "--help"]) == 0
            assert "Usage:" in capsys.readouterr().out


def test_a_group_alone_shows_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """`imagefs image` is a wrong command line, answered with the list of its commands."""
    assert run(imagefs, "imagefs", ["image"]) == 2
    assert "create" in capsys.readouterr().err

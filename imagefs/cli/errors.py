"""This module is the one table from errors to exit status, and the one place where an error becomes a line for a user.

    0     done
    1     failed
    2     the command line is wrong
    130   interrupted

A line reads `imagefs: WHAT: WHY: WHAT NEXT`. No traceback is shown unless IMAGEFS_DEBUG is set in the environment.
"""

import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

import click

from imagefs.errors import ConfigError, ImagefsError
from imagefs.log import escaped

EXIT_STATUS: Final[Mapping[type[BaseException], int]] = {
    click.UsageError: 2,
    click.exceptions.Abort: 128 + signal.SIGINT,
    KeyboardInterrupt: 128 + signal.SIGINT,
    BaseException: 1,
}


def exit_status(error: BaseException) -> int:
    """Return the exit status of an error: by its class or the nearest parent in the table."""
    return next(EXIT_STATUS[kind] for kind in type(error).__mro__ if kind in EXIT_STATUS)


def lines_of(error: BaseException) -> list[str]:
    """Return what to tell the user of an error: one line, or one for each mistake in a configuration."""
    match error:
        case ConfigError():
            return [f"configuration {error.source}: {mistake}" for mistake in error.mistakes]
        case ImagefsError():
            return [str(error)]
        case click.UsageError():
            command = error.ctx.command_path if error.ctx is not None else "imagefs"
            what = f"{command.partition(' ')[2]}: ".removeprefix(": ")
            return [f"{what}{error.format_message().rstrip('.')}: see {command} --help"]
        case click.ClickException():
            return [error.format_message()]
        case KeyboardInterrupt() | click.exceptions.Abort():
            return ["interrupted"]
        case OSError() if error.strerror is not None:
            return [f"{os.fsdecode(error.filename)}: {error.strerror}" if isinstance(error.filename, str | bytes) else error.strerror]
        case _:
            return [f"unexpected {type(error).__name__}: {error}: run it again with IMAGEFS_DEBUG=1 for a traceback, and report that"]


def report(error: BaseException) -> None:
    """Print an error's lines on standard error."""
    if os.environ.get("IMAGEFS_DEBUG"):
        traceback.print_exception(error)
    for line in lines_of(error):
        print_line(line)


def print_line(line: str) -> None:
    """Print one line for the user on standard error; nothing in it can move a terminal's cursor."""
    click.echo(f"imagefs: {escaped(line)}", err=True)


def run(command: click.Command, program: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command with `arguments` (None: the process's) and return its exit status; whatever goes wrong is one line."""
    try:
        result = command.main(arguments, prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return exit_status(error)
    except BrokenPipeError:  # who reads the output has gone, as head(1) does; that is nothing to talk of
        sys.stdout = None  # or the interpreter would try to flush it at its end
        return 1
    except SystemExit:
        raise
    except BaseException as error:
        report(error)
        return exit_status(error)
    return result if isinstance(result, int) else 0


def fill_standard_descriptors() -> None:
    """Lead those of standard input, output and error that are closed nowhere: another file would get such a number, and be taken for it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open as long as the process
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def end_on_sigterm() -> None:
    """Let SIGTERM unwind the stack as SIGINT does, so that half-made files and instances are removed; and SIGHUP, unless nohup(1) ignores it."""

    def end(number: int, _: object) -> NoReturn:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)  # the kernel and the shell each send one: the second must not cut the removal short
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, end)

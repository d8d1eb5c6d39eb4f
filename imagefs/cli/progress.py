"""This module shows how far long work has come: a bar on standard error if that is a terminal, nothing in a pipe."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from imagefs.log import escaped
from imagefs.store.protocol import Progress as Advance


@contextlib.contextmanager
def transfer(what: str, size: int) -> Iterator[Advance]:
    """Show the moving of `size` bytes; the function given is told of bytes moved since its last call."""
    moved = 0

    def advance(more: int) -> None:
        nonlocal moved
        moved += more
        show(moved, size)

    with watch(what) as show:
        show(0, size)
        yield advance


@contextlib.contextmanager
def watch(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show work that is done elsewhere; the function given is told how many bytes are done, and of how many (0: not known yet)."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(escaped(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)

"""This module shows how far long work has come: a bar on standard error if that is a terminal, nothing in a pipe."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from imagefs.log import escaped
from imagefs.store.protocol import Progress as Advance


@contextlib.contextmanager
def transfer(what: str, size: int) -> Iterator[Advance]:
    """Show the moving of `size` bytes; the function given is told of bytes moved since its last call."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(escaped(what), total=size)
        yield lambda moved: bar.advance(task, moved)

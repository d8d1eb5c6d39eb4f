"""This module prints what commands have found: as a table, as JSON, or as bare values for scripts.

Tables have borders on a terminal, unless they are very long, and none in a pipe. Control characters are escaped in tables and values: an image's name
comes from whoever made it. JSON has every value as it is.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

import click
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from imagefs.errors import ImagefsError, InvalidInput
from imagefs.log import escaped

BORDERED: Final = 500
"""Rows of a table that is drawn with borders on a terminal: rich takes milliseconds for each, and nobody looks at more at once."""
FORMATS: Final = ("table", "json", "value")
F = TypeVar("F", bound=Callable[..., object])


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """What -f and -c ask for: a format, and the columns or fields to show, all if there are none."""

    format: str = "table"
    columns: tuple[str, ...] = ()


def output_options(function: F) -> F:
    """Give a command -f and -c; it takes them as `shape`."""

    def remember(context: click.Context, parameter: click.Parameter, value: object) -> None:
        before = context.params.get("shape", Shape())
        context.params["shape"] = dataclasses.replace(before, **{"format" if parameter.name == "format_" else "columns": value})

    function = click.option(
        "-c",
        "--column",
        "columns",
        multiple=True,
        metavar="COLUMN",
        expose_value=False,
        callback=remember,
        help="Show this column only; may be repeated.",
    )(function)
    return click.option(
        "-f",
        "--format",
        "format_",
        type=click.Choice(FORMATS),
        default="table",
        expose_value=False,
        callback=remember,
        help="How to print the result.",
    )(function)


def check_columns(shape: Shape, known: Sequence[str]) -> None:
    """Raise click.BadParameter for a wanted column that is not among the known ones: before a command makes what it would print."""
    for wanted in shape.columns:
        if wanted.lower() not in map(str.lower, known):
            raise click.BadParameter(f"there is no column '{wanted}': choose from {', '.join(known)}", param_hint="-c")


def print_list(columns: Sequence[str], rows: Iterable[Sequence[object]], shape: Shape) -> None:
    """Print rows under column names. Raises click.BadParameter for a column that is not among them."""
    check_columns(shape, columns)
    names, chosen = _choose(columns, shape.columns)
    picked = [[row[index] for index in chosen] for row in rows]
    if shape.format == "json":
        _print_lines([json.dumps([dict(zip(names, row, strict=True)) for row in picked], indent=2, ensure_ascii=False)])
    elif shape.format == "value":
        _print_lines(" ".join(_cell(value, "None") for value in row) for row in picked)
    else:
        _print_table(names, [[_cell(value) for value in row] for row in picked])


def print_object(fields: Mapping[str, object], shape: Shape, what: str, optional: Sequence[str] = ()) -> None:
    """Print one object, called `what` in messages. Raises InvalidInput for a field that it does not have.

    `optional` are fields that such an object may have: one that is asked for and absent has no value.
    """
    asked = [wanted.lower() for wanted in shape.columns]
    fields = {name: fields.get(name) for name in (*optional, *fields) if name in fields or name.lower() in asked}
    for wanted in shape.columns:
        if wanted.lower() not in map(str.lower, fields):
            raise InvalidInput(f"{what} has no '{wanted}': it has {', '.join(fields)}")
    names, chosen = _choose(list(fields), shape.columns)
    values = list(fields.values())
    picked = {name: values[index] for name, index in zip(names, chosen, strict=True)}
    if shape.format == "json":
        _print_lines([json.dumps(picked, indent=2, ensure_ascii=False)])
    elif shape.format == "value":
        _print_lines(_cell(value, "None") for value in picked.values())
    else:
        _print_table(["Field", "Value"], [[escaped(name), _cell(value)] for name, value in picked.items()])


def _choose(names: Sequence[str], wanted: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return names and positions of the wanted columns in their own order, all if none is named; case does not matter."""
    lower = [word.lower() for word in wanted]
    positions = [index for index, name in enumerate(names) if not lower or name.lower() in lower]
    return [names[index] for index in positions], positions


def _cell(value: object, nothing: str = "") -> str:
    """Return a value as one line of text."""
    if value is None:
        return nothing
    if isinstance(value, bool):
        return str(value).lower()
    return escaped(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if sys.stdout.isatty() and len(rows) <= BORDERED:
        table = Table(*(Column(escape(name), overflow="fold") for name in names))
        table.columns[0].no_wrap = True  # ids are copied with a double click
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    widths = [max(map(cell_len, column)) for column in zip(names, *rows, strict=True)]
    _print_lines("  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (names, *rows))


def _print_lines(lines: Iterable[str]) -> None:
    """Print lines in one go: each echo is flushed, which takes longer than all else for a list of thousands. Raises ImagefsError."""
    text = "".join(f"{line}\n" for line in lines)
    try:
        click.echo(text, nl=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ImagefsError(f"the result cannot be written to standard output: {error.strerror}: what the command did stays done") from error

"""This module is the options that name a visibility: --visibility and a flag for each of its words."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from imagefs.store.record import VISIBILITIES

F = TypeVar("F", bound=Callable[..., object])


def visibility_options(help_text: str, *more: str) -> Callable[[F], F]:
    """Give a command --visibility, described by `help_text`, and a flag for each word; `more` are words beside Glance's four."""

    def decorate(function: F) -> F:
        words = (*VISIBILITIES, *more)
        for word in reversed(words):
            function = click.option(f"--{word}", word, is_flag=True, help=f"The same as --visibility {word}.")(function)
        return click.option("--visibility", type=click.Choice(words), help=help_text)(function)

    return decorate


def chosen_visibility(wanted: Mapping[str, Any]) -> str | None:
    """Return the visibility that the options ask for, None if they do not. Raises click.UsageError if they ask for several."""
    chosen = {word for word in (*VISIBILITIES, "all") if wanted.get(word)} | ({wanted["visibility"]} - {None})
    if len(chosen) > 1:
        raise click.UsageError(f"choose one visibility, not {' and '.join(sorted(chosen))}", click.get_current_context(silent=True))
    return next(iter(chosen), None)

"""This module is one invocation of the command: its global options, and the configuration that they lead to."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from imagefs.config import Config, load

PATH: Final = click.Path(path_type=Path, readable=False)
"""A path that click does not look at: the mount there may be dead, and whoever opens it has more to say than "not readable"."""


@dataclasses.dataclass
class Invocation:
    """The global options: `config_path` of -c and `mountpoint` of -m, None where they were not given."""

    config_path: Path | None = None
    mountpoint: Path | None = None
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What -o options of a mount say, by dotted key."""

    @functools.cached_property
    def config(self) -> Config:
        """The configuration, read when it is first needed. Raises ConfigError."""
        return load(self.config_path, self.overrides)


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)

"""This module is the children of a directory, made as they are asked for: of a hundred thousand only what they are made from is kept."""

import functools
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

from imagefs.files.node import Node

T = TypeVar("T")
Child = tuple[str, Callable[[], Node]]


class MadeChildren(Sequence[Child], Generic[T]):
    """Names and nodes of things."""

    def __init__(self, things: Sequence[T], name: Callable[[T], str], give: Callable[[T], Node]) -> None:
        """`name` returns a thing's name, `give` its node."""
        self._things = things
        self._name = name
        self._give = give

    def __len__(self) -> int:
        return len(self._things)

    @overload
    def __getitem__(self, index: int) -> Child: ...
    @overload
    def __getitem__(self, index: slice) -> "MadeChildren[T]": ...
    def __getitem__(self, index: int | slice) -> "Child | MadeChildren[T]":
        if isinstance(index, slice):
            return MadeChildren(self._things[index], self._name, self._give)
        thing = self._things[index]
        return self._name(thing), functools.partial(self._give, thing)

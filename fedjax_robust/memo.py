"""Factories that give the same part for equal arguments.

A program is compiled for its simulation, and functions are equal only if they are the same: without this
``trimmed_mean(4)`` twice would be two rules, and the second, equal run would compile again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Factory = TypeVar("Factory", bound=Callable[..., Any])

_KEPT = 256  # results per factory; older ones are forgotten, and what they hold with them


def same_for_equal_arguments(factory: Factory) -> Factory:
    """A factory that returns the object it made before if its arguments are equal, and of equal types.

    Arguments that cannot be hashed, such as arrays, make a new object each time.
    """
    signature = inspect.signature(factory)

    @functools.lru_cache(_KEPT)
    def made(key: _Arguments) -> Any:
        return factory(*key.bound.args, **key.bound.kwargs)

    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            key = _Arguments(bound)
        except TypeError:  # not hashable, or a call that the factory refuses in its own words
            key = None
        return factory(*args, **kwargs) if key is None else made(key)

    make.cache_clear = made.cache_clear  # type: ignore[attr-defined]
    return make  # type: ignore[return-value]


class _Arguments:
    """Arguments that are equal if values and types are: 1, 1.0 and True are different."""

    def __init__(self, bound: inspect.BoundArguments) -> None:
        self.bound = bound
        self.key = _typed(tuple(bound.arguments.items()))
        self.hash = hash(self.key)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Arguments) and self.key == other.key


def _typed(value: Any) -> Any:
    if isinstance(value, tuple):
        return type(value), tuple(map(_typed, value))
    if isinstance(value, dict):
        return dict, tuple((name, _typed(v)) for name, v in value.items())
    return type(value), value

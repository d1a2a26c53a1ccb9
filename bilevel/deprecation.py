"""Old names of public things: each still works for one release and warns which name to use.

`RENAMED` is the one table of them. Modules find theirs through `moved_names`, classes through `renamed`, registries
through `current_key`.
"""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

C = TypeVar("C", bound=type)


class Renamed(NamedTuple):
    """One row: in `place`, what was called `old` is called `new`.

    A place is a module (for its names), a class (for an argument of its constructor and the attribute of that name) or
    a registry (for a key).
    """

    place: str
    old: str
    new: str


RENAMED = (
    Renamed("bilevel", "GaussNewton", "RankOneGaussNewton"),
    Renamed("bilevel.hypergradients", "GaussNewton", "RankOneGaussNewton"),
    Renamed("bilevel.hypergradients.METHODS", "gauss_newton", "rank_one_gauss_newton"),
    Renamed("bilevel.hypergradients.METHODS", "gauss_newton_as_published", "rank_one_gauss_newton_as_published"),
    Renamed("bilevel.events", "Hook", "Callback"),
    Renamed("bilevel.reweighting", "LossNetworkWeights", "MetaWeightNet"),
    Renamed("bilevel.reweighting", "OnlineWeights", "L2RW"),
    Renamed("bilevel.schedule.Schedule", "inner_batches", "inner_batches_per_step"),
    Renamed("bilevel.trainer.BilevelTrainer", "hooks", "callbacks"),
)


def _renamed_in(place: str) -> dict[str, str]:
    return {row.old: row.new for row in RENAMED if row.place == place}


def _warn(place: str, old: str, new: str, stacklevel: int = 3) -> None:
    warnings.warn(
        f"{place}: `{old}` is now called `{new}`; the old name goes with the next release.",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


def moved_names(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module whose old names lead to the new ones."""
    names = _renamed_in(module)

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(module, name, names[name])
        return getattr(importlib.import_module(module), names[name])

    return find


def renamed(cls: C) -> C:
    """A class decorator: old names of arguments and attributes lead to the new ones.

    Raises:
        TypeError: from the constructor, if it is given an argument under both names.
    """
    names = _renamed_in(f"{cls.__module__}.{cls.__qualname__}")
    made: Any = cls
    construct = made.__init__

    @functools.wraps(construct)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        for old, new in names.items():
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{cls.__name__} was given both `{new}` and its old name `{old}`.")
                _warn(cls.__name__, old, new)
                kwargs[new] = kwargs.pop(old)
        construct(self, *args, **kwargs)

    made.__init__ = init
    for old, new in names.items():
        setattr(made, old, property(functools.partial(_attribute, cls.__name__, old, new)))
    return cls


def _attribute(place: str, old: str, new: str, instance: Any) -> Any:
    _warn(place, old, new)
    return getattr(instance, new)


def current_key(registry: str, key: str) -> str:
    """The key of a registry for a key, or for an old name of it."""
    names = _renamed_in(registry)
    if key not in names:
        return key
    _warn(registry, key, names[key], stacklevel=5)  # the caller of `hypergradient`
    return names[key]

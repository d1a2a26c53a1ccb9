"""Settings as nested frozen dataclasses: one check for what comes from flags, from a file or from Python.

A field's annotation says what it may be: its type, and beside it a `Range` or `OneOf`:

    width: Annotated[float, Range(0, 4, above=True)] = 1.0

Fields that are dataclasses are groups. A setting is named by its path, `"vfm.size"`, or by its last name alone where no
other setting has that name, or where its group is `BARE`. Annotations and docstrings are also what flags and their help
are made of (`istd.cli.flags`).
"""

import difflib
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from bilevel.registry import Registry

T = TypeVar("T")


class Range(NamedTuple):
    """What a number may be: `low <= x <= high`.

    Attributes:
        low: smallest value, or with `above` the bound that it must exceed.
        high: largest value, or with `below` the bound that it must stay under; None has no bound.
        above: exclude `low` itself.
        below: exclude `high` itself.
        infinite: allow infinity; without it a number is finite even where `high` is None.
    """

    low: float
    high: float | None = None
    above: bool = False
    below: bool = False
    infinite: bool = False

    def __contains__(self, x: object) -> bool:
        if not isinstance(x, int | float) or math.isnan(x) or (math.isinf(x) and not self.infinite):
            return False
        high = math.inf if self.high is None else self.high
        return (x > self.low if self.above else x >= self.low) and (x < high if self.below else x <= high)

    def __str__(self) -> str:
        if self.high is not None:
            return f"lie in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"
        if self == Range(1):
            return "be at least 1"
        sign = "greater than" if self.above else "at least"
        return f"be a {'' if self.infinite else 'finite '}number {sign} {self.low:g}"


@dataclass(frozen=True)
class OneOf:
    """What a name may be.

    Attributes:
        names: a registry, whose names may grow, or a tuple.
    """

    names: Registry[Any] | tuple[str, ...]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def check(self, field: str, name: str) -> None:
        """Refuse an unknown name.

        Raises:
            ValueError: naming the known ones.
        """
        if isinstance(self.names, Registry):
            self.names[name]
        elif name not in self.names:
            raise ValueError(f"`{field}` must be one of {', '.join(self.names)}, got {name!r}.")


BARE = {"bare": True}
"""Metadata of a group's field: its settings go by their last names, in flags and files."""


class Setting(NamedTuple):
    """One field of a settings tree.

    Attributes:
        kind: `bool`, `int`, `float` or `str`.
        optional: whether None is allowed.
        range: of a number.
        choices: of a name.
        bare: whether its last name alone means it: it is in no group, or in one whose field has `metadata=BARE`.
    """

    kind: type
    optional: bool
    range: Range | None
    choices: OneOf | None
    bare: bool = True


_KNOWN: dict[type, dict[str, Setting]] = {}


def settings_of(group: type) -> dict[str, Setting]:
    """The settings of a dataclass by their paths, those of its groups included."""
    if group in _KNOWN:
        return _KNOWN[group]
    found: dict[str, Setting] = {}
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        hint = hints[field.name]
        if is_dataclass(hint):
            bare = bool(field.metadata.get("bare"))
            for path, setting in settings_of(hint).items():  # type: ignore[arg-type]
                found[f"{field.name}.{path}"] = setting._replace(bare=bare and setting.bare)
        else:
            found[field.name] = _setting(hint)
    _KNOWN[group] = found
    return found


def _setting(hint: Any) -> Setting:
    extras: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        extras = tuple(rest)
    optional = get_origin(hint) in (types.UnionType, Union)
    if optional:
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    limits = next((e for e in extras if isinstance(e, Range)), None)
    return Setting(hint, optional, limits, next((e for e in extras if isinstance(e, OneOf)), None))


def check(group: Any) -> None:
    """Check every field of a frozen dataclass, in its `__post_init__`; numbers of other libraries become plain ones.

    Raises:
        ValueError: naming the field, the value and what is allowed.
    """
    hints = get_type_hints(type(group), include_extras=True)
    for field in fields(group):
        value, hint = getattr(group, field.name), hints[field.name]
        if is_dataclass(hint):
            if not isinstance(value, hint):  # type: ignore[arg-type]
                raise ValueError(f"`{field.name}` must be a {hint.__name__}, got {value!r}.")  # type: ignore[union-attr]
        else:
            setting = _setting(hint)
            object.__setattr__(
                group,
                field.name,
                checked(field.name, value, setting.kind, setting.optional, setting.range, setting.choices),
            )


def checked(
    name: str,
    value: Any,
    kind: type,
    optional: bool = False,
    limits: Range | None = None,
    choices: OneOf | tuple[str, ...] | None = None,
) -> Any:
    """A setting's value as plain data of its type.

    An integer serves as a float; nothing else is converted: neither "3" nor true is a number, "false" is no bool.

    Args:
        name: of the setting, for the message.
        value: what was given.
        kind: `bool`, `int`, `float` or `str`.
        optional: allow None.
        limits: of a number.
        choices: of a name.

    Raises:
        ValueError: naming the setting, the value and what is allowed.
    """
    if value is None and optional:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind:
        wanted = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}[kind]
        raise ValueError(f"`{name}` must be {wanted}{' or null' if optional else ''}, got {value!r}.")
    if limits is not None and value not in limits:
        raise ValueError(f"`{name}` must {limits}, got {value!r}.")
    if choices is not None:
        (choices if isinstance(choices, OneOf) else OneOf(choices)).check(name, str(value))
    return value


def changed(group: T, changes: Mapping[str, Any], where: str = "") -> T:
    """The same settings with some of them changed, each named by its path or its last name.

    Args:
        group: a frozen dataclass.
        changes: new values.
        where: what the group is called in messages.

    Raises:
        ValueError: for an unknown name (the message names the nearest one), a name that several settings have, or an
            impossible value.
    """
    return _applied(group, {path_of(type(group), name, where): value for name, value in changes.items()})


def _applied(group: T, values: Mapping[str, Any], above: str = "") -> T:
    new: dict[str, Any] = {}
    for field in fields(group):  # type: ignore[arg-type]
        path, old = f"{above}{field.name}", getattr(group, field.name)
        if is_dataclass(old):
            if any(name.startswith(f"{path}.") for name in values):
                new[field.name] = _applied(old, values, f"{path}.")
        elif path in values:
            new[field.name] = values[path]
    return replace(group, **new)  # type: ignore[type-var]


def path_of(group: type, name: str, where: str = "") -> str:
    """The path of a setting that is named by it or by its last name.

    Raises:
        ValueError: for an unknown name, or one that several settings have.
    """
    known = settings_of(group)
    if name in known:
        return name
    found = [path for path in known if path.rpartition(".")[2] == name]
    bare = [path for path in found if known[path].bare]
    if len(bare or found) == 1:
        return (bare or found)[0]
    if found:
        raise ValueError(f"`{name}` may be {' or '.join(found)}; give the whole name.")
    raise ValueError(f"{where or group.__name__} has no setting {name!r}; {nearest(name, known)}")


def flat(group: Any) -> dict[str, Any]:
    """Every setting's value by its path."""
    return {path: value_at(group, path) for path in settings_of(type(group))}


def nested(group: Any) -> dict[str, Any]:
    """Plain data in groups."""
    return asdict(group)


def with_infinities(group: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a file, in which `"inf"` and `"-inf"` stand for the numbers that JSON lacks."""
    known = settings_of(group)
    return {
        name: float(value) if value in ("inf", "-inf") and name in known and known[name].kind is float else value
        for name, value in values.items()
    }


def value_at(group: Any, path: str) -> Any:
    """The value of the setting with this path."""
    for part in path.split("."):
        group = getattr(group, part)
    return group


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """A hint at the known name that looks most like one that is not."""
    last = {path.rpartition(".")[2]: path for path in known}
    close = difflib.get_close_matches(name, [*known, *last], 1, cutoff=0.6)
    return f"did you mean {last.get(close[0], close[0])!r}?" if close else f"known: {', '.join(sorted(known))}"

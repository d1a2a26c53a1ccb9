"""One check for settings, whether they come from flags, from a file or from Python: types, ranges and names.

A dataclass says the type of each setting; beside it stand what a number may be (`Range`) and what a name may be (a
registry or a tuple). `checked` enforces all of it on one value, `read_settings` on a JSON file.
"""

import difflib
import json
import math
import types
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import numpy as np

from bilevel.registry import Registry

Choices = Registry[Any] | tuple[str, ...]


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


def plain_type(hint: Any) -> tuple[type, bool]:
    """`(int, False)` for `int`, `(int, True)` for `int | None`."""
    optional = isinstance(hint, types.UnionType)
    if optional:
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    assert isinstance(hint, type)
    return hint, optional


def checked(name: str, value: Any, hint: Any, limits: Range | None = None, choices: Choices | None = None) -> Any:
    """A setting's value as plain data of its type.

    An integer serves as a float; nothing else is converted: neither "3" nor true is a number, "false" is no bool.

    Args:
        name: of the setting, for the message.
        value: what was given.
        hint: `bool`, `int`, `float`, `str`, or one of them or None.
        limits: of a number.
        choices: of a name.

    Raises:
        ValueError: naming the setting, the value and what is allowed.
    """
    kind, optional = plain_type(hint)
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
    if isinstance(choices, Registry):
        choices[str(value)]  # raises with the known names
    elif choices is not None and value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
    return value


def check_fields(settings: Any, limits: Mapping[str, Range], choices: Mapping[str, Choices]) -> None:
    """Check every field of a frozen dataclass in its `__post_init__`, and keep the values of `checked`."""
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        name = field.name
        value = checked(name, getattr(settings, name), hints[name], limits.get(name), choices.get(name))
        object.__setattr__(settings, name, value)


def read_settings(path: Path, known: type, flag: str) -> dict[str, Any]:
    """Fields of the dataclass `known` from a JSON file; `"inf"` stands for infinity, as `write_json` writes it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON object, names an unknown field, the same one twice, or holds NaN.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`{flag} {path}` is not a file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"`{flag} {path}` is not JSON ({reason}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"`{flag} {path}` must hold an object of fields, got a {type(content).__name__}.")
    hints = get_type_hints(known)
    for name in content:
        if name not in hints:
            raise ValueError(f"`{flag} {path}` names the unknown field {name!r}; {nearest(name, hints)}.")
        if plain_type(hints[name])[0] is float and content[name] in ("inf", "-inf"):
            content[name] = float(content[name])
    return content


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """A hint at the known name that looks most like one that is not."""
    close = difflib.get_close_matches(name, known, 1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def as_json(content: object) -> str:
    """Strict JSON text: infinity becomes `"inf"` or `"-inf"`, NaN becomes null; the standard knows neither."""
    return json.dumps(_strict(content), indent=2, allow_nan=False) + "\n"


def _strict(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else "inf" if content > 0 else "-inf"
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ValueError(f"the field {twice!r} stands twice")
    return dict(pairs)


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no value")
    return float(name)

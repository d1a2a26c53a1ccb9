"""Plain data in files: strict JSON, written atomically; settings also from YAML and TOML."""

import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bilevel.checkpoint import write_atomically

FORMATS = (".json", ".yaml", ".yml", ".toml")


def write_json(path: Path, content: object) -> None:
    """Write strict JSON atomically; see `as_json`."""
    text = as_json(content)
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        ValueError: if it is torn, or holds something else.
        OSError: if it cannot be read.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); was it torn or edited?") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object.")
    return content


def as_json(content: object) -> str:
    """Strict JSON text: infinity becomes `"inf"` or `"-inf"`, NaN becomes null; the standard knows neither."""
    return json.dumps(_strict(content), indent=2, allow_nan=False) + "\n"


def read_settings(path: Path) -> dict[str, Any]:
    """Settings by their paths from a JSON, YAML or TOML file of groups: `{"vfm": {"size": 64}}` is `vfm.size`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read as what its name says, holds no object, a name twice, or NaN.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`--config {path}` is not a file.")
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(f"`--config {path}` must end in {', '.join(FORMATS)}.")
    try:
        content = _parse(path.read_text(encoding="utf-8-sig"), kind)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        wanted = {".json": "JSON", ".toml": "TOML"}.get(kind, "YAML")
        raise ValueError(f"`--config {path}` is not {wanted} ({reason}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"`--config {path}` must hold an object of fields, got a {type(content).__name__}.")
    return _paths(content)


def _parse(text: str, kind: str) -> Any:
    if kind == ".json":
        return json.loads(text, object_pairs_hook=_once, parse_constant=_constant)
    if kind == ".toml":
        return tomllib.loads(text)
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a name that stands twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            return _once([(self.construct_object(k, True), self.construct_object(v, True)) for k, v in node.value])

    # YAML 1.1 takes `1e-3` for a text; for everybody else it is a number.
    exponent = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, [*"-+0123456789"])
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _paths(content: Mapping[Any, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in content.items():
        path = f"{above}{name}"
        if isinstance(value, dict) and value:
            found |= _paths(value, f"{path}.")
        else:
            found[path] = value
    return found


def _strict(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else "inf" if content > 0 else "-inf"
    return content


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ValueError(f"the field {twice!r} stands twice")
    return dict(pairs)


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no value")
    return float(name)

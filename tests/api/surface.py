"""The public surface of a package as text: what `tests/api/PACKAGE.txt` keeps.

    python -m tests.api.surface bilevel     # after a change that is meant

A module is public if it says what it exports (`__all__`).
"""

import importlib
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Container, Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
COMMAND = "python -m tests.api.surface"


def surface(package: str) -> str:
    """One line for every public name: its module, its kind and its signature."""
    lines: list[str] = []
    seen: dict[int, str] = {}
    for module in public_modules(package):
        lines.append(f"# {module.__name__}")
        for name in sorted(module.__all__, key=lambda name: (_depth(getattr(module, name)), name)):
            value = getattr(module, name)
            if id(value) in seen:
                lines.append(f"{name}: that of {seen[id(value)]}")
            else:
                seen[id(value)] = module.__name__
                lines += _lines(package, name, value, seen)
        lines.append("")
    return "\n".join(lines)


def _depth(value: object) -> int:
    """Bases come before what is derived from them."""
    return len(value.__mro__) if inspect.isclass(value) else 0


def public_modules(package: str) -> list:
    """The modules of a package that have an `__all__`, sorted by name."""
    root = importlib.import_module(package)
    names = [package, *(info.name for info in pkgutil.walk_packages(root.__path__, f"{package}."))]
    modules = [importlib.import_module(name) for name in sorted(names) if not name.endswith("__main__")]
    return [module for module in modules if hasattr(module, "__all__")]


def _lines(package: str, name: str, value: object, seen: Container[int]) -> Iterator[str]:
    if inspect.isclass(value):
        bases = [base.__name__ for base in value.__bases__ if base is not object]
        yield f"class {name}{_signature(value)}" + (f" of {', '.join(bases)}" if bases else "")
        for member in sorted(dir(value)):
            if not member.startswith("_") or (member == "__call__" and "__call__" in vars(value)):
                yield from _member(package, value, member, seen)
    elif inspect.isfunction(value):
        yield f"def {name}{_signature(value)}"
    elif typing.get_origin(value) is not None:
        yield f"{name}: alias"
    else:
        keys = ""
        if type(value).__name__ == "Registry":  # what other packages have registered is theirs
            keys = f" {[key for key in value if value[key].__module__.startswith(package)]}"
        yield f"{name}: {type(value).__name__}{keys}"


def _member(package: str, cls: type, name: str, seen: Container[int]) -> Iterator[str]:
    owner = next((base for base in cls.__mro__ if name in vars(base)), None)
    inherited = owner is not cls and id(owner) in seen
    if owner is None or inherited or not owner.__module__.startswith(package):
        return  # listed there; or of torch, enum or object
    value = vars(owner)[name]
    if isinstance(value, property):
        yield f"    {name}: property"
    elif isinstance(value, (staticmethod, classmethod)) or inspect.isfunction(value):
        kind = {staticmethod: "static ", classmethod: "class "}.get(type(value), "")
        yield f"    {kind}def {name}{_signature(getattr(cls, name))}"


def _signature(value: Callable) -> str:
    if getattr(value, "_is_protocol", False):
        return ""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    # Without annotations, which mypy checks and whose text depends on the versions of Python and numpy.
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=parameters, return_annotation=signature.empty))
    return re.sub(r" at 0x[0-9a-f]+", "", text)  # defaults that are functions


if __name__ == "__main__":
    for package in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.txt")):
        (FOLDER / f"{package}.txt").write_text(surface(package))

"""A registry of named records that refuses duplicates and lists its choices when a name is unknown."""

from collections.abc import Iterable, Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to records, for one `kind` of thing.

    Args:
        kind: what is registered, in the singular; it appears in error messages.

    Example:
        >>> colours = Registry("colour")
        >>> colours.register("red", 0xFF0000)
        >>> colours["red"] == 0xFF0000, list(colours)
        (True, ['red'])
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._records: dict[str, T] = {}

    def register(self, name: str, record: T) -> None:
        """Add `record` under `name`.

        Raises:
            ValueError: if the name is taken by another record; a registry never overwrites silently.
        """
        if name in self._records and self._records[name] != record:
            raise ValueError(f"A {self.kind} named {name!r} is registered already; choose another name.")
        self._records[name] = record

    def __getitem__(self, name: str) -> T:
        if name not in self._records:
            known = ", ".join(sorted(self._records)) or "none"
            raise ValueError(f"Unknown {self.kind} {name!r}; known ones: {known}.")
        return self._records[name]

    def __contains__(self, name: object) -> bool:
        return name in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._records))

    def __len__(self) -> int:
        return len(self._records)


def import_folder(package: str, path: Iterable[str]) -> None:
    """Import every file of a package, so that what a file registers is known as soon as the file is there.

    Args:
        package: its name, `__name__` in its `__init__.py`.
        path: its `__path__`.
    """
    for module in iter_modules(path):
        import_module(f"{package}.{module.name}")

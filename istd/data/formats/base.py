"""What the forms of points share: a source of points, and a table that refuses what is doubtful, line by line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import floor, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from istd.data.folder import Folder
from istd.data.names import normalised, without_extension
from istd.data.points import Points

Shape = tuple[int, int]
LARGEST = 2**31  # px: beyond any image


@dataclass(frozen=True)
class PointSource:
    """Where points come from, and the points of an image.

    Attributes:
        where: the file, folder or rule, for logs and records.
        read: `read(name, (H, W))` gives the `(n, 2)` rows and columns of the image's points.
    """

    where: str
    read: Callable[[str, Shape], Points]


@dataclass(frozen=True)
class PointFormat:
    """A form of points.

    Attributes:
        name: value of `--points`.
        about: what the form looks like on disk, in a few words.
        open: finds it in a folder, or returns None; raises ValueError, naming the file, if it is broken.
    """

    name: str
    about: str
    open: Callable[[Folder], PointSource | None]


@dataclass
class PointTable:
    """Points of many images out of one file, with checks that need all of it.

    Attributes:
        path: the file, for messages.
        folder: the set whose images it names.
        remedy: how the file says that an image has no target.
    """

    path: Path
    folder: Folder
    remedy: str
    _points: dict[str, dict[tuple[int, int], str]] = field(default_factory=dict)
    _called: dict[str, str] = field(default_factory=dict)
    _sizes: dict[str, Shape] = field(default_factory=dict)
    _unknown: list[str] = field(default_factory=list)
    _largest: float = 0.0
    _fractions: bool = False

    def image(self, text: str, where: str, size: Shape | None = None) -> str | None:
        """The image that the file calls `text`, from now on one of the table; None if the set has none.

        Args:
            text: as the file has it.
            where: place in the file, for messages.
            size: height and width that the file gives it.

        Raises:
            ValueError: if it may be several, or another path of the file is the same image.
        """
        try:
            name = self.folder.names.find(text)
        except ValueError as error:
            raise ValueError(f"{self.path}, {where}: {error}.") from None
        if name is None:
            self._unknown.append(text)
            return None
        plain = without_extension(normalised(text))
        if self._called.setdefault(name, plain) != plain:
            raise ValueError(
                f"{self.path}, {where}: {text!r} and {self._called[name]!r} in other folders would both be the image "
                f"{name!r}; name images alike throughout."
            )
        self._points.setdefault(name, {})
        if size is not None:
            self._sizes[name] = size
        return name

    def add(self, name: str, x: Any, y: Any, where: str) -> None:
        """Add a point; fractions are floored.

        Raises:
            ValueError: if x and y are no numbers, are not finite, or fall on the pixel of another point.
        """
        column, row = number(x), number(y)
        if column is None or row is None:
            raise ValueError(f"{self.path}, {where}: x={x!r}, y={y!r} are not two numbers.")
        pixel = (floor(row), floor(column))
        others = self._points[name]
        if pixel in others:
            raise ValueError(
                f"{self.path}, {where}: image {name!r} has this point already ({others[pixel]}); a target has one "
                "point."
            )
        others[pixel] = where
        self._largest = max(self._largest, abs(column), abs(row))
        self._fractions |= column != pixel[1] or row != pixel[0]

    def source(self) -> PointSource:
        """The finished table.

        Raises:
            ValueError: if all coordinates lie between 0 and 1: they are shares of the image's sides.
        """
        if self._fractions and self._largest <= 1:
            raise ValueError(
                f"{self.path}: all coordinates lie between 0 and 1, as shares of the image's sides do; multiply x by "
                "the image's width and y by its height."
            )
        strangers = list(dict.fromkeys(self._unknown))
        said = f" ({len(strangers)} of its names are no images of the set, first {strangers[0]!r})" if strangers else ""
        return PointSource(self.folder.where(self.path) + said, self._read)

    def _read(self, name: str, shape: Shape) -> Points:
        if name not in self._points:
            named = f" (it names {self._unknown[0]!r}, which is no image of the set)" if self._unknown else ""
            raise ValueError(
                f"Image {name!r} does not stand in {self.path}{named}; an image without targets needs {self.remedy}, "
                "or remove the name from its split."
            )
        size = self._sizes.get(name, shape)
        if size != shape:
            raise ValueError(
                f"Image {name!r} is {shape[1]}x{shape[0]} (width x height), but {self.path} says {size[1]}x{size[0]}: "
                "its points were made for another size."
            )
        return as_points(self._points[name])


def as_points(pixels: Any) -> Points:
    """`(n, 2)` rows and columns from pairs of them."""
    return np.array(list(pixels), dtype=np.int64).reshape(-1, 2)


def number(value: Any) -> float | None:
    """A finite number of a file, in figures or as text, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or "_" in str(value):
        return None  # Python takes 1_0 for 10
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if isfinite(found) and abs(found) < LARGEST else None


def size_in(content: Mapping[str, Any], height: str, width: str) -> Shape | None:
    """The size that a record gives, or None where it gives none."""
    h, w = number(content.get(height)), number(content.get(width))
    return (int(h), int(w)) if h and w else None

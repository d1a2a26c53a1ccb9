"""Points from LabelMe JSON: a file for each image, beside it or in `labelme/`, `labels/` or `annotations/`.

The point of a shape: a `point` and the centre of a `circle` themselves, of a `rectangle` its middle, of anything else
the mean of its corners. An image without a file has no targets, as in LabelMe; one file there must be.
"""

import json
from math import floor
from pathlib import Path
from typing import Any

from istd.data.files import read_text
from istd.data.folder import Folder
from istd.data.formats.base import PointFormat, PointSource, Shape, as_points, number, size_in
from istd.data.points import NO_POINTS, Points


def read_points_labelme(path: Path, shape: Shape) -> Points:
    """The points of one file, `(n, 2)` rows and columns.

    Raises:
        ValueError: naming the file, if it is no LabelMe JSON, is of another image size, a shape has no points, or two
            shapes give one pixel.
    """
    content = _content(path)
    size = size_in(content, "imageHeight", "imageWidth")
    if size is not None and size != shape:
        raise ValueError(
            f"{path} is for an image of {size[1]}x{size[0]} (width x height), but its image is {shape[1]}x{shape[0]}."
        )
    pixels: dict[tuple[int, int], None] = {}
    for i, drawn in enumerate(content["shapes"], 1):
        x, y = _location(drawn, f"{path}, shape {i}")
        pixel = (floor(y), floor(x))
        if pixel in pixels:
            raise ValueError(f"{path}, shape {i}: another shape has the same point; a target has one.")
        pixels[pixel] = None
    return as_points(pixels)


def _content(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        content = json.loads(text)
        if not isinstance(content["shapes"], list):
            raise TypeError("'shapes' must be a list")
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # ValueError: also of numbers too long to read
        raise ValueError(f"{path} is not LabelMe JSON ({error!r}); it needs 'shapes'.") from None
    return dict(content)


def _location(drawn: Any, where: str) -> tuple[float, float]:
    corners = drawn.get("points") if isinstance(drawn, dict) else None
    pairs = [(number(c[0]), number(c[1])) for c in corners if isinstance(c, list) and len(c) == 2] if corners else []
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    if not known or len(known) != len(corners or ()):
        raise ValueError(f"{where} needs 'points', a list of [x, y].")
    if drawn.get("shape_type") in ("point", "circle"):
        return known[0]
    return sum(x for x, _ in known) / len(known), sum(y for _, y in known) / len(known)


def _open(folder: Folder) -> PointSource | None:
    folders = {i: (*found.part.boxes, found.part.images) for i, found in enumerate(folder.parts)}
    files = {name: path for name, path in folder.beside(folders, (".json",)).items() if _is_labelme(path)}
    if not files:
        return None
    where = ", ".join(f"{folder.where(p)}/*.json (LabelMe)" for p in dict.fromkeys(f.parent for f in files.values()))
    return PointSource(
        where, lambda name, shape: read_points_labelme(files[name], shape) if name in files else NO_POINTS
    )


def _is_labelme(path: Path) -> bool:
    try:
        _content(path)
    except ValueError:
        return False
    return True


LABELME = PointFormat("labelme", "labelme/NAME.json", _open)

"""Points from YOLO labels: `labels/NAME.txt`, a line `class x y width height` for each target, in shares of the sides.

A point is the centre of its box. As YOLO has it, an image without a file has no targets; one file there must be.
"""

from math import floor
from pathlib import Path

from istd.data.files import read_text
from istd.data.folder import Folder
from istd.data.formats.base import PointFormat, PointSource, Shape, as_points, number
from istd.data.points import NO_POINTS, Points


def read_points_yolo(path: Path, shape: Shape) -> Points:
    """The box centres of one file, `(n, 2)` rows and columns in an image of `shape`.

    Raises:
        ValueError: naming file and line, if a line is not `class x y width height` with x and y in [0, 1], or two lines
            give one pixel.
    """
    pixels: dict[tuple[int, int], int] = {}
    for i, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        x, y = (number(w) for w in words[1:3]) if len(words) in (5, 6) else (None, None)
        if x is None or y is None or not (0 <= x <= 1 and 0 <= y <= 1):
            raise ValueError(
                f"{path}, line {i}: {line.strip()!r} is not 'class x y width height' in shares of the image's sides."
            )
        pixel = (min(floor(y * shape[0]), shape[0] - 1), min(floor(x * shape[1]), shape[1] - 1))
        if pixel in pixels:
            raise ValueError(f"{path}, line {i}: the same point as in line {pixels[pixel]}; a target has one point.")
        pixels[pixel] = i
    return as_points(pixels)


def _open(folder: Folder) -> PointSource | None:
    folders = {i: found.part.boxes for i, found in enumerate(folder.parts)}
    files = folder.beside(folders, (".txt",))
    if not files:
        return None
    where = ", ".join(f"{folder.where(p)}/*.txt (box centres)" for p in dict.fromkeys(f.parent for f in files.values()))
    return PointSource(where, lambda name, shape: read_points_yolo(files[name], shape) if name in files else NO_POINTS)


YOLO = PointFormat("yolo", "labels/NAME.txt", _open)

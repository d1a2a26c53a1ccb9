"""Points from Pascal VOC XML: `Annotations/NAME.xml` with a box, or a centroid (SIRST-V2), for each object.

VOC counts pixels from 1: the point of a box is ((xmin + xmax) / 2 - 1, (ymin + ymax) / 2 - 1), that of a centroid (xc
- 1, yc - 1), floored. An object with `pixels` stands for all pixels of a class at once, so its box is not that of a
target, and is passed over.
"""

from math import floor
from pathlib import Path
from xml.etree import ElementTree

from istd.data.files import read_text
from istd.data.folder import Folder
from istd.data.formats.base import PointFormat, PointSource, Shape, as_points, number
from istd.data.points import Points


def read_points_voc(path: Path, shape: Shape) -> Points:
    """The points of one file, `(n, 2)` rows and columns.

    Raises:
        ValueError: naming the file, if it is no VOC XML, declares entities, is of another image size, or an object has
            neither box nor centroid, or the pixel of another.
    """
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(f"{path} declares entities, which annotations do not need; remove the declaration.")
    try:
        root = ElementTree.fromstring(text.encode())
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is not XML ({error}).") from None
    _check_size(root, path, shape)
    pixels: dict[tuple[int, int], None] = {}
    for i, item in enumerate(root.findall("object"), 1):
        if item.find("pixels") is not None:
            continue
        x, y = _location(item, f"{path}, object {i}")
        pixel = (floor(y), floor(x))
        if pixel in pixels:
            raise ValueError(f"{path}, object {i}: another object has the same point; a target has one.")
        pixels[pixel] = None
    return as_points(pixels)


def _check_size(root: ElementTree.Element, path: Path, shape: Shape) -> None:
    width, height = number(root.findtext("size/width")), number(root.findtext("size/height"))
    if width and height and (int(height), int(width)) != shape:
        raise ValueError(
            f"{path} is for an image of {width:g}x{height:g} (width x height), but its image is {shape[1]}x{shape[0]}."
        )


def _location(item: ElementTree.Element, where: str) -> tuple[float, float]:
    centre = [number(item.findtext(f"centroid/{key}")) for key in ("xc", "yc")]
    if centre[0] is not None and centre[1] is not None:
        return centre[0] - 1, centre[1] - 1
    box = [number(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = box
    if left is None or top is None or right is None or bottom is None or left > right or top > bottom:
        raise ValueError(f"{where} has neither a centroid nor a bndbox of four numbers (xmin, ymin, xmax, ymax).")
    return (left + right) / 2 - 1, (top + bottom) / 2 - 1


def _open(folder: Folder) -> PointSource | None:
    files = folder.beside({i: found.part.boxes for i, found in enumerate(folder.parts)}, (".xml",))
    if not files:
        return None
    where = ", ".join(f"{folder.where(p)}/*.xml" for p in dict.fromkeys(f.parent for f in files.values()))

    def read(name: str, shape: Shape) -> Points:
        if name not in files:
            raise ValueError(
                f"Image {name!r} has no annotation in {where}; an image without targets needs an XML file without "
                "objects, or remove the name from its split."
            )
        return read_points_voc(files[name], shape)

    return PointSource(where, read)


VOC = PointFormat("voc", "Annotations/NAME.xml", _open)

"""Points from COCO JSON: `points.json`, or the files in `annotations/`.

A point is an annotation's first labelled keypoint (visibility above 0), else the centre of its `bbox` [x, y, w, h].
"""

import json
from pathlib import Path
from typing import Any

from istd.data.files import read_text
from istd.data.folder import Folder
from istd.data.formats.base import PointFormat, PointSource, PointTable, number, size_in

FOLDERS = ("annotations", "Annotations", "annotation")


def read_points_coco(paths: list[Path], folder: Folder) -> PointSource:
    """Read COCO files; an image that stands in several counts once, if they say the same of it.

    Raises:
        ValueError: naming the file, if one is not COCO JSON, an annotation has neither keypoint nor box, names an
            unknown image, or holds what is no number, a point stands twice, or two files contradict each other.
    """
    sources = [_read(path, folder) for path in paths]
    if len(sources) == 1:
        return sources[0][1]
    return PointSource(
        ", ".join(source.where for _, source in sources), lambda name, shape: _agreed(sources, name, shape)
    )


def _agreed(sources: list[tuple[Any, PointSource]], name: str, shape: tuple[int, int]) -> Any:
    found = [(source.where, source.read(name, shape)) for names, source in sources if name in names]
    if not found:
        return sources[0][1].read(name, shape)  # says what is missing
    for where, points in found[1:]:
        if sorted(points.tolist()) != sorted(found[0][1].tolist()):
            raise ValueError(
                f"{where} and {found[0][0]} give other points for image {name!r}; remove one of the files."
            )
    return found[0][1]


def _read(path: Path, folder: Folder) -> tuple[set[str], PointSource]:
    """The images of one file, and its points."""
    content = _content(path)
    table = PointTable(path, folder, "an entry in 'images'")
    names: dict[Any, str | None] = {}
    for i, image in enumerate(content["images"]):
        where = f"image {i}"
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
            raise ValueError(f"{path}, {where} has no 'file_name'.")
        key = image.get("id")
        if not isinstance(key, int | str) or key in names:
            raise ValueError(f"{path}, {where}: its id {key!r} must be a number that no other image has.")
        names[key] = table.image(image["file_name"], where, size_in(image, "height", "width"))
    for i, annotation in enumerate(content["annotations"]):
        where = f"annotation {annotation.get('id', i)!r}" if isinstance(annotation, dict) else f"annotation {i}"
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(key, int | str) or key not in names:
            raise ValueError(f"{path}: {where} is of unknown image_id {key!r}.")
        x, y = _location(annotation, path, where)
        name = names[key]
        if name is not None:
            table.add(name, x, y, where)
    return {name for name in names.values() if name is not None}, table.source()


def _content(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        content = json.loads(text)
        if not isinstance(content["images"], list) or not isinstance(content["annotations"], list):
            raise TypeError("'images' and 'annotations' must be lists")
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # ValueError: also of numbers too long to read
        raise ValueError(f"{path} is not COCO JSON ({error!r}); it needs 'images' and 'annotations'.") from None
    return dict(content)


def _location(annotation: dict[str, Any], path: Path, where: str) -> tuple[float, float]:
    labelled = _keypoint(annotation.get("keypoints"), path, where)
    if labelled is not None:
        return labelled
    box = annotation.get("bbox")
    if not box:
        raise ValueError(f"{path}: {where} has neither 'keypoints' nor 'bbox'.")
    values = _numbers(box)
    if values is None or len(values) != 4 or min(values[2:]) < 0:
        raise ValueError(f"{path}: {where} has the 'bbox' {box!r}; it must be four numbers [x, y, width, height].")
    left, top, width, height = values
    return left + (width - 1) / 2, top + (height - 1) / 2


def _numbers(values: Any) -> list[float] | None:
    """A list of JSON numbers; None if it is anything else (numbers as text among them)."""
    if not isinstance(values, list):
        return None
    found = [number(v) for v in values if not isinstance(v, str)]
    known = [v for v in found if v is not None]
    return known if len(known) == len(values) else None


def _keypoint(keypoints: Any, path: Path, where: str) -> tuple[float, float] | None:
    """The first labelled keypoint of x, y, visibility; None if there is none (visibility 0 is `not labelled`)."""
    if not keypoints:
        return None
    numbers = _numbers(keypoints)
    if numbers is None or len(numbers) < 2:
        raise ValueError(f"{path}: {where} has the 'keypoints' {keypoints!r}; they must be numbers x, y, visibility.")
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    if len(numbers) % 3:
        raise ValueError(
            f"{path}: {where} has {len(numbers)} 'keypoints' values; three belong to each: x, y, visibility."
        )
    triples = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return next(((x, y) for x, y, visibility in triples if visibility > 0), None)


def _open(folder: Folder) -> PointSource | None:
    path = folder.root / "points.json"
    if path.exists():
        return read_points_coco([path], folder)
    for name in FOLDERS:
        paths = [p for p in sorted((folder.root / name).glob("*.json")) if _is_coco(p)]
        if paths:
            return read_points_coco(paths, folder)
    return None


def _is_coco(path: Path) -> bool:
    """Other JSON (label maps, LabelMe) may lie in the same folder."""
    try:
        _content(path)
    except ValueError:
        return False
    return True


COCO = PointFormat("coco", "points.json or annotations/*.json", _open)

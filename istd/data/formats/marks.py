"""Points as pictures: `masks_centroid/NAME.png` or `masks_coarse/NAME.png`, not 0 where a target is.

A mark of several touching pixels is one point, at the floor of its centroid.
"""

from pathlib import Path

from istd.data.dataset import size_of
from istd.data.folder import Folder
from istd.data.formats.base import PointFormat, PointSource, Shape
from istd.data.formats.derived import points_of_masks
from istd.data.images import EXTENSIONS
from istd.data.masks import read_mask
from istd.data.points import NO_POINTS, Points, centroid_points

__all__ = ["CENTROID", "COARSE", "NO_POINTS"]


def _open(folder: Folder, kind: str) -> PointSource | None:
    folders = {i: getattr(found.part, kind) for i, found in enumerate(folder.parts)}
    there = [name for names in folders.values() for name in names if (folder.root / name).is_dir()]
    if not there:
        return None
    where = ", ".join(f"{name}/" for name in dict.fromkeys(there))
    files = folder.beside(folders, EXTENSIONS)
    masks = points_of_masks(folder, kind)
    bare = [f for i, f in enumerate(folder.parts) if not any((folder.root / name).is_dir() for name in folders[i])]
    unmarked = {name for found in bare for name in found.local if name in folder.masks}
    if unmarked:  # PAL marks its training images alone
        where += f"; those of {', '.join(f'{found.part.images}/' for found in bare)} {masks.where}"

    def read(name: str, shape: Shape) -> Points:
        if name in unmarked:
            return masks.read(name, shape)
        if name not in files:
            raise ValueError(
                f"Image {name!r} has no point label file in {folder.root / there[0]}; an image without targets needs "
                "an all-zero one, or remove the name from its split."
            )
        return _read_marks(files[name], name, shape)

    return PointSource(where, read)


def _read_marks(path: Path, name: str, shape: Shape) -> Points:
    marks = read_mask(path)
    if marks.shape != shape:
        raise ValueError(
            f"Image {name!r} is {shape[1]}x{shape[0]} but its point label {path} is {size_of(marks)}; both must have "
            "the same size."
        )
    return centroid_points(marks)


CENTROID = PointFormat("centroid", "masks_centroid/NAME.png", lambda folder: _open(folder, "centroid"))
COARSE = PointFormat("coarse", "masks_coarse/NAME.png", lambda folder: _open(folder, "coarse"))

"""Forms in which points are given, one file each: `open(folder)` finds them, a `PointSource` gives an image's."""

from istd.data.folder import Folder
from istd.data.formats import coco, labelme, marks, table, voc, yolo
from istd.data.formats.base import PointFormat, PointSource
from istd.data.formats.derived import points_of_masks

__all__ = ["FORMATS", "POINTS", "PointFormat", "PointSource", "find_points", "points_of_masks"]

FORMATS: dict[str, PointFormat] = {
    f.name: f for f in (marks.CENTROID, table.CSV, coco.COCO, marks.COARSE, yolo.YOLO, voc.VOC, labelme.LABELME)
}
"""In the order in which `auto` looks for them."""

POINTS = ("auto", *FORMATS, "none")
"""Values of `--points`."""


def find_points(folder: Folder, wanted: str = "auto", seed: int = 0) -> PointSource:
    """The points of a folder.

    `auto` takes the first form that is there, else derives centroids from the true masks. `centroid` and `coarse` take
    the folder of that name, else derive such points from the masks. `none` gives every image no points.

    Raises:
        FileNotFoundError: if the folder has no points, and no masks to derive them from.
        ValueError: for an unknown form, or a broken file of the one that is taken.
    """
    if wanted not in POINTS:
        raise ValueError(f"`points` must be one of {', '.join(POINTS)}, got {wanted!r}.")
    if wanted == "none":
        return PointSource("none asked for", lambda name, shape: marks.NO_POINTS)
    for form in FORMATS.values() if wanted == "auto" else (FORMATS[wanted],):
        found = form.open(folder)
        if found is not None:
            return found
    if wanted in ("auto", "centroid", "coarse") and folder.masks:
        return points_of_masks(folder, "centroid" if wanted == "auto" else wanted, seed)
    looked = ", ".join(f"{f.name} ({f.about})" for f in FORMATS.values() if wanted in ("auto", f.name))
    raise FileNotFoundError(
        f"{folder.root} has no point labels; looked for {looked}. Give one pixel per target as "
        "masks_centroid/NAME.png, as points.csv with the columns image,x,y, or as COCO JSON in points.json; true "
        "masks would do too."
    )

"""Points derived from true masks, for sets that are published with masks alone.

The rules are those of Ying et al. (LESPS, CVPR 2023), `istd.data.points`: the floor of the centroid of every
8-connected region, or a random pixel near it. Training then opens its masks once, for this, and every record says so.
"""

import hashlib

from istd.data.dataset import size_of
from istd.data.folder import Folder
from istd.data.formats.base import PointSource, Shape
from istd.data.masks import read_mask
from istd.data.points import Points, centroid_points, coarse_points


def points_of_masks(folder: Folder, rule: str, seed: int = 0) -> PointSource:
    """One point for each region of an image's true mask.

    Args:
        folder: the set.
        rule: `centroid` or `coarse`.
        seed: of the coarse points; an image's are the same whatever other images there are.
    """

    def read(name: str, shape: Shape) -> Points:
        if name not in folder.masks:
            raise ValueError(
                f"Image {name!r} has neither a point label nor a mask to derive it from; give it one, or remove the "
                "name from its split."
            )
        mask = read_mask(folder.masks[name])
        if mask.shape != shape:
            raise ValueError(
                f"Image {name!r} is {shape[1]}x{shape[0]} (width x height) but its mask {folder.masks[name]} is "
                f"{size_of(mask)}; both must have the same size."
            )
        if rule == "centroid":
            return centroid_points(mask)
        own = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest())
        return coarse_points(mask, seed + own)

    drawn = f", drawn with seed {seed}" if rule == "coarse" else ""
    return PointSource(f"derived from the true masks ({rule}{drawn})", read)

"""The door of the data room: from folders on disk to named samples in three splits.

`istd.data.published` lists the layouts that are understood, `formats` the forms of points, `splits` says which images
are for what, `masks` how true masks are read, `sensor` how raw values become intensities. docs/layouts.md is the table
of all.

True masks are checked here, so that a broken one ends a command before it begins; what they show is thrown away, unless
points are derived from them. A `Sample` knows where its mask lies, and evaluation alone reads it.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from istd.data.dataset import SPLITS, Dataset, Origin, Sample, positions_by_set, size_of
from istd.data.folder import Folder, open_folder
from istd.data.formats import POINTS, PointSource, find_points
from istd.data.images import EXTENSIONS, read_image
from istd.data.masks import read_true_mask
from istd.data.names import index_pictures
from istd.data.points import check_points
from istd.data.published import IMAGES
from istd.data.sensor import SENSOR, SensorRange
from istd.data.splits import find_splits, named_images

__all__ = [
    "POINTS",
    "SPLITS",
    "Dataset",
    "Origin",
    "Sample",
    "find_images",
    "join",
    "load_folder",
    "load_folders",
    "load_samples",
    "load_split",
    "positions_by_set",
]

log = logging.getLogger("istd")


def load_folder(
    root: Path | str,
    points: str = "auto",
    seed: int = 0,
    *,
    split: str | None = None,
    sensor: SensorRange | None = None,
) -> Dataset:
    """Read a dataset folder.

    Args:
        root: the folder; docs/layouts.md says what it may hold.
        points: which point labels to use, of `istd.data.formats.POINTS`; see `find_points`.
        seed: of what is drawn: a validation split where no list names one, all splits where there are no lists.
        split: the family of split lists to use, where there are several (`idx_320`).
        sensor: how raw values become intensities.

    Raises:
        FileNotFoundError: if the folder or its images are missing, or it has neither points nor masks.
        ValueError: for an empty split, a name in two splits, an image without a point label file, a split with masks
            for some images only, sizes that differ, a file that is no image or cannot be a mask, or a point outside its
            image. Every message names the file and the remedy.
    """
    folder = open_folder(Path(root))
    splits = find_splits(folder, split, seed)
    reader = _Reader(folder, find_points(folder, points, seed), sensor)
    train, val, test = (reader.samples(splits.names[s], s) for s in SPLITS)
    origin = reader.origin(splits.sources, splits.random)
    return Dataset(reader.set_name, train, val, test, (origin,), reader.sensor)


def load_folders(
    roots: Sequence[Path | str],
    points: str = "auto",
    seed: int = 0,
    *,
    split: str | None = None,
    sensor: SensorRange | None = None,
) -> Dataset:
    """Read several folders as one dataset: the splits are the unions of theirs; see `load_folder` and `join`."""
    return join([load_folder(root, points, seed, split=split, sensor=sensor) for root in roots])


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Several sets as one: their splits one after the other, each sample with its set's name.

    Raises:
        ValueError: if there is none, two have the same name, or images were read by different sensor ranges.
    """
    if not datasets:
        raise ValueError("There is no dataset to join.")
    if len(datasets) == 1:
        return datasets[0]
    names = [dataset.name for dataset in datasets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"Two of the sets are called {twice!r}; results by set need different folder names.")
    if len({dataset.sensor for dataset in datasets}) > 1:
        raise ValueError(f"The images of {', '.join(names)} were read by different sensor ranges; use one for all.")
    train, val, test = (tuple(s for d in datasets for s in getattr(d, part)) for part in SPLITS)
    origins = tuple(origin for dataset in datasets for origin in dataset.origins)
    return Dataset("+".join(names), train, val, test, origins, datasets[0].sensor)


def load_split(
    root: Path | str, split: str, points: str = "none", *, sensor: SensorRange | None = None, seed: int = 0
) -> Dataset:
    """Read the images that are to be scored, and no others: a dataset with a test split alone.

    Args:
        root: the folder.
        split: `train`, `val`, `test`, `all`, or the name of a list in the folder (`test_no_neardup`, `idx_320/test`).
        points: which point labels to use; scoring needs none.
        sensor: how raw values become intensities.
        seed: as in `load_folder`.

    Raises:
        FileNotFoundError, ValueError: see `load_folder`; also for an empty split or an unknown one.
    """
    folder = open_folder(Path(root))
    names, source, random = named_images(folder, split, seed)
    if not names:
        raise ValueError(f"The {split!r} split of {folder.root} is empty ({source}).")
    reader = _Reader(folder, find_points(folder, points, seed), sensor)
    samples = reader.samples(names, split)
    return Dataset(
        reader.set_name,
        (),
        (),
        samples,
        (reader.origin({"train": "", "val": "", "test": source}, random),),
        reader.sensor,
    )


def load_samples(
    root: Path | str, points: str = "auto", *, sensor: SensorRange | None = None, seed: int = 0
) -> tuple[Sample, ...]:
    """Read all images of a folder with their points, whatever its splits say; see `load_split`."""
    return load_split(root, "all", points, sensor=sensor, seed=seed).test


def find_images(root: Path | str) -> dict[str, Path]:
    """The images in a folder, or in its `images/`, by name and in order; where they lie in subfolders, as `sub/name`.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        ValueError: if two files have the same name but for the extension.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder.")
    found = next((index for name in IMAGES if (index := index_pictures(root / name))), None) or index_pictures(root)
    if not found:
        raise FileNotFoundError(f"{root} has no image ({', '.join(EXTENSIONS)}).")
    return found


class _Reader:
    """Reads samples of a folder, checks their masks, and counts what was special about them."""

    def __init__(self, folder: Folder, points: PointSource, sensor: SensorRange | None) -> None:
        self.folder, self.points, self.sensor = folder, points, sensor or SENSOR
        self.set_name = folder.root.name or folder.root.resolve().name
        self.masks = self.near_binary = self.rounded = self.in_alpha = 0

    def samples(self, names: Sequence[str], split: str) -> tuple[Sample, ...]:
        """Read some images; of one split all or none have masks."""
        missing = [name for name in names if name not in self.folder.masks]
        if missing and len(missing) < len(names):
            raise ValueError(
                f"{len(missing)} of the {len(names)} images in the {split!r} split of {self.folder.root} have no mask, "
                f"first {missing[0]!r}; give all of them one, or none (masks are optional)."
            )
        return tuple(self._sample(name) for name in names)

    def _sample(self, name: str) -> Sample:
        image = read_image(self.folder.images[name], self.sensor)
        shape = (image.shape[0], image.shape[1])
        found = check_points(self.points.read(name, shape), shape, name, self.points.where)
        sample = Sample(name, image, found, self.folder.masks.get(name), self.set_name)
        self._check_mask(sample)
        return sample

    def _check_mask(self, sample: Sample) -> None:
        if not isinstance(sample.mask_source, Path):
            return
        read = read_true_mask(sample.mask_source)
        if read.mask.shape != sample.image.shape:
            raise ValueError(
                f"Image {sample.name!r} is {size_of(sample.image)} but its mask {sample.mask_source} is "
                f"{size_of(read.mask)}; both must have the same size."
            )
        self.masks += 1
        self.near_binary += read.near_binary
        self.rounded += read.rounded
        self.in_alpha += read.in_alpha

    def origin(self, sources: Mapping[str, str], random: bool) -> Origin:
        """The record of what was read."""
        folder, masks = self.folder, ""
        if self.masks:
            masks = f"{', '.join(f'{name}/' for name in folder.mask_folders)}, target where a value is above 0"
            masks += f"; {self.near_binary} of {self.masks} have levels in between" if self.near_binary else ""
            masks += f"; {self.rounded} above half of the largest, their background is rounded" if self.rounded else ""
            masks += f"; {self.in_alpha} lie in the alpha channel" if self.in_alpha else ""
        train, val, test = (sources[s] for s in SPLITS)
        found = Origin(self.set_name, folder.layout.name, train, val, test, random, self.points.where, masks)
        log.info("%s", found)
        return found

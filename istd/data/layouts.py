"""Folder layouts: from a directory on disk to named samples in three splits.

The SIRST3 layout and its relatives: `images/`, point labels in one of three forms, optional masks, and split files.

    images/NAME.png                    also: img, IRSTD1k_Img; .png .bmp .jpg .jpeg .tif .tiff
    masks_centroid/NAME.png            or masks_coarse/, or points.csv (image,x,y), or points.json (COCO)
    labels/NAME.png                    optional; also masks, mask, label, full-supervised, IRSTD1k_Label
    mode/train.txt val.txt test.txt    also img_idx/train_*.txt; names with or without extension, any line ending

Masks are never opened here: a `Sample` knows where its mask lies, and evaluation alone reads it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from istd.data.images import read_image, read_mask
from istd.data.points import Points, check_points, read_points_coco, read_points_csv
from istd.regions import find_regions

IMAGE_FOLDERS = ("images", "img", "IRSTD1k_Img")
MASK_FOLDERS = ("labels", "masks", "label", "mask", "full-supervised", "IRSTD1k_Label")
EXTENSIONS = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")
SPLITS = ("train", "val", "test")
PointSource = Literal["auto", "centroid", "coarse", "csv", "coco"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its point labels; the truth is a promise that only evaluation redeems.

    Attributes:
        name: file name without extension.
        image: `(H, W)` float32 in [0, 1].
        points: `(n, 2)` rows and columns; n = 0 is legal.
        mask_source: where the true mask lies: a path, an array (synthetic scenes), or None.
    """

    name: str
    image: NDArray[np.float32]
    points: Points
    mask_source: Path | NDArray[np.bool_] | None = field(default=None, repr=False)

    def truth(self) -> NDArray[np.bool_] | None:
        """The true mask `(H, W)`, or None if there is none. For evaluation only.

        Raises:
            ValueError: if the mask's size differs from the image's, or it is not binary.
        """
        if self.mask_source is None:
            return None
        mask = read_mask(self.mask_source) if isinstance(self.mask_source, Path) else self.mask_source
        if mask.shape != self.image.shape:
            raise ValueError(
                f"Image {self.name!r} is {_size(self.image)} but its mask {self.mask_source} is {_size(mask)}; "
                "both must have the same size."
            )
        return mask


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits of samples, under a name."""

    name: str
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]

    @property
    def has_truth(self) -> bool:
        """Whether every test sample has a true mask; nothing else needs one."""
        return all(s.mask_source is not None for s in self.test)

    def digest(self) -> str:
        """What the dataset holds, as 32 hexadecimal digits: two datasets of one digest train and score alike.

        It covers, in order, every split's name and its samples: name, size and pixels of the image as read, points, and
        the mask (the bytes of its file, which is not decoded; or the array). It does not cover the dataset's own name
        or place, so a folder that was moved or renamed is still the same data.

        Computed once, at about 1 GB of pixels a second; unlike `hash`, equal in every process and on every machine.

        Raises:
            OSError: if a mask's file is gone.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        whole = hashlib.blake2b(digest_size=16)
        for split in SPLITS:
            samples: tuple[Sample, ...] = getattr(self, split)
            whole.update(f"{split} {len(samples)};".encode())
            for sample in samples:
                for part in _content(sample):
                    whole.update(f"{len(part)}:".encode())  # lengths keep neighbouring parts apart
                    whole.update(part)
        return whole.hexdigest()


def _content(sample: Sample) -> Iterator[bytes | memoryview]:
    """The parts of a sample that its digest covers."""
    yield sample.name.encode()
    yield str(sample.image.shape).encode()
    yield np.ascontiguousarray(sample.image).astype("<f4", copy=False).data.cast("B")
    yield np.ascontiguousarray(sample.points).astype("<i8", copy=False).tobytes()
    if isinstance(sample.mask_source, Path):
        yield sample.mask_source.read_bytes()
    elif sample.mask_source is not None:
        yield np.ascontiguousarray(sample.mask_source, dtype=bool).tobytes()
    else:
        yield b"no mask"


def load_folder(root: Path | str, points: PointSource = "auto", seed: int = 0) -> Dataset:
    """Read a dataset folder.

    Args:
        root: the folder; see the module's head for what it may hold.
        points: which point labels to use; `"auto"` takes the first that is there, in the order centroid, csv, coco,
            coarse.
        seed: splits a folder that has no split files into 60/20/20 %.

    Raises:
        FileNotFoundError: if the folder, its images or every form of point labels is missing.
        ValueError: for an empty split, a name in two splits, an image without a point label file, a split with
            masks for some images only, sizes that differ, or a point outside its image. Every message names the file
            and the remedy.
    """
    folder = _Folder(Path(root), points)
    splits = _read_splits(folder.root, sorted(folder.images), seed)
    _check_splits(splits, folder.images, folder.root)
    _check_masks(splits, folder.masks, folder.root)
    train, val, test = (tuple(folder.sample(n) for n in splits[s]) for s in SPLITS)
    return Dataset(folder.root.name, train, val, test)


def load_samples(root: Path | str, points: PointSource = "auto") -> tuple[Sample, ...]:
    """Read all images of a folder with their points, whatever its splits say.

    Args:
        root: the folder; see the module's head for what it may hold.
        points: which point labels to use; see `load_folder`.

    Raises:
        FileNotFoundError: if the folder, its images or every form of point labels is missing.
        ValueError: for an empty folder, or an image whose points are missing or lie outside it.
    """
    folder = _Folder(Path(root), points)
    if not folder.images:
        raise ValueError(f"{folder.root} has no image ({', '.join(EXTENSIONS)}).")
    return tuple(folder.sample(name) for name in sorted(folder.images))


def find_images(root: Path | str) -> dict[str, Path]:
    """The images in a folder, or in its `images/`, by name and in order.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder.")
    found = _index_optional(root, IMAGE_FOLDERS) or _index(root)
    if not found:
        raise FileNotFoundError(f"{root} has no image ({', '.join(EXTENSIONS)}).")
    return found


class _Folder:
    """What lies in a dataset folder: images, masks and points by name."""

    def __init__(self, root: Path, points: PointSource) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"`data` is {str(root)!r}, which is not a folder.")
        self.root = root
        self.images = _index(_first_folder(root, IMAGE_FOLDERS, "images"))
        self.masks = _index_optional(root, MASK_FOLDERS)
        self._points = _PointLookup(root, points)

    def sample(self, name: str) -> Sample:
        """Read one image and its points."""
        image = read_image(self.images[name])
        found = check_points(self._points(name, image.shape), image.shape[:2], name)
        return Sample(name, image, found, _mask_of(name, self.masks))


class _PointLookup:
    """Finds the points of an image in whichever form the folder has."""

    def __init__(self, root: Path, source: PointSource) -> None:
        self.folder: dict[str, Path] | None = None
        self.table: dict[str, Points] | None = None
        forms = {
            "centroid": root / "masks_centroid",
            "csv": root / "points.csv",
            "coco": root / "points.json",
            "coarse": root / "masks_coarse",
        }
        if source != "auto" and source not in forms:
            raise ValueError(f"`points` must be 'auto' or one of {', '.join(forms)}, got {source!r}.")
        wanted = list(forms) if source == "auto" else [source]
        present = [form for form in wanted if forms[form].exists()]
        if not present:
            raise FileNotFoundError(
                f"{root} has no point labels; looked for {', '.join(str(forms[f].name) for f in wanted)}. Give one "
                "pixel per target as masks_centroid/NAME.png, as points.csv with the columns image,x,y, or as COCO "
                "JSON in points.json."
            )
        self.path = forms[present[0]]
        if present[0] in ("centroid", "coarse"):
            self.folder = _index(self.path)
        else:
            self.table = (read_points_csv if present[0] == "csv" else read_points_coco)(self.path)

    def __call__(self, name: str, shape: tuple[int, ...]) -> Points:
        if self.folder is not None:
            if name not in self.folder:
                raise ValueError(
                    f"Image {name!r} has no point label file in {self.path}; an image without targets needs an "
                    "all-zero one, or remove the name from its split."
                )
            marks = read_mask(self.folder[name])
            if marks.shape != shape:
                raise ValueError(
                    f"Image {name!r} is {shape[1]}x{shape[0]} but its point label {self.folder[name]} is "
                    f"{_size(marks)} (width x height); both must have the same size."
                )
            return np.floor(find_regions(marks).centroids).astype(np.int64).reshape(-1, 2)
        assert self.table is not None
        if name not in self.table:
            raise ValueError(
                f"Image {name!r} does not stand in {self.path}; an image without targets needs a row with empty x "
                "and y (CSV) or an entry in 'images' (COCO), or remove the name from its split."
            )
        return self.table[name]


def _read_splits(root: Path, names: list[str], seed: int) -> dict[str, list[str]]:
    files = {split: _split_file(root, split) for split in SPLITS}
    if not any(files.values()):
        order = np.random.default_rng(seed).permutation(len(names))
        cuts = np.split(order, [round(0.6 * len(names)), round(0.8 * len(names))])
        return {split: [names[i] for i in sorted(cut)] for split, cut in zip(SPLITS, cuts, strict=True)}
    missing = [split for split in SPLITS if files[split] is None]
    if missing == ["val"]:  # the LESPS layout has train and test only: hold out a fifth of the training names
        train = _read_names(files["train"])
        held = set(np.random.default_rng(seed).permutation(len(train))[: max(1, len(train) // 5)].tolist())
        return {
            "train": [n for i, n in enumerate(train) if i not in held],
            "val": [n for i, n in enumerate(train) if i in held],
            "test": _read_names(files["test"]),
        }
    if missing:
        raise FileNotFoundError(f"{root / 'mode'} lacks {missing[0]}.txt; give train.txt, val.txt and test.txt.")
    return {split: _read_names(files[split]) for split in SPLITS}


def _split_file(root: Path, split: str) -> Path | None:
    for path in (root / "mode" / f"{split}.txt", root / "img_idx" / f"{split}.txt", root / f"{split}.txt"):
        if path.is_file():
            return path
    found = sorted((root / "img_idx").glob(f"{split}_*.txt"))
    if len(found) > 1:
        raise ValueError(
            f"{root / 'img_idx'} has several {split} lists ({', '.join(f.name for f in found)}); "
            f"copy the one you want to mode/{split}.txt."
        )
    return found[0] if found else None


def _read_names(path: Path | None) -> list[str]:
    assert path is not None
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    return [line[: -len(ext)] if (ext := _extension(line)) else line for line in lines if line]


def _extension(name: str) -> str:
    return next((ext for ext in EXTENSIONS if name.lower().endswith(ext)), "")


def _check_splits(splits: dict[str, list[str]], images: dict[str, Path], root: Path) -> None:
    owner: dict[str, str] = {}
    for split, names in splits.items():
        if not names:
            raise ValueError(f"The {split!r} split of {root} is empty; every split needs at least one image.")
        for name in names:
            if name in owner:
                where = f"twice in {split!r}" if owner[name] == split else f"in both {owner[name]!r} and {split!r}"
                raise ValueError(f"The name {name!r} stands {where} in the splits of {root}; splits must be disjoint.")
            owner[name] = split
            if name not in images:
                raise ValueError(f"The {split!r} split names {name!r}, but {root} has no such image.")


def _mask_of(name: str, masks: dict[str, Path]) -> Path | None:
    return masks.get(name) or masks.get(f"{name}_pixels0")


def _check_masks(splits: dict[str, list[str]], masks: dict[str, Path], root: Path) -> None:
    """A split has all of its masks or none."""
    for split, names in splits.items():
        missing = [name for name in names if _mask_of(name, masks) is None]
        if missing and len(missing) < len(names):
            raise ValueError(
                f"{len(missing)} of the {len(names)} images in the {split!r} split of {root} have no mask, first "
                f"{missing[0]!r}; give all of them one, or none (masks are optional)."
            )


def _first_folder(root: Path, names: Iterable[str], what: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"{root} has no {what} folder; looked for {', '.join(names)}.")


def _index(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ext = _extension(path.name)
        if ext:
            found.setdefault(path.name[: -len(ext)], path)
    return found


def _index_optional(root: Path, names: Iterable[str]) -> dict[str, Path]:
    return next((_index(root / name) for name in names if (root / name).is_dir()), {})


def _size(array: NDArray[np.generic]) -> str:
    return f"{array.shape[1]}x{array.shape[0]} (width x height)"

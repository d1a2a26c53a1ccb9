"""What lies in a set's folder, found by the first layout that fits: images, masks, and which split a folder says."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from istd.data.images import EXTENSIONS
from istd.data.names import Names, index_files, index_pictures
from istd.data.published import IMAGES, LAYOUTS, Layout, Part


@dataclass(frozen=True)
class FoundPart:
    """A part of a layout as it lies on disk.

    Attributes:
        part: the row of the layout.
        local: by the image's name in this set, its name in this part: the same, unless two parts use one name.
    """

    part: Part
    local: Mapping[str, str]


@dataclass(frozen=True)
class Folder:
    """A set's folder, understood.

    Attributes:
        root: the folder.
        layout: the row that fits.
        parts: its parts that are there.
        images: by name.
        masks: true masks by the name of their image; images without one are missing in it.
        mask_folders: the folders that the masks lie in.
    """

    root: Path
    layout: Layout
    parts: tuple[FoundPart, ...]
    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    mask_folders: tuple[str, ...]

    @cached_property
    def names(self) -> Names:
        """The images' names, for what lists and tables call them."""
        return Names(self.images)

    @property
    def folders(self) -> set[Path]:
        """The folders that images, masks and point labels lie in."""
        marks = [name for found in self.parts for name in (*found.part.centroid, *found.part.coarse)]
        labelled = {self.root / name for name in (*self.mask_folders, *marks)}
        return labelled | {path.parent for path in (*self.images.values(), *self.masks.values())}

    def where(self, path: Path) -> str:
        """A path as messages and records show it: relative to the set's folder."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def beside(self, folders: Mapping[int, Iterable[str]], extensions: tuple[str, ...]) -> dict[str, Path]:
        """Files of the same names as the images.

        Args:
            folders: by position of a part, where its files may lie; the first folder that holds one is taken.
            extensions: of the files that count.
        """
        found: dict[str, Path] = {}
        for i, part in enumerate(self.parts):
            for name in folders.get(i, ()):
                matched = match_files(index_files(self.root / name, extensions), part.local, part.part.mask_endings)
                if matched:
                    found |= matched
                    break
        return found


def open_folder(root: Path) -> Folder:
    """Understand a folder.

    Raises:
        FileNotFoundError: if it is no folder, or no layout fits: it holds no images.
        ValueError: if two files have the same name but for the extension.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"`data` is {str(root)!r}, which is not a folder.")
    for layout in LAYOUTS:
        indices = [_images(root, part) for part in layout.parts]
        if all(indices[: layout.needed]) and _has_lists(root, layout):
            return _understand(root, layout, indices)
    raise FileNotFoundError(
        f"{root} has no images folder with pictures; looked for {', '.join(IMAGES)} and the folders of the published "
        f"layouts (docs/layouts.md), for files that end in {', '.join(EXTENSIONS)}."
    )


def _images(root: Path, part: Part) -> dict[str, Path]:
    folder = root / part.images
    if not folder.is_dir():
        return {}
    if part.images == ".":  # whatever else lies below a folder is not its images
        return index_pictures(folder, depth=0)
    return index_pictures(folder, part.ending)


def _has_lists(root: Path, layout: Layout) -> bool:
    return not layout.lists or any(p.is_dir() for pattern in layout.lists for p in root.glob(pattern.split("/")[0]))


def _understand(root: Path, layout: Layout, indices: list[dict[str, Path]]) -> Folder:
    there = [(part, index) for part, index in zip(layout.parts, indices, strict=True) if index]
    shared = len(set().union(*(index for _, index in there))) < sum(len(index) for _, index in there)
    parts: list[FoundPart] = []
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    mask_folders: list[str] = []
    for part, index in there:
        local = {f"{part.split}/{name}" if shared else name: name for name in index}
        images |= {key: index[name] for key, name in local.items()}
        parts.append(FoundPart(part, local))
        for name in part.masks:
            found = match_files(index_pictures(root / name), local, part.mask_endings)
            if found:
                masks |= found
                mask_folders.append(name)
                break
    return Folder(root, layout, tuple(parts), images, masks, tuple(mask_folders))


def match_files(index: Mapping[str, Path], local: Mapping[str, str], endings: Iterable[str]) -> dict[str, Path]:
    """For each image the file of its name, with one of some endings, with or without its folders.

    Raises:
        ValueError: if one file would serve two images, or two files one image.
    """
    names = Names(index)
    found: dict[str, Path] = {}
    owner: dict[str, str] = {}
    for key, name in local.items():
        file = next((f for ending in endings if (f := names.find(name + ending)) is not None), None)
        if file is None:
            continue
        if file in owner:
            raise ValueError(
                f"{index[file]} would serve the images {owner[file]!r} and {key!r}; lay such files in the same folders "
                "as the images."
            )
        found[key], owner[file] = index[file], key
    return found

"""Lists of images, as sets are published with them, and which belong together.

A list is NAME.txt with an image a line (with or without folder and extension, any line ending), or a COCO file whose
`images` it is. Lists of one folder and ending are a family: `mode/{train,val,test}.txt` is the family `mode`,
`img_idx/{train,test}_SIRST3.txt` is `img_idx/SIRST3`, and so would `img_idx/SIRST3_{train,test}.txt` be.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from istd.data.files import read_text
from istd.data.folder import Folder
from istd.data.published import LIST_FOLDERS

_LIST = re.compile(r"(?:(.+)[_-])??(trainval|train|valid|val|test)([_-].+|\d+)?\.(txt|json)", re.IGNORECASE)
_TEXTS = (".txt", ".csv", ".lst", ".list")


@dataclass(frozen=True)
class Family:
    """Lists that belong together: by split (`train`, `trainval`, `val`, `test`), the file; all lie in one folder."""

    name: str
    place: Path
    files: Mapping[str, Path]

    @property
    def complete(self) -> bool:
        """Whether it can be trained with."""
        return "train" in self.files or "trainval" in self.files


def find_families(folder: Folder) -> list[Family]:
    """The families of lists in a folder, the preferred ones first."""
    found: dict[tuple[str, Path], dict[str, Path]] = {}
    for place in _list_folders(folder):
        for path in sorted(p for p in place.iterdir() if not p.is_dir()):
            match = _LIST.fullmatch(path.name)
            if match is None or (match[4].lower() == "json" and not _of_coco(place, match[1])):
                continue
            if folder.names.find(path.stem) is not None:  # the annotations of one image
                continue
            where, start = folder.where(place), "" if match[4].lower() == "json" else match[1]
            own = "_".join(part for part in (start, (match[3] or "").lstrip("_-")) if part)
            family = "/".join(part for part in ("" if where == "." else where, own) if part) or "."
            split = "val" if match[2].lower() == "valid" else match[2].lower()
            found.setdefault((family, place), {})[split] = path
    families = [Family(name, place, files) for (name, place), files in found.items()]
    return sorted(families, key=lambda family: preference(family.name, folder.layout.lists))


def _of_coco(place: Path, start: str | None) -> bool:
    """Whether JSON of this folder, with this before the split in its name, is a list."""
    return place.name.lower().startswith("annotation") and start in (None, "instances")


def unread_lists(folder: Folder) -> list[Path]:
    """Text files that are lists of images by name and content, but lie or are called otherwise than lists are."""
    read = {path for family in find_families(folder) for path in family.files.values()}
    found = []
    for path in (p for pattern in ("*", "*/*", "*/*/*") for p in sorted(folder.root.glob(pattern))):
        called = path.suffix.lower() in _TEXTS and ("train" in path.name.lower() or "test" in path.name.lower())
        if called and path not in read and path.is_file() and _names_images(folder, path):
            found.append(path)
    return found


def _names_images(folder: Folder, path: Path) -> bool:
    """Whether most lines begin with the name of an image."""
    try:
        known = [folder.names.find(line.split(",")[0]) is not None for line in read_text(path).splitlines() if line]
    except ValueError:  # no text, or a name that several images have
        return False
    return 2 * sum(known) > len(known)


def _list_folders(folder: Folder) -> list[Path]:
    patterns = [pattern.split("/")[0] for pattern in folder.layout.lists] + [*LIST_FOLDERS]
    patterns += [part.part.images for part in folder.parts] + ["annotations", "Annotations"]
    found = [
        p for pattern in patterns for p in ([folder.root] if pattern == "." else sorted(folder.root.glob(pattern)))
    ]
    return [p for p in dict.fromkeys(found) if p.is_dir()]


def preference(name: str, preferred: Sequence[str]) -> int:
    """The rank of a family among the patterns that a layout prefers; behind all of them if none fits."""
    return next((i for i, pattern in enumerate(preferred) if fnmatch(name, pattern)), len(preferred))


def read_list(folder: Folder, path: Path) -> tuple[str, ...]:
    """The names of the images of a list, as the folder has them."""
    found = []
    for number, text in _entries(path):
        try:
            name = folder.names.find(text)
        except ValueError as error:
            raise ValueError(f"{path}, entry {number}: {error}.") from None
        if name is None:
            raise ValueError(f"{path}, entry {number}, names {text!r}, but {folder.root} has no such image.")
        found.append(name)
    return tuple(found)


def _entries(path: Path) -> Iterable[tuple[int, str]]:
    text = read_text(path)
    if path.suffix.lower() != ".json":
        return [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    try:
        return [(i, str(image["file_name"])) for i, image in enumerate(json.loads(text)["images"], 1)]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path} is not COCO JSON with the file names of its 'images'.") from None

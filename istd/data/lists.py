"""Lists of images, as sets are published with them, and which belong together.

A list is NAME.txt with an image a line (with or without folder and extension, any line ending), or a COCO file whose
`images` it is. Lists of one folder and ending are a family: `mode/{train,val,test}.txt` is the family `mode`,
`img_idx/{train,test}_SIRST3.txt` is `img_idx/SIRST3`.
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

_LIST = re.compile(r"(?:instances_)?(trainval|train|valid|val|test)([_-].+|\d+)?\.(txt|json)", re.IGNORECASE)


@dataclass(frozen=True)
class Family:
    """Lists that belong together: by split (`train`, `trainval`, `val`, `test`), the file."""

    name: str
    files: Mapping[str, Path]

    @property
    def complete(self) -> bool:
        """Whether it can be trained with."""
        return "train" in self.files or "trainval" in self.files


def find_families(folder: Folder) -> list[Family]:
    """The families of lists in a folder, the preferred ones first."""
    found: dict[str, dict[str, Path]] = {}
    for place in _list_folders(folder):
        for path in sorted(p for p in place.iterdir() if not p.is_dir()):
            match = _LIST.fullmatch(path.name)
            if match is None or (match[3].lower() == "json" and not place.name.lower().startswith("annotation")):
                continue
            if folder.names.find(path.stem) is not None:  # the annotations of one image
                continue
            where, ending = folder.where(place), (match[2] or "").lstrip("_-")
            family = "/".join(part for part in ("" if where == "." else where, ending) if part) or "."
            split = "val" if match[1].lower() == "valid" else match[1].lower()
            found.setdefault(family, {})[split] = path
    families = [Family(name, files) for name, files in found.items()]
    return sorted(families, key=lambda family: preference(family.name, folder.layout.lists))


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

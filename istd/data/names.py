"""Which image a name in a list or table means: with folders or without, from Windows or not, with dots in it."""

from collections.abc import Iterable
from pathlib import Path

from istd.data.images import EXTENSIONS

DEEPEST = 4  # levels of folders below an image folder: sequences in groups of sequences


def without_extension(name: str) -> str:
    """A file name without its picture extension; other dots are part of the name."""
    ending = next((e for e in EXTENSIONS if name.lower().endswith(e) and len(name) > len(e)), "")
    return name[: len(name) - len(ending)]


def index_pictures(folder: Path, ending: str = "", depth: int = DEEPEST) -> dict[str, Path]:
    """The pictures of a folder by name, in order; where it has none itself, those of its subfolders as `sub/name`.

    Args:
        folder: where to look; hidden files are passed over.
        ending: of the names (before the extension) that count; it is no part of the key.
        depth: how many levels of subfolders are searched.

    Raises:
        ValueError: if two files have the same name but for the extension.
    """
    found: dict[str, Path] = {}
    for name, path in index_files(folder, EXTENSIONS, depth).items():
        if name.endswith(ending):
            found[name[: len(name) - len(ending)]] = path
    return found


def index_files(folder: Path, extensions: tuple[str, ...], depth: int = DEEPEST) -> dict[str, Path]:
    """The files of a folder that have one of some extensions, by name; see `index_pictures`."""
    found: dict[str, Path] = {}
    for path in _files(folder, extensions, depth) if folder.is_dir() else ():
        key = path.relative_to(folder).with_name(path.name[: path.name.rindex(".")]).as_posix()
        if key in found:
            raise ValueError(
                f"{found[key]} and {path.name} have the same name but for the extension; remove one of the two."
            )
        found[key] = path
    return found


def _files(folder: Path, extensions: tuple[str, ...], depth: int) -> list[Path]:
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    direct = [p for p in inside if p.name.lower().endswith(extensions) and not p.is_dir()]
    if direct or depth == 0:
        return direct
    return [p for sub in inside if sub.is_dir() for p in _files(sub, extensions, depth - 1)]


class Names:
    r"""The names of a set of images, and which of them a text means.

    Two paths mean the same image if one of them ends with all components of the other: `C:\set\images\a.png`, `./a`
    and `a.bmp` mean `a`; `0001` means `seq1/0001` if no other sequence has a `0001`.

    Args:
        keys: the names, without extension; folders are separated by `/`.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = frozenset(keys)
        self._tails: dict[str, list[str]] = {}
        for key in sorted(self.keys):
            for tail in _tails(key)[1:]:
                self._tails.setdefault(tail, []).append(key)

    def find(self, text: str) -> str | None:
        """The name that `text` means, or None.

        Raises:
            ValueError: if it may mean several.
        """
        for plain in (normalised(text), without_extension(normalised(text))):
            for tail in _tails(plain):
                if tail in self.keys:
                    return tail
            several = self._tails.get(plain, [])
            if len(several) > 1:
                raise ValueError(f"{text!r} may mean {several[0]!r} or {several[1]!r}; write the folder with it")
            if several:
                return several[0]
        return None


def normalised(text: str) -> str:
    """A path with forward slashes, without empty or `.` components."""
    return "/".join(p for p in text.strip().replace("\\", "/").split("/") if p not in ("", "."))


def _tails(path: str) -> list[str]:
    """`a/b/c`, `b/c`, `c`."""
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]

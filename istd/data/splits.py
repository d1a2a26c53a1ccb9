"""Which images are for training, validation and test: by published lists, by folders, or, said aloud, by chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from istd.data.dataset import SPLITS
from istd.data.folder import Folder
from istd.data.lists import Family, find_families, preference, read_list, unread_lists


@dataclass(frozen=True)
class Splits:
    """Names of three disjoint splits, and what named them.

    Attributes:
        names: by split, the images in the order of their list.
        sources: by split, the list, folder or rule.
        random: whether the test images are a random draw.
    """

    names: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, str]
    random: bool = False


def find_splits(folder: Folder, wanted: str | None = None, seed: int = 0) -> Splits:
    """The splits of a folder.

    Where there is no validation list, a seeded fifth of the training list is held out; where nothing names splits, the
    images are drawn into 60, 20 and 20 %, and the record says so. Without a test list or folder the test split is
    empty.

    Args:
        folder: the set.
        wanted: the family of lists to use; None takes the layout's, and refuses to guess between others.
        seed: of what is drawn.

    Raises:
        ValueError: for an unknown family or several equal ones, lists that are there but not where lists are read, an
            empty training or validation split, a name that stands twice, in two splits, or for no image.
    """
    families = find_families(folder)
    trainable = [family for family in families if family.complete]
    if wanted is not None:
        return _by_lists(folder, _chosen(families, wanted, folder.root), seed)
    if any(part.part.split for part in folder.parts):
        return _by_folders(folder, seed)
    if trainable:
        return _by_lists(folder, _preferred(trainable, folder), seed)
    if any("test" in family.files for family in families):
        named = folder.where(next(f.files["test"] for f in families if "test" in f.files))
        raise ValueError(f"{folder.root} has {named} but no list of training images; write one as train.txt beside it.")
    return _by_chance(folder, seed)


def named_images(folder: Folder, wanted: str, seed: int = 0) -> tuple[tuple[str, ...], str, bool]:
    """The images of one split, what named them, and whether that was chance; without a word on the other splits.

    Args:
        folder: the set.
        wanted: `all`, `train`, `val` or `test`; the name of any list in the folder (`test_no_neardup`), with its folder
            where that is needed (`idx_320/test`).
        seed: as in `find_splits`.

    Raises:
        ValueError: if nothing has that name, or several lists.
    """
    if wanted == "all":
        return tuple(sorted(folder.images)), "all images", False
    families = find_families(folder)
    listed = {folder.where(path): path for family in families for path in family.files.values()}
    paths = [p for w, p in listed.items() if wanted in (w, w[: w.rindex(".")], p.stem)]
    by_folder = any(part.part.split for part in folder.parts)
    if wanted in SPLITS and (by_folder or any(f.complete for f in families) or not paths):
        splits = find_splits(folder, None, seed)
        return splits.names[wanted], splits.sources[wanted], splits.random
    if not paths:
        raise ValueError(
            f"{folder.root} has no split or list {wanted!r}; there are {', '.join([*SPLITS, 'all', *listed])}."
        )
    if len(paths) > 1:
        raise ValueError(
            f"{wanted!r} may be any of {', '.join(folder.where(p) for p in paths)} in {folder.root}; write the folder "
            "with it."
        )
    return read_list(folder, paths[0]), folder.where(paths[0]), False


def hold_out(names: Sequence[str], seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A seeded fifth of some names, at least one, apart from the others."""
    held = set(np.random.default_rng(seed).permutation(len(names))[: max(1, len(names) // 5)].tolist())
    kept = tuple(n for i, n in enumerate(names) if i not in held)
    return kept, tuple(n for i, n in enumerate(names) if i in held)


def _chosen(families: Sequence[Family], wanted: str, root: Path) -> Family:
    found = [f for f in families if wanted == f.name] or [f for f in families if f.name.split("/")[-1] == wanted]
    if len(found) != 1 or not found[0].complete:
        known = ", ".join(f.name for f in families if f.complete) or "none"
        raise ValueError(f"`split` is {wanted!r}, but {root} has these families of lists to train with: {known}.")
    return found[0]


def _preferred(families: Sequence[Family], folder: Folder) -> Family:
    best = families[0]
    rivals = [f for f in families[1:] if f.place == best.place]
    rank = preference(best.name, folder.layout.lists)
    if rivals and preference(rivals[0].name, folder.layout.lists) == rank:
        raise ValueError(
            f"{folder.root} has several families of split lists ({', '.join(f.name for f in (best, *rivals))}); choose "
            "one with `--split NAME`."
        )
    return best


def _by_lists(folder: Folder, family: Family, seed: int) -> Splits:
    lists = {split: read_list(folder, path) for split, path in family.files.items()}
    sources = {split: folder.where(path) for split, path in family.files.items()}
    if "train" not in lists:
        lists["train"], sources["train"] = lists["trainval"], sources["trainval"]
    test = lists.get("test", ())
    if "val" in lists:
        train, val = lists["train"], lists["val"]
    elif set(lists["train"]) < set(lists.get("trainval", ())):
        train, val = lists["train"], tuple(n for n in lists["trainval"] if n not in set(lists["train"]))
        sources["val"] = f"{sources['trainval']} without {sources['train']}"
    else:
        train, val, sources["val"] = _held_out(folder, lists["train"], sources["train"], seed)
    sources.setdefault("test", "no list, so no image")
    return _checked(folder, {"train": train, "val": val, "test": test}, sources, "test" in lists)


def _held_out(
    folder: Folder, names: Sequence[str], source: str, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Training images, validation images, and what to say of the latter."""
    if len(names) == 1:
        raise ValueError(
            f"{folder.root}: {source} names a single image, and there is no list of validation images, for which a "
            "fifth of the training images is held out; name two at least, or give a list val.txt."
        )
    return *hold_out(names, seed), f"a fifth of {source}, drawn with seed {seed}"


def _by_folders(folder: Folder, seed: int) -> Splits:
    names: dict[str, tuple[str, ...]] = dict.fromkeys(SPLITS, ())
    sources = {"test": "no folder, so no image"}
    for found in folder.parts:
        assert found.part.split is not None
        names[found.part.split] += tuple(sorted(found.local))
        sources[found.part.split] = found.part.images + "/"
    if "val" not in sources:
        names["train"], names["val"], sources["val"] = _held_out(folder, names["train"], sources["train"], seed)
    return _checked(folder, names, sources, False)


def _by_chance(folder: Folder, seed: int) -> Splits:
    unread = unread_lists(folder)
    if unread:
        raise ValueError(
            f"{unread[0]} names images of {folder.root}, but lists are not looked for under this name. If it is one of "
            "a split, call it img_idx/train.txt (val.txt, test.txt); else remove it, and splits are drawn at random."
        )
    names = sorted(folder.images)
    order = np.random.default_rng(seed).permutation(len(names))
    cuts = np.split(order, [round(0.6 * len(names)), round(0.8 * len(names))])
    drawn = {split: tuple(names[i] for i in sorted(cut)) for split, cut in zip(SPLITS, cuts, strict=True)}
    what = f"60, 20 and 20 % of {len(names)} images, drawn with seed {seed}"
    checked = _checked(folder, drawn, dict.fromkeys(SPLITS, what), True)
    return Splits(checked.names, checked.sources, random=True)


def _checked(folder: Folder, names: dict[str, tuple[str, ...]], sources: dict[str, str], test_listed: bool) -> Splits:
    owner: dict[str, str] = {}
    for split in SPLITS:
        if not names[split] and (split != "test" or test_listed):
            raise ValueError(
                f"The {split!r} split of {folder.root} ({sources[split]}) is empty; every split needs at least one "
                "image."
            )
        for name in names[split]:
            if name in owner:
                where = f"twice in {split!r}" if owner[name] == split else f"in both {owner[name]!r} and {split!r}"
                raise ValueError(
                    f"The name {name!r} stands {where} in the splits of {folder.root} ({sources[owner[name]]}; "
                    f"{sources[split]}); splits must be disjoint."
                )
            owner[name] = split
    return Splits({split: names[split] for split in SPLITS}, {split: sources[split] for split in SPLITS})

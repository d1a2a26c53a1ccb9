"""Hostile inputs for the data room, each a function of a seeded generator: what is written, and what may come of it.

A case writes files below `root` and returns a check. The check raises ValueError or FileNotFoundError with a message
that names a file or an image, or else asserts that what was read is what the case knows to be right.
"""

import io
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from istd.data.images import read_image
from istd.data.layouts import SPLITS, find_images, load_folder, load_split
from istd.data.masks import read_mask
from istd.data.sensor import SensorRange
from tests.istd.folders import SHAPE, centre, fill, image_of, mask_of, names, write_list

N = names()
JUNK = [
    None,
    True,
    -1,
    0,
    0.5,
    1e308,
    10**40,
    math.nan,
    math.inf,
    "",
    "x",
    "1",
    "\0",
    "../..",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
]
BYTES = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r\n",
    b",",
    b'"',
    b"\x89PNG\r\n\x1a\n",
    b"%!PS-Adobe",
    b"nan",
]


def mutated(content, rng, most=4):
    """Bytes with some of them flipped, cut out, doubled, or replaced by awkward ones."""
    content = bytearray(content)
    for _ in range(int(rng.integers(1, most + 1))):
        at, to = sorted(int(i) for i in rng.integers(0, len(content) + 1, 2))
        kind = rng.integers(6)
        if kind == 0 and content:
            content[min(at, len(content) - 1)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del content[at:to]
        elif kind == 2:
            content[at:at] = content[at : min(to, at + 200)]
        elif kind == 3:
            content[at:at] = BYTES[rng.integers(len(BYTES))]
        elif kind == 4:
            del content[at:]
        else:
            content[at : at + 8] = rng.bytes(8)
    return bytes(content)


def is_image(image):
    return image.dtype == np.float32 and min(image.shape) >= 16 and bool(((image >= 0) & (image <= 1)).all())


def picture(rng):
    """The bytes of a picture in one of the kinds that are read, and its extension."""
    values = rng.integers(0, 256, SHAPE)
    kinds = {
        "png": [values.astype(np.uint8), (values * 257).astype(np.uint16), np.stack([values] * 4, 2).astype(np.uint8)],
        "bmp": [values.astype(np.uint8), np.stack([values] * 3, 2).astype(np.uint8)],
        "jpg": [values.astype(np.uint8)],
        "tif": [values.astype(np.uint8), values.astype(np.float32), (values * 257).astype(np.uint16)],
    }
    ending = str(rng.choice(list(kinds)))
    array = kinds[ending][rng.integers(len(kinds[ending]))]
    image = Image.fromarray(array)
    if ending == "png" and array.dtype == np.uint8 and array.ndim == 2 and rng.integers(3) == 0:
        image = image.convert(str(rng.choice(["1", "P", "LA"])))
    options = {"compression": str(rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate"]))} if ending == "tif" else {}
    if ending != "tif" and rng.integers(3) == 0:
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(0, 12))
        options["exif"] = exif
    content = io.BytesIO()
    image.save(content, {"png": "PNG", "bmp": "BMP", "jpg": "JPEG", "tif": "TIFF"}[ending], **options)
    return content.getvalue(), ending


def broken_picture(root, rng):
    """One picture, cut or mutated: it is an image, or said to be none; a cut one shows the same as the whole."""
    content, ending = picture(rng)
    cut = rng.integers(2) == 0
    path, whole = root / f"p.{ending}", root / f"w.{ending}"
    whole.write_bytes(content)
    path.write_bytes(content[: rng.integers(len(content))] if cut else mutated(content, rng))

    def check():
        image = read_image(path)
        assert is_image(image)
        if cut:
            assert np.array_equal(image, read_image(whole))

    return check


def broken_mask(root, rng):
    """A mask out of random levels: bool of its own size, or refused."""
    levels = rng.choice([0, 1, 2, 3, 127, 128, 252, 254, 255], int(rng.integers(1, 5)))
    values = np.full(SHAPE, levels[0], np.uint8)
    for level in levels[1:]:
        row, col = rng.integers(0, 20, 2)
        values[row : row + rng.integers(1, 6), col : col + rng.integers(1, 6)] = level
    path = root / "m.png"
    Image.fromarray(values).save(path)
    if rng.integers(3) == 0:
        path.write_bytes(mutated(path.read_bytes(), rng))
        return lambda: read_mask(path).dtype == bool or 1 / 0

    def check():
        mask = read_mask(path)
        assert mask.shape == SHAPE
        assert mask.mean() <= 0.5
        assert mask[values == values.max()].all() or not values.any()  # the brightest level is target
        assert not mask[values == 0].any()

    return check


def placed(rng):
    """A target or two for each image: rows and columns inside of it."""
    return {n: [[int(rng.integers(SHAPE[0])), int(rng.integers(SHAPE[1]))]] * int(rng.integers(2)) for n in N}


def called(name, rng):
    """A name as tables write it."""
    return str(rng.choice([name, f"{name}.png", f"images/{name}.PNG", f"D:\\set\\images\\{name}.bmp", f"./{name}"]))


def folder_with(root, rng):
    fill(root, "images", "labels")
    for name, part in (("train", N[:3]), ("val", N[3:4]), ("test", N[4:])):
        write_list(root / "mode" / f"{name}.txt", part)
    return root


def reads(root, form, points, strict):
    """The points of the folder are these; where the file was mutated, they lie inside of their images."""

    def check():
        for sample in load_folder(root, form).samples:
            assert is_image(sample.image)
            assert ((sample.points >= 0) & (sample.points < SHAPE)).all()
            if strict:
                assert sample.points.tolist() == points[sample.name]

    return check


def points_table(root, rng):
    folder_with(root, rng)
    points = placed(rng)
    separator, end = str(rng.choice([",", ";", "\t"])), str(rng.choice(["\n", "\r\n"]))
    lines = [separator.join(("x", "image", "y"))]
    style = rng.integers(5)
    for name, pixels in points.items():
        text = called(name, np.random.default_rng(style))  # alike throughout
        shift = min(round(float(rng.random()), 3), 0.999) if rng.integers(2) else 0
        lines += [separator.join((str(col + shift), text, str(row + shift))) for row, col in pixels]
        lines += [] if pixels else [separator.join(("", text, ""))]
    text = end.join(lines) + end
    content = text.encode(str(rng.choice(["utf-8", "utf-8-sig", "utf-16", "gb18030"])))
    strict = bool(rng.integers(2))
    (root / "points.csv").write_bytes(content if strict else mutated(content, rng))
    small = any(pixels for pixels in points.values()) and all(max(p) < 1 for ps in points.values() for p in ps)
    return reads(root, "csv", points, strict and not small)


def with_junk(tree, rng):
    """A JSON tree with one node replaced."""
    nodes, paths = [((), tree)], []
    while nodes:
        path, node = nodes.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            paths.append((*path, key))
            nodes.append(((*path, key), value))
    path = paths[rng.integers(len(paths))]
    node = tree
    for key in path[:-1]:
        node = node[key]
    if rng.integers(3) == 0:
        del node[path[-1]]
    else:
        node[path[-1]] = JUNK[rng.integers(len(JUNK))]
    return tree


def points_coco(root, rng):
    folder_with(root, rng)
    points = placed(rng)
    tree = {"images": [], "annotations": []}
    for i, (name, pixels) in enumerate(points.items()):
        tree["images"].append({"id": i, "file_name": f"{name}.png", "height": SHAPE[0], "width": SHAPE[1]})
        for row, col in pixels:
            box = {"bbox": [col - 1, row - 1, 3, 3]} if rng.integers(2) else {"keypoints": [col, row, 2]}
            tree["annotations"].append({"id": len(tree["annotations"]), "image_id": i, **box})
    strict = bool(rng.integers(2))
    content = json.dumps(tree if strict else with_junk(tree, rng)).encode()
    if not strict and rng.integers(4) == 0:
        content = mutated(content, rng)
    path = root / str(rng.choice(["points.json", "annotations/all.json"]))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return reads(root, "coco", points, strict)


def points_files(root, rng):
    """An annotation file for each image, in one of three forms."""
    folder_with(root, rng)
    points, form = placed(rng), str(rng.choice(["yolo", "voc", "labelme"]))
    ending, place = {"yolo": ("txt", "annotations"), "voc": ("xml", "Annotations"), "labelme": ("json", "labelme")}[
        form
    ]
    (root / place).mkdir()
    height, width = SHAPE
    for name, pixels in points.items():
        if form == "yolo":
            text = "".join(f"0 {(c + 0.5) / width} {(r + 0.5) / height} 0.1 0.1\n" for r, c in pixels)
        elif form == "voc":
            boxes = (f"<xmin>{c}</xmin><ymin>{r}</ymin><xmax>{c + 2}</xmax><ymax>{r + 2}</ymax>" for r, c in pixels)
            text = "".join(f"<object><bndbox>{box}</bndbox></object>" for box in boxes)
            text = f"<annotation><size><width>{width}</width><height>{height}</height></size>{text}</annotation>"
        else:
            drawn = [{"shape_type": "point", "points": [[c + 0.5, r + 0.5]]} for r, c in pixels]
            text = json.dumps({"shapes": drawn, "imageHeight": height, "imageWidth": width})
        (root / place / f"{name}.{ending}").write_text(text)
    strict = bool(rng.integers(2))
    if not strict:
        path = root / place / f"{rng.choice(N)}.{ending}"
        path.write_bytes(mutated(path.read_bytes() or b"0 0.5", rng))
    return reads(root, form, points, strict)


def split_lists(root, rng):
    """Lists of all kinds of places and endings: the splits are those named, disjoint, and nothing else."""
    folder_with(root, rng)
    shutil.rmtree(root / "mode")
    place, family = str(rng.choice(["mode", "img_idx", "50_50", "splits", "", "images"])), str(rng.choice(["", "_A"]))
    order = [N[i] for i in rng.permutation(len(N))]
    parts = {"train": order[:3], "val": order[3:4], "test": order[4:]}
    for split, part in parts.items():
        write_list(
            root / place / f"{split}{family}.txt", [called(n, rng) for n in part], str(rng.choice(["\n", "\r\n"]))
        )
    strict = bool(rng.integers(2))
    if not strict:
        path = root / place / f"{rng.choice(SPLITS)}{family}.txt"
        path.write_bytes(mutated(path.read_bytes(), rng))

    def check():
        data = load_folder(root)
        found = {split: [s.name for s in getattr(data, split)] for split in SPLITS}
        everything = [n for part in found.values() for n in part]
        assert len(set(everything)) == len(everything)
        assert set(everything) <= set(N)
        assert found == parts or not strict
        assert not data.origins[0].random_split

    return check


def broken_folder(root, rng):
    """A folder after some accidents: what is read is an image with its own mask, and no split holds another's name."""
    folder_with(root, rng)
    for _ in range(int(rng.integers(1, 4))):
        files = sorted(p for p in root.rglob("*") if p.is_file() or (p.is_symlink() and not p.is_dir()))
        folders = sorted(p for p in root.rglob("*") if p.is_dir() and not p.is_symlink())
        if files and folders:
            ACCIDENTS[rng.integers(len(ACCIDENTS))](
                files[rng.integers(len(files))], folders[rng.integers(len(folders))]
            )

    def check():
        for name, path in find_images(root).items():
            assert path.name.startswith(name.split("/")[-1])
        data = load_folder(root)
        load_split(root, "all", "none")
        for sample in data.samples:
            truth = sample.truth()
            i = N.index(sample.name.split("/")[-1]) if sample.name.split("/")[-1] in N else None
            assert is_image(sample.image)
            assert truth is None or truth.shape == sample.image.shape
            if truth is not None and i is not None and "swapped" not in sample.name:
                assert np.array_equal(truth, mask_of(i) > 0)
                assert np.array_equal(np.rint(255 * sample.image), image_of(i))
                assert sample.points.tolist() == [list(centre(i))]

    return check


def _empty(file, folder):
    file.write_bytes(b"")


def _remove(file, folder):
    file.unlink()


def _remove_folder(file, folder):
    shutil.rmtree(folder)


def _move(file, folder):
    file.rename(folder / file.name)


def _bmp(file, folder):
    shutil.copy(file, file.with_suffix(".bmp"))


def _pipe(file, folder):
    file.unlink()
    os.mkfifo(file)


def _loop(file, folder):
    if not (folder / "loop").is_symlink():
        (folder / "loop").symlink_to(folder, target_is_directory=True)


def _dangling(file, folder):
    file.unlink()
    file.symlink_to("nowhere")


def _as_folder(file, folder):
    file.unlink()
    file.mkdir()


def _odd_name(file, folder):
    os.rename(file, os.fsencode(file.parent) + b"/\xff\xfe,\n'" + os.fsencode(file.suffix))


def _long_name(file, folder):
    file.rename(file.with_name("n" * (250 - len(file.suffix)) + file.suffix))


def _rename_folder(file, folder):
    new = folder.with_name("img" if folder.name == "images" else "masks")
    folder.rename(folder.with_name("other") if new.exists() else new)


ACCIDENTS = [_empty, _remove, _remove_folder, _move, _bmp, _pipe, _loop, _dangling, _as_folder, _odd_name, _long_name]
ACCIDENTS += [_rename_folder]


def sensor_rule(root, rng):
    """A sensor's range out of junk, applied to a frame of any kind."""
    content = {"low": float(rng.normal()), "high": float(rng.normal(100))} if rng.integers(2) else {}
    content |= {"percentiles": [1, 99], "polarity": str(rng.choice(["white-hot", "black-hot"]))}
    if rng.integers(2):
        content[str(rng.choice(["low", "high", "percentiles", "polarity", "more"]))] = JUNK[rng.integers(len(JUNK))]
    dtype = [np.uint8, np.uint16, np.int32, np.float32, np.float64][rng.integers(5)]
    frame = rng.normal(0, 10.0 ** rng.integers(-3, 8), SHAPE)
    frame = (frame if np.issubdtype(dtype, np.floating) else np.clip(frame, 0, np.iinfo(dtype).max)).astype(dtype)

    def check():
        try:
            rule = SensorRange.from_dict(content)
            assert SensorRange.from_dict(rule.to_dict()) == rule
            assert is_image(rule(frame))
        except ValueError as error:
            raise ValueError(f"{root}: {error}") from None  # a rule has no file; its caller names it

    return check


CASES = [broken_picture, broken_mask, points_table, points_coco, points_files, split_lists, broken_folder, sensor_rule]


def clean(root: Path) -> None:
    """Remove what a case has written."""
    shutil.rmtree(root, ignore_errors=True)

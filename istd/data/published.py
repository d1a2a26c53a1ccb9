"""The layouts in which sets of infrared small targets are published, one row each.

To add a layout: write its row here, a line in docs/layouts.md, and a tiny folder in tests/istd/test_data_layouts.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Images that lie in one folder, with what belongs to them.

    Attributes:
        images: folder of the images, relative to the set's own; `.` is that itself.
        masks: folders that may hold their masks, the first that holds pictures is taken.
        split: what the folder says of the split of its images: `train` (validation is held out of it unless there is a
            `val`), `val`, `test`, or None where lists name the splits.
        ending: of the image's file names, before the extension, where images and masks share a folder.
        mask_endings: what may follow an image's name in that of its mask.
        centroid: folder of one pixel per target, at its centroid.
        coarse: folder of one pixel per target, anywhere on it.
        boxes: folders that may hold an annotation file for each image (YOLO txt, VOC XML, LabelMe JSON).
    """

    images: str
    masks: tuple[str, ...] = ()
    split: str | None = None
    ending: str = ""
    mask_endings: tuple[str, ...] = ("", "_pixels0", "_mask", "_gt")
    centroid: tuple[str, ...] = ("masks_centroid",)
    coarse: tuple[str, ...] = ("masks_coarse",)
    boxes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A published arrangement of folders.

    Attributes:
        name: of the set, or of the code that introduced the arrangement.
        parts: its image folders; a folder is read by the first row of which it has every part that is `needed`.
        lists: its split lists, the preferred ones first: `FOLDER`, or `FOLDER/FAMILY` for FOLDER/train_FAMILY.txt; a
            folder without any of them is not of this layout, unless the tuple is empty.
        needed: how many of the parts, from the first, must be there; one that is not is left out.
    """

    name: str
    parts: tuple[Part, ...]
    lists: tuple[str, ...] = ()
    needed: int = 1


IMAGES = ("images", "img", "image", "imgs", "JPEGImages", "PNGImages", "IRSTD1k_Img")
MASKS = ("labels", "masks", "label", "mask", "gt", "SegmentationClass", "full-supervised", "IRSTD1k_Label")
BOXES = ("labels", "annotations", "Annotations", "labelme", "annotations/bboxes")


def _by_folder(train: str, test: str, val: str, images: str, masks: tuple[str, ...]) -> tuple[Part, ...]:
    """Parts whose folders are the splits: TRAIN/IMAGES, TEST/IMAGES, VAL/IMAGES."""
    return tuple(
        Part(
            f"{folder}/{images}",
            tuple(f"{folder}/{m}" for m in masks),
            split,
            centroid=(f"{folder}/masks_centroid",),
            coarse=(f"{folder}/masks_coarse",),
            boxes=(f"{folder}/labels", f"{folder}/annotations", f"{folder}/{images}"),
        )
        for folder, split in ((train, "train"), (test, "test"), (val, "val"))
    )


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "SIRST-V2",
        (
            Part(
                "mixed",
                ("annotations/masks",),
                boxes=("annotations/bboxes", "annotations/centroids"),
            ),
        ),
        lists=("splits/full", "splits"),
    ),
    Layout(
        "SIRST-V2, VOC folders",
        (Part("PNGImages", ("SIRST/BinaryMask", "SIRST/PaletteMask"), boxes=("SIRST/BBox",)),),
        lists=("Splits/full", "Splits", "splits"),
    ),
    Layout(
        "Pascal VOC",
        (Part("JPEGImages", ("SegmentationClass",), boxes=("Annotations",)),),
        lists=("ImageSets/Main", "ImageSets/*"),
    ),
    Layout("IRSTD-1k", (Part("IRSTD1k_Img", ("IRSTD1k_Label",), boxes=BOXES),)),
    Layout(
        "MDvsFA",
        (
            Part("training", ("training",), "train", ending="_1", mask_endings=("_2",)),
            Part("test_org", ("test_gt",), "test"),
        ),
    ),
    Layout(
        "PAL",
        (
            Part(
                "origin/img",
                ("origin/mask",),
                "train",
                centroid=("origin/masks_centroid",),
                coarse=("origin/masks_coarse",),
            ),
            Part("val/img", ("val/mask",), "test", centroid=("val/masks_centroid",), coarse=("val/masks_coarse",)),
        ),
        needed=2,
    ),
    Layout("Roboflow", _by_folder("train", "test", "valid", "images", ("masks", "labels")), needed=2),
    Layout("SIRST-Aug", _by_folder("trainval", "test", "val", "images", ("masks",)), needed=2),
    Layout("split by folder", _by_folder("train", "test", "val", "images", ("labels", "masks")), needed=2),
    Layout("split by folder (image, mask)", _by_folder("train", "test", "val", "image", ("mask", "gt")), needed=2),
    Layout("split by folder (img, gt)", _by_folder("train", "test", "val", "img", ("gt", "mask")), needed=2),
    Layout(
        "YOLO",
        tuple(
            Part(
                f"images/{split}",
                (f"masks/{split}", f"labels/{split}"),
                split,
                centroid=(f"masks_centroid/{split}",),
                coarse=(f"masks_coarse/{split}",),
                boxes=(f"labels/{split}",),
            )
            for split in ("train", "val", "test")
        ),
    ),
    Layout("NUAA-SIRST", (Part("images", ("masks", "labels"), boxes=BOXES),), lists=("idx_427", "idx_320")),
    Layout("NUDT-SIRST", (Part("images", ("masks", "labels"), boxes=BOXES),), lists=("50_50", "[0-9]*_[0-9]*")),
    Layout("SIRST3", (Part("images", ("masks", "labels"), boxes=BOXES),), lists=("img_idx",)),
    Layout("semantic-priors", (Part("images", ("labels", "masks"), boxes=BOXES),), lists=("mode",)),
    *(Layout(f"{images}/", (Part(images, MASKS, boxes=(*BOXES, images)),)) for images in IMAGES),
    Layout("images in the folder itself", (Part(".", MASKS, boxes=(*BOXES, ".")),)),
)
"""Rows are tried in this order: those with folders that no other has come first, the aliases last."""

LIST_FOLDERS = ("mode", "img_idx", "splits", "Splits", "idx_*", "[0-9]*_[0-9]*", "split", "ImageSets/*", ".")
"""Where split lists may lie in any layout, in the order in which they are preferred; then beside the images."""

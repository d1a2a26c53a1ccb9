"""Tiny dataset folders for tests: images of 24 x 32 with one 3 x 3 target each, laid out as a test wants."""

import numpy as np
from PIL import Image

SHAPE = (24, 32)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def centre(i):
    """Row and column of the target of image i."""
    return 4 + i, 6 + 2 * i


def mask_of(i):
    mask = np.zeros(SHAPE, np.uint8)
    row, col = centre(i)
    mask[row - 1 : row + 2, col - 1 : col + 2] = 255
    return mask


def image_of(i):
    image = np.random.default_rng(i).integers(40, 60, SHAPE).astype(np.uint8)
    image[mask_of(i) > 0] = 200
    return image


def mark_of(i):
    mark = np.zeros(SHAPE, np.uint8)
    mark[centre(i)] = 255
    return mark


def names(n=6):
    return [f"im{i}" for i in range(n)]


def fill(root, images, masks=None, marks=None, mask_ending="", n=6, called=None):
    """Write n images, and masks and marks where their folders are named."""
    for i, name in enumerate(called or names(n)):
        save(root / images / f"{name}.png", image_of(i))
        if masks is not None:
            save(root / masks / f"{name}{mask_ending}.png", mask_of(i))
        if marks is not None:
            save(root / marks / f"{name}.png", mark_of(i))
    return root


def write_list(path, lines, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())

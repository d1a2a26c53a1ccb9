"""Frozen features for training batches: computed once per image, or per crop as published."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from istd.teacher.frozen import FrozenVFM

TokenSource = Callable[[Tensor, Tensor], Tensor]
"""`source(indices, crops) -> (B, K, N, D)`: sample indices `(B,)` on the CPU, unnormalised crops `(B, 1, H, W)`."""


def image_tokens(
    vfm: FrozenVFM,
    images: Sequence[NDArray[np.float32]],
    size: int,
    device: torch.device,
    progress: bool = True,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """Tokens of whole images, resized to `size x size`: `(len(images), K, N, D)` on the CPU.

    SCAM reduces the tokens to one vector for the whole image, so they need not be aligned with a crop, and the frozen
    model runs once per image instead of once per crop.

    In float32 training is what it is with tokens computed anew for every batch, bit for bit. Half precision takes half
    the memory and moves each token t by at most 2^-11 |t| (2^-25 below 2^-14), a random error of a trained adapter's
    input that is far smaller than any augmentation; from there on two trainings drift apart as two seeds do.
    """
    rows = [
        vfm.tokens(torch.from_numpy(image)[None, None].to(device), size).to(dtype).cpu()
        for image in tqdm(images, desc="frozen features", unit="image", disable=not progress, leave=False)
    ]
    return torch.cat(rows)


def cached_tokens(cache: Tensor) -> TokenSource:
    """A token source that looks batches up in the cache of `image_tokens` and puts them beside their crops."""
    return lambda index, crops: cache[index].to(crops.device, non_blocking=True).float()


def crop_tokens(vfm: FrozenVFM) -> TokenSource:
    """A token source that runs the VFM on every crop (published)."""
    return lambda _, crops: vfm.tokens(crops.clamp(0.0, 1.0))

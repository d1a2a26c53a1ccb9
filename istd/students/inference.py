"""The form of a student that is deployed: the same outputs from fewer operations."""

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def inference_form(student: nn.Module) -> nn.Module:
    """A copy in eval mode with its re-parameterisable parts merged and its normalisations folded into convolutions.

    A part is re-parameterisable if it has a method `merge` (`istd.students.repisd.RepConv`, say). In eval mode batch
    normalisation is a fixed affine map of every channel, so one that follows a convolution is a change of its kernel
    and bias. It follows the convolution in an `nn.Sequential`, or a module says so: its attribute `folds` holds pairs
    of names, (convolution, normalisation). What lies between the two, interpolation say, must commute with affine maps.
    The outputs are the same to rounding.
    """
    out = copy.deepcopy(student).eval()
    for module in list(out.modules()):
        merge = getattr(module, "merge", None)
        if callable(merge):
            merge()
    for module in list(out.modules()):
        for convolution, norm in _pairs(module):
            _fold(module, convolution, norm)
    return out


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the convolutions in a module and of the normalisations that follow them."""
    if isinstance(module, nn.Sequential):
        yield from pairwise(name for name, _ in module.named_children())
    yield from getattr(module, "folds", ())


def _fold(module: nn.Module, convolution: str, norm: str) -> None:
    conv, after = module.get_submodule(convolution), module.get_submodule(norm)
    if isinstance(conv, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
        fused: Any = fuse_conv_bn_eval(conv, after)
        module.set_submodule(convolution, fused)
        module.set_submodule(norm, nn.Identity())

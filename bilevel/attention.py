"""Scaled dot-product attention by the kernel that has second derivatives and forward-mode rules."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SWITCHES = ("flash", "mem_efficient", "math", "cudnn")


@contextmanager
def composed_attention() -> Iterator[None]:
    """Inside, `scaled_dot_product_attention` is composed of products and a softmax, on every device.

    The fused kernels give the same values to rounding but can be differentiated only once. The same effect as
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`, by its switches: entered at every step, that costs too much.
    """
    flags = torch.backends.cuda  # these hold for the CPU's kernels too
    before = {name: getattr(flags, f"{name}_sdp_enabled")() for name in _SWITCHES}
    try:
        for name in _SWITCHES:
            getattr(flags, f"enable_{name}_sdp")(name == "math")
        yield
    finally:
        for name, enabled in before.items():
            getattr(flags, f"enable_{name}_sdp")(enabled)

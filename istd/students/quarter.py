"""What ACM and ALCNet share: a small residual encoder at a quarter of the input's resolution, and their fusion."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from istd.students.attention import modulation_gate
from istd.students.blocks import BasicBlock, conv_bn_relu, logit_bias

# What a new batch counts in the running statistics of stem, shortcuts, fusion and head. The authors' framework lets the
# old ones count 0.9; the ports to PyTorch, where the number is that of the new ones, kept it, and so do we.
MOMENTUM = 0.9

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": partial(nn.BatchNorm2d, momentum=MOMENTUM),
    "group": partial(nn.GroupNorm, 1),
}


def quarter_stem(cin: int, hidden: int, cout: int) -> nn.Sequential:
    """Normalisation, a strided and two plain convolutions, and maxima: `(B, cin, H, W) -> (B, cout, H/4, W/4)`."""
    return nn.Sequential(
        nn.BatchNorm2d(cin, momentum=MOMENTUM),
        nn.Conv2d(cin, hidden, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(hidden, momentum=MOMENTUM),
        nn.ReLU(inplace=True),
        *conv_bn_relu(hidden, hidden, momentum=MOMENTUM),
        *conv_bn_relu(hidden, cout, momentum=MOMENTUM),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def residual_blocks(cin: int, cout: int, count: int, stride: int = 1) -> nn.Sequential:
    """`count` residual blocks, the first of which changes the number of channels and the size."""
    first = BasicBlock(cin, cout, stride, momentum=MOMENTUM)
    return nn.Sequential(first, *(BasicBlock(cout, cout) for _ in range(count - 1)))


def residual_stages(channels: Sequence[int], blocks: int) -> nn.ModuleList:
    """Stage i has `channels[i]` channels, and half the size of the one before it."""
    first = residual_blocks(channels[0], channels[0], blocks)
    return nn.ModuleList([first, *(residual_blocks(a, b, blocks, stride=2) for a, b in pairwise(channels))])


def upsampling(cin: int, cout: int) -> nn.ConvTranspose2d:
    """`(B, cin, H, W) -> (B, cout, 2 H, 2 W)`, a transposed 4x4 convolution."""
    return nn.ConvTranspose2d(cin, cout, 4, stride=2, padding=1)


def logit_head(channels: int) -> nn.Sequential:
    """3x3 convolution to a quarter of the channels, dropout, 1x1 convolution to one logit."""
    inner = max(channels // 4, 1)
    head = nn.Sequential(
        *conv_bn_relu(channels, inner, momentum=MOMENTUM), nn.Dropout(0.1), last := nn.Conv2d(inner, 1, 1)
    )
    logit_bias(last)
    return head


class AsymmetricModulation(nn.Module):
    """`relu(norm(conv3x3(2 low * topdown(high) + 2 high * bottomup(low))))`, both maps `(B, C, H, W)`.

    Args:
        channels: C.
        norm: `"batch"`, as in the authors' code and the weights that LESPS publishes, or `"group"` (one group), as in
            PAL's code, whose gates do not depend on the batch.

    Source: Dai et al. (2021), equation 5; the factors 2, which keep the scale, are in the released code.
    """

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        make = NORMS[norm]
        self.topdown = modulation_gate(channels, pool=True, norm=make)
        self.bottomup = modulation_gate(channels, pool=False, norm=make)
        self.post = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), make(channels), nn.ReLU(inplace=True))

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Fuse a coarse map, already upsampled, with a fine one."""
        out: Tensor = self.post(2 * (low * self.topdown(high) + high * self.bottomup(low)))
        return out

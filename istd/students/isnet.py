"""ISNet: shape matters (Zhang et al., CVPR 2022).

A residual U-Net from stride 4 on whose two skips pass through deformable attention (TTOA), and a branch that follows
the target's outline at full resolution: from the image's gradient, through three blocks after a finite-difference
scheme (TFD), each gated by a side output of the U-Net. The outline's probability lifts the features of the mask head.

At width 1 all layers are the published ones, in the form of the PAL release, which takes the gradient inside the
network. Left out is what that release constructs and never calls, and its fixed difference filters, which are written
as differences here. Interpolations to the size a map already has are dropped.

Outputs: the mask (used at test) and its outline. BasicIRSTD trains both, by `soft-IoU(mask)` and by `10 BCE(edge) +
soft-IoU(edge)`, which the outline declares as its own loss; PAL trains the mask alone.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.base import Output, Stage, Student
from istd.students.blocks import BasicBlock, logit_layer, scaled
from istd.students.deformable import DeformableConv
from istd.students.registry import STUDENTS, StudentInfo

BLOCKS = 4  # residual blocks per stage, in the encoder and the decoder


def gradient_magnitude(x: Tensor) -> Tensor:
    """`sqrt(gv^2 + gh^2 + 1e-6)`, g the difference of both neighbours, zero outside: `(B, c, H, W) -> (B, c, H, W)`."""
    padded = F.pad(x, (1, 1, 1, 1))
    vertical = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    horizontal = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    return torch.sqrt(vertical.square() + horizontal.square() + 1e-6)


def _stage(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(BasicBlock(cin, cout, stride), *(BasicBlock(cout, cout) for _ in range(BLOCKS - 1)))


def _stem(cin: int, hidden: int, cout: int) -> nn.Sequential:
    """`(B, cin, H, W) -> (B, cout, H/4, W/4)`; the image is normalised with learned scale and shift."""
    layers: list[nn.Module] = [nn.BatchNorm2d(cin)]
    for a, b, stride in ((cin, hidden, 2), (hidden, hidden, 1), (hidden, cout, 1)):
        layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(3, stride=2, padding=1))


class TwoOrientationAttention(nn.Module):
    """Fusion of a coarse map l and a fine map h: `2 l + (sigmoid(row(l)) + sigmoid(column(l))) h`.

    `row` and `column` are deformable convolutions of 1x3 and 3x1; both maps first pass the same two 1x1 convolutions.

    Source: Zhang et al. (2022), two-orientation attention aggregation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.row, self.column = DeformableConv(channels, (1, 3)), DeformableConv(channels, (3, 1))
        hidden = max(channels // 2, 1)
        self.prepare = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Both `(B, c, H, W)` -> `(B, c, H, W)`."""
        coarse, fine = self.prepare(coarse), self.prepare(fine)
        out: Tensor = 2 * coarse + (self.row(coarse).sigmoid() + self.column(coarse).sigmoid()) * fine
        return out


class _Pair(nn.Module):
    """3x3 convolution, normalisation, ReLU, 3x3 convolution, normalisation."""

    folds = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return out


class GatedConv(nn.Module):
    """`W ((1 + a) x)`, W a 1x1 convolution, a one gate per pixel from `[x, guide]`; `(B, c, H, W) -> (B, c, H, W)`.

    Source: Takikawa et al. (Gated-SCNN, ICCV 2019), as ISNet uses it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, channels, 1, bias=False)
        self.gate = nn.Sequential(
            nn.BatchNorm2d(channels + 1),
            nn.Conv2d(channels + 1, channels + 1, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels + 1, 1, 1),
            nn.BatchNorm2d(1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Features `(B, c, H, W)` and a guide `(B, 1, H, W)`."""
        out: Tensor = self.project(x * (1 + self.gate(torch.cat([x, guide], dim=1))))
        return out


class TaylorDifference(nn.Module):
    """`3 d + u + gated(u, guide)` with d = relu(r1(x)) and u = relu(r2(relu(x + r1(x)))), r two convolutions.

    Source: Zhang et al. (2022), Taylor finite difference inspired edge block.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _Pair(channels), _Pair(channels)
        self.gated = GatedConv(channels)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """`(B, c, H, W)` and `(B, 1, H, W)` -> `(B, c, H, W)`."""
        change = self.first(x)
        u = F.relu(self.second(F.relu(x + change, inplace=True)), inplace=True)
        return torch.add(u + self.gated(u, guide), F.relu(change, inplace=True), alpha=3)


class ISNet(Student):
    """ISNet with a `width` factor on every channel count.

    The first stage is the image's gradient, from which the outline's branch starts.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    contiguous_training = True
    outputs = (Output("mask"), Output("edge", target="edge", loss=((10.0, "bce"), (1.0, "soft-iou"))))

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        stem, *c = (scaled(n, width) for n in (8, 16, 32, 64))
        self.in_channels = in_channels
        self.stages = (Stage(in_channels, 1), *(Stage(n, 4 * 2**i) for i, n in enumerate(c)))
        self.stem = _stem(in_channels, stem, c[0])
        self.fuse = nn.ModuleList(TwoOrientationAttention(n) for n in (c[1], c[0]))
        self.encoder = nn.ModuleList([_stage(c[0], c[0]), _stage(c[0], c[1], 2), _stage(c[1], c[2], 2)])
        self.decoder = nn.ModuleList(
            nn.ModuleList([nn.ConvTranspose2d(high, low, 4, stride=2, padding=1), _stage(low, low)])
            for high, low in ((c[2], c[1]), (c[1], c[0]))
        )
        inner = max(c[0] // 4, 1)
        self.head = nn.Sequential(
            nn.Conv2d(c[0], inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
            logit_layer(inner),
        )
        self.guides = nn.ModuleList(nn.Conv2d(n, 1, 1) for n in reversed(c))
        self.edge_logits = nn.Conv2d(c[2], 1, 1, bias=False)
        self.lift = nn.Conv2d(in_channels, c[2], 1)
        self.edge = nn.ModuleList(TaylorDifference(c[2]) for _ in range(3))

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, c, H, W) -> [(B, c, H, W), (B, 16 w, H/4, W/4), (B, 32 w, H/8, W/8), (B, 64 w, H/16, W/16)]`."""
        features, y = [gradient_magnitude(x)], self.stem(x)
        for stage in self.encoder:
            y = stage(y)
            features.append(y)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)` of the mask."""
        return self.decode_all(features)[0]

    def decode_all(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """Encoder outputs -> logits of the mask and of its outline, `(B, 1, H, W)` each."""
        gradient, *fine, y = features
        size, guides = gradient.shape[-2:], [y]
        step: Any
        for fuse, step, low in zip(self.fuse, self.decoder, reversed(fine), strict=True):
            up, refine = step
            y = refine(fuse(up(y), low))
            guides.append(y)
        edge = self.lift(gradient)
        for block, head, guide in zip(self.edge, self.guides, guides, strict=True):
            edge = block(edge, F.interpolate(head(guide), size=size, mode="bilinear", align_corners=True))
        edge = self.edge_logits(edge)
        y = F.interpolate(y, size=size, mode="bilinear", align_corners=False)
        return self.head(y + y * edge.sigmoid()), edge


# Built by the release and never called; the fixed filters of the gradient are code here.
LEFT_OUT = (
    *("res1", "d1", "res2", "d2", "res3", "d3", "cw", "gate1", "gate2", "gate3"),
    *("SA", "SA_att", "head2", "conv2_1", "conv16", "grad_extractor"),
)
STUDENTS.register(
    "isnet",
    StudentInfo(ISNet, "ISNet (Zhang et al., 2022)", published_parameters=1_090_671, gflops=62.27, left_out=LEFT_OUT),
)

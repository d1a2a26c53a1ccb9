"""RepISD-Net: efficient detection by structural re-parameterisation (Wu et al., IEEE TGRS 2023).

A U-Net of 32, 64 and 64 channels whose inner convolutions have several branches in training and are one 3x3 convolution
at inference (`RepConv`), then pyramid pooling and a head of two classes. Every layer is the published one, in the
training form; `inference_form` merges the branches into the published deployment form.

The release ends in a sigmoid per class (not a softmax), trains the Dice loss on class 1, the target, and decides by
p_1 > 0.5. So the logit of class 1 is our map: `sigmoid(decode(features)) = p_1`. Class 0, the first channel of
`class_logits`, is in no loss and in no decision, there and here.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.base import Stage, Student
from istd.students.blocks import conv_bn_relu, logit_layer, scaled
from istd.students.registry import STUDENTS, StudentInfo

BINS = (1, 2, 3, 6)


def _folded(kernel: Tensor, bias: Tensor | float, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias of `norm(conv(x))` in eval mode, where normalisation is an affine map of every channel."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return gain[:, None, None, None] * kernel, norm.bias + gain * (bias - norm.running_mean)


class RepConv(nn.Module):
    """Branched 3x3 convolution, `(B, cin, H, W) -> (B, cout, H, W)`, before its activation.

    Training: `bn(k * x) + bn(d * x) + bn(p * x + b) [+ bn(x) where cin = cout]`, where k and d are 3x3, p is 1x1 and
    d's entries sum to zero, since the sum of its free weights is taken from its centre (a central difference). In eval
    mode all branches are linear, so their kernels add up: one convolution computes them, and `merge` keeps only that.

    Source: Wu et al. (2023); Ding et al. (RepVGG, CVPR 2021) for the merging of branches.
    """

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.identity = nn.BatchNorm2d(cin) if cin == cout else None
        self.full, self.full_norm = nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout)
        self.contrast, self.contrast_norm = nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout)
        self.point, self.point_norm = nn.Conv2d(cin, cout, 1), nn.BatchNorm2d(cout)
        self.merged: nn.Conv2d | None = None

    def _difference(self) -> Tensor:
        free = self.contrast.weight
        return free - F.pad(free.sum((2, 3), keepdim=True), (1, 1, 1, 1))

    def _merged(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the one convolution that the branches equal in eval mode."""
        assert self.point.bias is not None
        parts = [
            _folded(self.full.weight, 0.0, self.full_norm),
            _folded(self._difference(), 0.0, self.contrast_norm),
            _folded(F.pad(self.point.weight, (1, 1, 1, 1)), self.point.bias, self.point_norm),
        ]
        if self.identity is not None:
            eye = torch.eye(self.full.out_channels, device=self.full.weight.device, dtype=self.full.weight.dtype)
            parts.append(_folded(F.pad(eye[..., None, None], (1, 1, 1, 1)), 0.0, self.identity))
        kernels, biases = zip(*parts, strict=True)
        return sum(kernels[1:], kernels[0]), sum(biases[1:], biases[0])

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the branches."""
        if self.merged is not None:
            return torch.as_tensor(self.merged(x))
        if not self.full_norm.training:
            return F.conv2d(x, *self._merged(), padding=1)
        out: Tensor = self.full_norm(self.full(x))
        out = out + self.contrast_norm(F.conv2d(x, self._difference(), padding=1)) + self.point_norm(self.point(x))
        return out if self.identity is None else out + self.identity(x)

    @torch.no_grad()
    def merge(self) -> None:
        """Replace the branches by the one convolution that they equal in eval mode."""
        weight, bias = self._merged()
        cout, cin = weight.shape[:2]
        merged = nn.Conv2d(cin, cout, 3, padding=1, device=weight.device, dtype=weight.dtype)
        merged.weight.copy_(weight)
        merged.bias.copy_(bias)  # type: ignore[union-attr]
        self.merged = merged
        del self.full, self.full_norm, self.contrast, self.contrast_norm, self.point, self.point_norm, self.identity


def _branched_pair(cin: int, hidden: int, cout: int) -> nn.Sequential:
    return nn.Sequential(RepConv(cin, hidden), nn.ReLU(inplace=True), RepConv(hidden, cout), nn.ReLU(inplace=True))


class PyramidPooling(nn.Module):
    """The input beside its means on grids of `BINS` cells a side, `(B, c, H, W) -> (B, 2 c, H, W)`.

    Each grid is projected to c/4 channels and interpolated back. Source: Zhao et al. (PSPNet, CVPR 2017).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(conv_bn_relu(channels, channels // len(BINS), 1) for _ in BINS)

    def forward(self, x: Tensor) -> Tensor:
        """Join the input and its four grids of means."""
        grids = [project(F.adaptive_avg_pool2d(x, bins)) for bins, project in zip(BINS, self.project, strict=True)]
        wide = [F.interpolate(g, size=x.shape[-2:], mode="bilinear", align_corners=True) for g in grids]
        return torch.cat([x, *wide], dim=1)


class RepISDNet(Student):
    """RepISD-Net with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
        dropout: probability at which the head drops a channel in training.
    """

    contiguous_training = True

    def __init__(self, width: float = 1.0, in_channels: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        self.in_channels = in_channels
        c = [scaled(n, width) for n in (32, 64, 64)]
        self.stages = tuple(Stage(n, 2**i) for i, n in enumerate(c))
        self.stem = nn.Sequential(conv_bn_relu(in_channels, c[0]), conv_bn_relu(c[0], c[0]))
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), _branched_pair(a, b, b)) for a, b in pairwise(c))
        self.up = nn.ModuleList([_branched_pair(c[1] + c[2], c[1], c[0]), _branched_pair(2 * c[0], c[0], c[0])])
        self.pyramid = PyramidPooling(c[0])
        self.head = nn.Sequential(conv_bn_relu(2 * c[0], c[0]), nn.Dropout2d(dropout), logit_layer(c[0], 2))

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W) -> [(B, 32 w, H, W), (B, 64 w, H/2, W/2), (B, 64 w, H/4, W/4)]`."""
        fine = self.stem(x)
        middle = self.down[0](fine)
        return [fine, middle, self.down[1](middle)]

    def class_logits(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits of background and target, `(B, 2, H, W)`, whose sigmoids the release returns."""
        fine, middle, x = features
        for up, skip in zip(self.up, (middle, fine), strict=True):
            wide = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True)
            x = up(torch.cat([skip, wide], dim=1))
        out: Tensor = self.head(self.pyramid(x))
        return out

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)` of the target."""
        return self.class_logits(features)[:, 1:]


STUDENTS.register(
    "repisd", StudentInfo(RepISDNet, "RepISD-Net (Wu et al., 2023)", published_parameters=558_530, gflops=12.81)
)

"""RepISD-Net: efficient detection by structural re-parameterisation (Wu et al., IEEE TGRS 2023).

A small residual encoder-decoder of convolutions that have several branches in training (3x3, 1x1, and a 3x3 of central
differences, each with its own batch normalisation, and the normalised input where the shape allows) and are one 3x3
convolution at inference: all branches are linear between the normalisation's fixed statistics, so their kernels add up.
`inference_form` merges them. The authors' code is not public to us; the layout here follows the paper's idea at the
size it reports, so the count agrees only approximately.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.base import Stage, Student
from istd.students.blocks import logit_layer, scaled
from istd.students.registry import STUDENTS, StudentInfo


class RepConv(nn.Module):
    """Branched 3x3 convolution, `(B, cin, H, W) -> (B, cout, H / stride, W / stride)`, before its activation.

    Training: `bn(k3 * x) + bn(k1 * x) + bn(d3 * x) [+ bn(x)]`, where d3 is a 3x3 kernel whose centre is minus the sum
    of its others (a learned central difference: local contrast). Inference, after `merge`: one 3x3 convolution.

    Source: Ding et al. (RepVGG, CVPR 2021) for the merging of branches.
    """

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.full = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.point = nn.Conv2d(cin, cout, 1, stride, bias=False)
        self.contrast = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(cout) for _ in range(3))
        self.identity = nn.BatchNorm2d(cin) if cin == cout and stride == 1 else None
        self.merged: nn.Conv2d | None = None

    def _kernels(self) -> list[Tensor]:
        difference = self.contrast.weight
        centre = F.pad(difference.sum((2, 3), keepdim=True), (1, 1, 1, 1))
        return [self.full.weight, F.pad(self.point.weight, (1, 1, 1, 1)), difference - centre]

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the branches, or the merged convolution."""
        if self.merged is not None:
            return torch.as_tensor(self.merged(x))
        out = torch.stack(
            [norm(F.conv2d(x, k, None, self.stride, 1)) for norm, k in zip(self.norms, self._kernels(), strict=True)]
        ).sum(0)
        return out if self.identity is None else out + self.identity(x)

    @torch.no_grad()
    def merge(self) -> None:
        """Replace the branches by the one convolution that they equal in eval mode."""
        kernels, norms = self._kernels(), list(self.norms)
        if self.identity is not None:
            eye = torch.eye(self.full.out_channels, device=kernels[0].device, dtype=kernels[0].dtype)
            kernels.append(F.pad(eye[..., None, None], (1, 1, 1, 1)))
            norms.append(self.identity)
        weight, bias = torch.zeros_like(kernels[0]), torch.zeros_like(kernels[0][:, 0, 0, 0])
        for kernel, norm in zip(kernels, norms, strict=True):
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_var is not None
            assert norm.running_mean is not None
            gain = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight += gain[:, None, None, None] * kernel
            bias += norm.bias - gain * norm.running_mean
        merged = nn.Conv2d(
            self.full.in_channels,
            self.full.out_channels,
            3,
            self.stride,
            1,
            device=weight.device,
            dtype=weight.dtype,
        )
        merged.weight.copy_(weight)
        merged.bias.copy_(bias)  # type: ignore[union-attr]
        self.merged = merged
        del self.full, self.point, self.contrast, self.norms, self.identity


class RepBlock(nn.Module):
    """Two branched convolutions with a residual path where the shape allows."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = RepConv(cin, cout, stride), RepConv(cout, cout)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, cin, H, W) -> (B, cout, H / stride, W / stride)`."""
        y = torch.relu(self.first(x))
        return torch.relu(self.second(y) + (x if x.shape == y.shape else y))


class RepISDNet(Student):
    """RepISD-Net with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published size.
        in_channels: channels of the input image.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        c = [scaled(n, width) for n in (16, 24, 32, 40)]
        self.stages = tuple(Stage(n, 2**i) for i, n in enumerate(c))
        self.stem = RepConv(in_channels, c[0])
        self.encoder = nn.ModuleList(
            nn.Sequential(RepBlock(c[max(i - 1, 0)], n, 1 if i == 0 else 2), RepBlock(n, n)) for i, n in enumerate(c)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(high, low, 1) for low, high in pairwise(c))
        self.decoder = nn.ModuleList(RepConv(n, n) for n in c[:-1])
        self.head = logit_layer(c[0])

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W) -> [(B, 16 w, H, W), ..., (B, 40 w, H/8, W/8)]`."""
        features: list[Tensor] = []
        x = torch.relu(self.stem(x))
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`."""
        x = features[-1]
        for i in reversed(range(len(self.decoder))):
            up = F.interpolate(self.lateral[i](x), size=features[i].shape[-2:], mode="bilinear", align_corners=False)
            x = torch.relu(self.decoder[i](features[i] + up))
        out: Tensor = self.head(x)
        return out


STUDENTS.register("repisd", StudentInfo(RepISDNet, "RepISD-Net (Wu et al., 2023)", published_parameters=280_000))

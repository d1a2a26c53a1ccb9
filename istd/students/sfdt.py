"""SFDT-Net: spatial-frequency domain transformer network, as the PAL release has it (IEEE 2025).

A U-Net of residual blocks with channel and spatial attention, with dilated convolutions at its deepest. Every decoder
stage is a transformer block that works on the Fourier transforms of 8x8 blocks: its attention multiplies the spectra of
queries and keys, its feed-forward network filters by a learned spectrum. The skip connections are weighted by channel.

At width 1 all layers are the published ones. Not published is what happens where a map's side is no multiple of 8
(images then have sides that are no multiples of 64, and the release pads the image): blocks are filled up with zeros.

Outputs: the fused map (used at test), one for each decoder stage from coarse to fine at full resolution, and a second
head on the finest stage, which reaches nothing else. PAL averages the losses of all six.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import SpatialAttention, pixel_maximum
from istd.students.base import Output, Stage, Student
from istd.students.blocks import conv_bn_relu, logit_layer, mean_layer, run_stages, scaled
from istd.students.frequency_transformer import FrequencyTransformer
from istd.students.registry import STUDENTS, StudentInfo


class LinearChannelAttention(nn.Module):
    """`sigmoid(W V (mean over pixels + maximum over pixels))`, `(B, c, H, W) -> (B, c, 1, 1)`: no ReLU between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 3, 1)
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.expand = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gate of every channel."""
        out: Tensor = self.expand(self.reduce(x.mean((2, 3), keepdim=True) + pixel_maximum(x)))
        return out.sigmoid()


class ResidualAttention(nn.Module):
    """Two 3x3 convolutions, gates by channels and pixels, a projected shortcut; `(B, cin, H, W) -> (B, c, H, W)`."""

    def __init__(self, cin: int, c: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(cin, c, 3, padding=1, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(inplace=True),
            nn.Conv2d(c, c, 3, padding=1, bias=False),
            nn.BatchNorm2d(c),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(cin, c, 1), nn.BatchNorm2d(c))
        self.channels, self.pixels = LinearChannelAttention(c), SpatialAttention(maximum_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y = self.body(x)
        y = y * self.channels(y)
        y = y * self.pixels(y)
        return torch.relu_(y + self.shortcut(x))


class DilatedBlock(nn.Module):
    """A U of convolutions dilated by 1, 2, 4, 8, 4, 2, 1 instead of pooled, residual; `(B, c, H, W) -> (B, c, H, W)`.

    Source: the innermost block of U2-Net (Qin et al., 2020), as the release uses it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        self.enter = conv_bn_relu(c, c, bias=True)
        self.down = nn.ModuleList(conv_bn_relu(c, c, dilation=d, bias=True) for d in (1, 2, 4, 8))
        self.up = nn.ModuleList(conv_bn_relu(2 * c, c, dilation=d, bias=True) for d in (4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = self.enter(x)
        *skips, y = run_stages(self.down, x, pool=False)
        for layer, skip in zip(self.up, reversed(skips), strict=True):
            y = layer(torch.cat([y, skip], dim=1))
        return x + y


class ChannelFusion(nn.Module):
    """`conv3x3([g, relu(s x)])`, s = sigmoid((A mean(x) + B mean(g)) / 2) a weight per channel of the skip x.

    Source: the channel-wise cross fusion of UCTransNet (Wang et al., AAAI 2022), as SFDT-Net uses it.
    """

    def __init__(self, decoded: int, skip: int) -> None:
        super().__init__()
        self.skip, self.decoded = nn.Linear(skip, skip), nn.Linear(decoded, skip)
        self.post = conv_bn_relu(decoded + skip, decoded, bias=True)

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        """Decoded `(B, decoded, H, W)` and skipped `(B, skip, H, W)` -> `(B, decoded, H, W)`."""
        scale = ((self.skip(x.mean((2, 3))) + self.decoded(g.mean((2, 3)))) / 2).sigmoid()
        out: Tensor = self.post(torch.cat([g, torch.relu(x * scale[..., None, None])], dim=1))
        return out


class SFDTNet(Student):
    """SFDT-Net with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    contiguous_training = True
    folds = (("stem", "norm"),)
    outputs = tuple(
        Output(name, 1 / 6) for name in ("fused", "stride 8", "stride 4", "stride 2", "stride 1", "second head")
    )

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels
        c = [scaled(n, width) for n in (16, 32, 64, 128, 256)]
        self.stages = (*(Stage(n, 2**i) for i, n in enumerate(c[1:])), Stage(c[-1], 16))
        self.norm = nn.BatchNorm2d(c[0])  # before the convolution whose output it normalises, in the published order
        self.stem = nn.Conv2d(in_channels, c[0], 3, padding=1)
        stages = [ResidualAttention(c[i], c[i + 1]) for i in range(4)]
        self.encoder = nn.ModuleList([*stages, DilatedBlock(c[-1])])
        steps = [(c[i], c[i + 1]) for i in reversed(range(4))]
        self.up = nn.ModuleList(nn.ConvTranspose2d(high, low, 4, stride=2, padding=1) for low, high in steps)
        self.fuse = nn.ModuleList(ChannelFusion(low, high) for low, high in steps)
        self.decoder = nn.ModuleList(FrequencyTransformer(low) for low, _ in steps)
        self.second = logit_layer(c[0])
        self.heads = nn.ModuleList(logit_layer(low) for low, _ in steps)
        self.mean = mean_layer(4)

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, in_channels, H, W) -> [(B, 32 w, H, W), ..., (B, 256 w, H/8, W/8), (B, 256 w, H/16, W/16)]`."""
        return run_stages(self.encoder, F.relu(self.norm(self.stem(x)), inplace=True))

    def _decode(self, features: list[Tensor]) -> list[Tensor]:
        *skips, x = features
        decoded = []
        for up, fuse, transform, skip in zip(self.up, self.fuse, self.decoder, reversed(skips), strict=True):
            x = fuse(transform(up(x)), skip)
            decoded.append(x)
        return decoded

    def _levels(self, decoded: list[Tensor]) -> list[Tensor]:
        size = decoded[-1].shape[-2:]
        *coarse, fine = (head(x) for head, x in zip(self.heads, decoded, strict=True))
        return [*(F.interpolate(m, size=size, mode="bilinear", align_corners=True) for m in coarse), fine]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)` of the fused map."""
        out: Tensor = self.mean(torch.cat(self._levels(self._decode(features)), dim=1))
        return out

    def decode_all(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """Encoder outputs -> logits `(B, 1, H, W)` of all `outputs`."""
        decoded = self._decode(features)
        levels = self._levels(decoded)
        return self.mean(torch.cat(levels, dim=1)), *levels, self.second(decoded[-1])


STUDENTS.register("sfdt", StudentInfo(SFDTNet, "SFDT-Net (2025)", published_parameters=9_637_606, gflops=21.75))

"""GSFA-Net: global spatial-frequency attention network (Deng et al., IEEE TGRS 2025).

A U-Net of residual blocks with channel and spatial attention that halves its maps by convolutions and Haar wavelets
together. All four levels meet as tokens on one grid, where channels of one level are compared with those of all, and
pixels get one common gate. The decoder filters the fine map by high-pass and the coarse map by low-pass kernels that it
generates from the fine map.

At width 1 all layers are the published ones. Three facts of the release are kept because its weights depend on them:

- The tokens are those of images of 256 pixels a side (`istd.students.level_attention`).
- The residual around the channel attention and its feed-forward is added twice.
- **The kernels of a whole batch are generated from its first image alone.** So an image's map depends on which image
  stands first in its batch, in training and in testing. `per_image=True` gives every image its own kernels, as the
  paper describes them; with one image at a time, as the deployed student works, both are the same. It is registered as
  `gsfa-per-image`.

Left out are the fixed filters (Haar, identity), which are sums and differences here.

Outputs: the fused map (used at test) and one for each decoder level at its own size, with equal weights: their mean, as
in the release, which takes every second or fourth pixel of the target for the coarse maps, where maxima are taken here.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import ChannelAttention, attention_blocks, pixel_maximum
from istd.students.base import Output, Stage, Student
from istd.students.blocks import depthwise, logit_bias, logit_layer, norm_relu, scaled
from istd.students.level_attention import MultiLevelAttention
from istd.students.registry import STUDENTS, StudentInfo
from istd.students.wavelets import joined_haar


class WaveletPool(nn.Module):
    """`relu(bn(conv1x1(g (relu(bn(k * x)) + s haar(x)))))`, `(B, c, H, W) -> (B, 2 c, H/2, W/2)`.

    k: four learned 2x2 filters of stride 2 per channel; s: a learned factor per band, 0.1 at the start; g: channel
    attention from the first term.

    Source: Deng et al. (2025), parallel wavelet downsampling.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.learned = nn.Sequential(
            nn.Conv2d(channels, 4 * channels, 2, stride=2, groups=channels), *norm_relu(4 * channels)
        )
        self.attention = ChannelAttention(4 * channels)
        self.scale = nn.ParameterList([nn.Parameter(torch.full((1, 4 * channels, 1, 1), 0.1))])
        self.reduce = nn.Sequential(nn.Conv2d(4 * channels, 2 * channels, 1), *norm_relu(2 * channels))

    def forward(self, x: Tensor) -> Tensor:
        """Halve the map."""
        y = self.learned(x)
        out: Tensor = self.reduce(self.attention(y) * (y + self.scale[0] * joined_haar(x)))
        return out


class KernelGenerator(nn.Module):
    """Two 3x3 low-pass kernels for every channel, from means and maxima of the channels' two halves.

    Each kernel is a softmax over its nine weights, so it sums to one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, hidden = channels // 2, max(channels // 8, 1)
        self.reduce = nn.ModuleList(nn.Conv2d(2 * half, hidden, 1, bias=False) for _ in range(2))
        self.expand = nn.ModuleList(nn.Conv2d(hidden, 9 * channels, 1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, c, H, W) -> (B, 2 c, 1, 3, 3)`."""
        mean, top = x.mean((2, 3), keepdim=True), pixel_maximum(x)
        halves = (torch.cat(pair, dim=1) for pair in zip(mean.chunk(2, 1), top.chunk(2, 1), strict=True))
        kernels = [
            expand(torch.relu(reduce(half))).view(len(x), -1, 9).softmax(-1)
            for reduce, expand, half in zip(self.reduce, self.expand, halves, strict=True)
        ]
        return torch.cat(kernels, dim=1).view(len(x), -1, 1, 3, 3)


def dynamic_conv(x: Tensor, kernels: Tensor) -> Tensor:
    """Two 3x3 filters per channel: output channels 2 i and 2 i + 1 are of input channel i.

    Args:
        x: `(B, c, H, W)`.
        kernels: `(B, 2 c, 1, 3, 3)`, or `(1, 2 c, 1, 3, 3)` for one set for all images.

    Returns:
        `(B, 2 c, H, W)`.
    """
    if len(kernels) == 1:
        return F.conv2d(x, kernels[0], padding=1, groups=x.shape[1])
    joined = F.conv2d(x.flatten(0, 1)[None], kernels.flatten(0, 1), padding=1, groups=len(x) * x.shape[1])
    return joined.view(len(x), -1, *x.shape[2:])


def _identity(like: Tensor) -> Tensor:
    """The 3x3 kernel that changes nothing."""
    return F.pad(like.new_ones(1, 1), (1, 1, 1, 1))


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


class FrequencyFusion(nn.Module):
    """Fusion of a fine map, filtered high-pass, with a coarse one, filtered low-pass, beside their plain union.

    Source: Deng et al. (2025), frequency-aware fusion.
    """

    def __init__(self, high: int, low: int, per_image: bool) -> None:
        super().__init__()
        self.per_image = per_image
        self.reduce = nn.Conv2d(high, low, 1)
        self.coarse, self.fine = nn.Conv2d(2 * low, low, 1), nn.Conv2d(2 * low, low, 1)
        self.before_sharp = nn.Sequential(depthwise(low, 7), *norm_relu(low))
        self.before_smooth = nn.Sequential(depthwise(low, 3), *norm_relu(low))
        self.union = nn.Sequential(
            depthwise(high + low, 3), *norm_relu(high + low), nn.Conv2d(high + low, low, 1), *norm_relu(low)
        )
        self.residual = nn.Conv2d(low, 2 * low, 1)
        self.sharp, self.smooth = KernelGenerator(low), KernelGenerator(low)
        self.fine_norm, self.coarse_norm = nn.BatchNorm2d(2 * low), nn.BatchNorm2d(2 * low)
        self.sum = nn.Sequential(nn.Conv2d(low, low, 3, padding=1), *norm_relu(low))
        layers = (nn.Conv2d(low, low, 3, padding=1), *norm_relu(low), nn.Conv2d(low, low, 3, padding=1))
        self.post = nn.Sequential(*layers, *norm_relu(low))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Fine `(B, low, H, W)` and coarse `(B, high, H/2, W/2)` -> `(B, low, H, W)`."""
        chosen = slice(None) if self.per_image else slice(1)
        smooth = self.smooth(self.before_smooth(low)[chosen])
        sharp = _identity(low) - self.sharp(self.before_sharp(low)[chosen])  # high-pass: x - k * x, twice per channel
        fine = dynamic_conv(low, sharp).add_(self.residual(low))
        filtered = self.fine(self.fine_norm(fine))
        del fine  # before the next wide map is made
        # Published after the interpolation, with which a 1x1 convolution commutes; here it has fewer pixels.
        coarse = dynamic_conv(_resized(self.reduce(high), low), smooth)
        filtered += self.coarse(self.coarse_norm(coarse))
        del coarse
        union = self.union(torch.cat([low, _resized(high, low)], dim=1))
        out: Tensor = self.post(self.sum(filtered) + union)
        return out


class GSFANet(Student):
    """GSFA-Net with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
        per_image: kernels of every image for itself, instead of the first image's for the batch, as published.
    """

    contiguous_training = True
    outputs = (Output("fused", 1 / 4), *(Output(f"stride {2**i}", 1 / 4) for i in range(3)))

    def __init__(self, width: float = 1.0, in_channels: int = 3, per_image: bool = False) -> None:
        super().__init__()
        self.in_channels = in_channels
        c = [scaled(16, width) * 2**i for i in range(4)]  # pooling doubles
        self.stages = tuple(Stage(n, 2**i) for i, n in enumerate(c))
        self.pool = nn.ModuleList(WaveletPool(n) for n in c[:-1])
        self.stem = nn.Conv2d(in_channels, c[0], 1)
        self.encoder = nn.ModuleList(attention_blocks(n, n, 2) for n in c)
        self.attention = MultiLevelAttention(c)
        self.decoder = nn.ModuleList(FrequencyFusion(c[i + 1], c[i], per_image) for i in reversed(range(3)))
        self.heads = nn.ModuleList(logit_layer(n) for n in c[:-1])
        self.fuse = nn.Conv2d(3, 1, 3, padding=1)
        logit_bias(self.fuse)

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, in_channels, H, W) -> [(B, 16 w, H, W), (B, 32 w, H/2, W/2), ..., (B, 128 w, H/8, W/8)]`."""
        features = [self.encoder[0](self.stem(x))]
        for pool, stage in zip(self.pool, self.encoder[1:], strict=True):
            features.append(stage(pool(features[-1])))
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)` of the fused map."""
        return self.decode_all(features)[0]

    def decode_all(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """Encoder outputs -> the fused logits `(B, 1, H, W)`, and those at strides 1, 2 and 4."""
        *fine, x = self.attention(features)
        heads: list[Tensor] = []
        for fuse, low, head in zip(self.decoder, reversed(fine), reversed(self.heads), strict=True):
            x = fuse(low, x)
            heads.insert(0, head(x))
        lifted = [heads[0], *(_resized(z, heads[0]) for z in heads[1:])]
        return (self.fuse(torch.cat(lifted, dim=1)), *heads)


LEFT_OUT = (
    *(f"pool{i}.wt_filter" for i in (1, 2, 3)),
    *(f"decoder_{i}.HPG.identity_kernel" for i in (2, 1, 0)),
)
TITLE = "GSFA-Net (Deng et al., 2025)"
STUDENTS.register("gsfa", StudentInfo(GSFANet, TITLE, published_parameters=2_985_428, gflops=10.06, left_out=LEFT_OUT))
STUDENTS.register(
    "gsfa-per-image",
    StudentInfo(
        partial(GSFANet, per_image=True),
        f"{TITLE}, kernels of every image",
        published_parameters=2_985_428,
        gflops=10.06,
        left_out=LEFT_OUT,
    ),
)

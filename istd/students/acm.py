"""ACM-FPN/U-Net: asymmetric contextual modulation (Dai et al., WACV 2021), its U-Net form.

A small residual encoder that works at a quarter of the input's resolution, and a decoder that fuses a coarse and a fine
map by two gates: the coarse one says per channel what to keep of the fine one (top-down, from the global mean), the
fine one says per pixel what to keep of the coarse one (bottom-up, point by point).
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.attention import modulation_gate
from istd.students.base import Stage, Student
from istd.students.blocks import BasicBlock, ResidualEncoder, conv_bn_relu, logit_bias, quarter_stem, scaled
from istd.students.registry import STUDENTS, StudentInfo


class AsymmetricModulation(nn.Module):
    """`conv3x3(2 low * topdown(high) + 2 high * bottomup(low))`, both maps `(B, C, H, W)`.

    Source: Dai et al. (2021), equation 5; the factors 2 keep the scale, as in the released code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.topdown = modulation_gate(channels, pool=True)
        self.bottomup = modulation_gate(channels, pool=False)
        self.post = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Fuse a coarse map, already upsampled, with a fine one."""
        out: Tensor = self.post(2 * low * self.topdown(high) + 2 * high * self.bottomup(low))
        return out


class ACMNet(Student):
    """ACM in its U-Net form with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        stem, *channels = (scaled(c, width) for c in (8, 16, 32, 64))
        self.stages = tuple(Stage(c, 4 * 2**i) for i, c in enumerate(channels))
        self.encoder = ResidualEncoder(
            in_channels, channels, blocks=3, stem=quarter_stem(in_channels, stem, channels[0])
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(high, low, 4, stride=2, padding=1) for low, high in pairwise(channels)
        )
        self.fuse = nn.ModuleList(AsymmetricModulation(c) for c in channels[:-1])
        self.decoder = nn.ModuleList(nn.Sequential(*(BasicBlock(c, c) for _ in range(3))) for c in channels[:-1])
        inner = max(channels[0] // 4, 1)
        self.head = nn.Sequential(conv_bn_relu(channels[0], inner), nn.Dropout(0.1), nn.Conv2d(inner, 1, 1))
        logit_bias(self.head[-1])  # type: ignore[arg-type]

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W) -> [(B, 16 w, H/4, W/4), (B, 32 w, H/8, W/8), (B, 64 w, H/16, W/16)]`."""
        features: list[Tensor] = self.encoder(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`, upsampled fourfold."""
        x = features[-1]
        for i in reversed(range(len(self.up))):
            x = self.decoder[i](self.fuse[i](self.up[i](x), features[i]))
        out: Tensor = self.head(x)
        return F.interpolate(out, scale_factor=4, mode="bilinear", align_corners=False)


STUDENTS.register("acm", StudentInfo(ACMNet, "ACM (Dai et al., 2021)", published_parameters=398_000))

"""The transformer block of SFDT-Net (2025): attention and a feed-forward network on Fourier transforms of 8x8 blocks.

All layers are the published ones. The release transforms in float32 at least, and so does this, also under autocast.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.blocks import depthwise
from istd.students.fourier import BLOCK, HALF, block_filter, block_product
from istd.students.norms import ChannelNorm

EXPANSION = 2.66


class FrequencyAttention(nn.Module):
    """`project(v norm(q * k))`, q * k the circular convolution of 8x8 blocks; `(B, c, H, W) -> (B, c, H, W)`.

    q, k and v have 2 c channels each, from a 1x1 and a depthwise 3x3 convolution.

    Source: the frequency-domain self-attention of FFTformer (Kong et al., CVPR 2023), as SFDT-Net uses it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(channels, 6 * channels, 1, bias=False), depthwise(6 * channels, bias=False)
        )
        self.project = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.norm = ChannelNorm(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the attention."""
        q, k, v = self.expand(x).chunk(3, dim=1)
        out: Tensor = self.project(v * self.norm(block_product(q, k)))
        return out


# The published spectrum is (c, 1, 1, 8, 5). A parameter of five dimensions keeps a module from `channels_last`, so the
# shape is that of the publication in files alone.
def _with_published_shape(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    state[f"{prefix}spectrum"] = state[f"{prefix}spectrum"][:, None, None]


def _with_own_shape(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    if f"{prefix}spectrum" in state:
        state[f"{prefix}spectrum"] = state[f"{prefix}spectrum"].flatten(0, 2)


class FrequencyFeedForward(nn.Module):
    """Channels expanded 5.32 times, filtered by a learned spectrum each, and gated: `(B, c, H, W) -> (B, c, H, W)`.

    With a, b halves of the filtered map after a depthwise 3x3: `project(gelu(relu(near(a))) relu(far(b)))`.

    Source: the discriminative feed-forward network of FFTformer (Kong et al., CVPR 2023), with two ranges.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = int(channels * EXPANSION)
        self.spectrum = nn.Parameter(torch.ones(2 * hidden, BLOCK, HALF))
        self.register_state_dict_post_hook(_with_published_shape)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_own_shape)  # type: ignore[no-untyped-call]
        self.expand = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.mix = depthwise(2 * hidden, bias=False)
        self.near, self.far = depthwise(hidden, bias=False), depthwise(hidden, 5, bias=False)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network."""
        a, b = self.mix(block_filter(self.expand(x), self.spectrum)).chunk(2, dim=1)
        out: Tensor = self.project(F.gelu(F.relu(self.near(a))) * F.relu(self.far(b)))
        return out


class FrequencyTransformer(nn.Module):
    """Attention and feed-forward network, each on a normalised map and residual; `(B, c, H, W) -> (B, c, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(ChannelNorm(channels), FrequencyAttention(channels))
        self.feed = nn.Sequential(ChannelNorm(channels), FrequencyFeedForward(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.attention(x)
        out: Tensor = x + self.feed(x)
        return out

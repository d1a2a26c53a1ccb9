"""Normalisations beside PyTorch's."""

from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer normalisation over channels, pixel by pixel, `(B, c, H, W) -> (B, c, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        out: Tensor = self.norm(x.movedim(1, -1))
        return out.movedim(-1, 1)

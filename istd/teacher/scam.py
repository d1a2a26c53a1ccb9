"""SCAM: semantic-conditioned affine modulation of CNN features by a frozen vision foundation model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SCAM(nn.Module):
    """One affine modulation per encoder stage, computed from the token maps of a ViT.

    1. Soft fusion over K depths: `F = sum_k pi_k F_k`, `pi = softmax(logits)`, logits learned from 0.
    2. Token attention pooling: `a = softmax_j(v't_j)`, `g = sum_j a_j t_j` over the N tokens t_j of F.
    3. `(gamma_l, beta_l)_l = MLP(g)`, one hidden ReLU layer; its last layer starts at zero, so SCAM starts as identity.
    4. Gate: `gamma_l <- 1 + tanh(gamma_l * u_l)` with u_l learned from 1 and penalised by |u_l|_1.
    5. `f_l <- (1 + s (gamma_l - 1)) f_l + s beta_l`, broadcast over space, strength s.

    Args:
        depth: K.
        dim: channels D of a token.
        channels: channel count of every modulated stage.
        hidden: width of the MLP.
        strength: s; the release uses 0.12 for ALCL-Net and 0.55 for MLCL-Net.

    Source: semantic-priors (2026), equations 4 to 6; the strength stands in the released code only.
    """

    def __init__(
        self, depth: int, dim: int, channels: Sequence[int], hidden: int = 128, strength: float = 0.12
    ) -> None:
        super().__init__()
        self.channels, self.strength = tuple(channels), strength
        self.depth_logits = nn.Parameter(torch.zeros(depth))
        self.attention = nn.Linear(dim, 1)
        last = nn.Linear(hidden, 2 * sum(channels))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), last)
        self.gate = nn.ParameterList(nn.Parameter(torch.ones(c)) for c in channels)

    def pool(self, tokens: Tensor) -> Tensor:
        """`(B, K, N, D) -> (B, D)`: soft fusion over depths, then attention pooling over tokens."""
        tokens = tokens.to(self.depth_logits.dtype)
        fused = torch.einsum("k,bknd->bnd", self.depth_logits.softmax(0), tokens)
        attention = self.attention(fused).softmax(dim=1)
        pooled: Tensor = (attention * fused).sum(dim=1)
        return pooled

    def forward(self, features: Sequence[Tensor], tokens: Tensor) -> list[Tensor]:
        """Modulate the encoder outputs `[(B, C_l, H_l, W_l)]` by tokens `(B, K, N, D)`.

        Raises:
            ValueError: if the stages' channels differ from those SCAM was built for.
        """
        found = tuple(f.shape[1] for f in features)
        if found != self.channels:
            raise ValueError(f"`features` have {found} channels; this SCAM was built for {self.channels}.")
        parameters = self.mlp(self.pool(tokens)).split([2 * c for c in self.channels], dim=1)
        out = []
        for f, p, u in zip(features, parameters, self.gate, strict=True):
            gamma, beta = p.chunk(2, dim=1)
            change = torch.tanh(gamma * u)
            out.append(f * (1 + self.strength * change)[..., None, None] + (self.strength * beta)[..., None, None])
        return out

    def gate_penalty(self) -> Tensor:
        """Mean of |u| over all gates, as in the released code (the paper writes the sum of the l1 norms)."""
        return torch.cat([u.abs() for u in self.gate]).mean()

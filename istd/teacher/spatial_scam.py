"""Spatial SCAM: the modulation of SCAM at every place, from what the vision foundation model sees there. Ours."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istd.teacher.depths import Depths, as_grid


class SpatialSCAM(nn.Module):
    """One affine modulation per encoder stage and place.

    SCAM pools the features F of the foundation model over the whole image and can only rescale channels for all pixels
    alike. What these features know of small targets is local: at a pixel they tell a target from clutter. With q a
    place of the features' grid:

    1. Soft fusion over K depths: `F(q) = sum_k pi_k F_k(q)`, `pi = softmax(logits)`, logits learned from 0.
    2. `(gamma_l(q), beta_l(q))_l = MLP(F(q))`, one hidden ReLU layer; its last layer starts at zero, so the module
       starts as the identity.
    3. Both are interpolated (bilinear) to the size of stage l.
    4. Gate: `gamma_l <- tanh(gamma_l * u_l)` with u_l learned from 1 and penalised by |u_l|_1.
    5. `f_l(p) <- (1 + s gamma_l(p)) f_l(p) + s beta_l(p)`, strength s.

    The grid must cover the same ground as the stages: features of the very crop (`crop_tokens`), or cut out of the
    image's with the crop (`SpatialFeatures`).

    Args:
        depth: K.
        dim: channels of a token, or of every depth's.
        channels: channel count of every encoder stage.
        hidden: width of the MLP.
        strength: s.

    Source: SCAM, semantic-priors (2026), equations 4 to 6; at every place, without the pooling, it is ours.
    """

    def __init__(
        self, depth: int, dim: int | Sequence[int], channels: Sequence[int], hidden: int = 128, strength: float = 0.12
    ) -> None:
        super().__init__()
        self.channels, self.strength = tuple(channels), strength
        self.depths = Depths(dim)
        self.depth_logits = nn.Parameter(torch.zeros(depth))
        self.embed = nn.Sequential(nn.Linear(self.depths.dim, hidden), nn.ReLU())
        self.affine = nn.Linear(hidden, 2 * sum(self.channels))
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)
        self.gate = nn.ParameterList(nn.Parameter(torch.ones(c)) for c in self.channels)

    def forward(self, features: Sequence[Tensor], tokens: Tensor) -> list[Tensor]:
        """Modulate the encoder outputs `[(B, C_l, H_l, W_l)]` by tokens `(B, K, h, w, D)`, or those of a square grid.

        Raises:
            ValueError: if stages or tokens have other channels than this was built for, or `(B, K, N, D)` tokens lie
                on no square grid.
        """
        found = tuple(f.shape[1] for f in features)
        if found != self.channels:
            raise ValueError(f"`features` have {found} channels; this spatial SCAM was built for {self.channels}.")
        grid = as_grid(self.depths(tokens.to(self.depth_logits.dtype)))
        fused = torch.einsum("k,bkhwd->bhwd", self.depth_logits.softmax(0), grid)
        maps = self.affine(self.embed(fused)).permute(0, 3, 1, 2)
        out = []
        for f, p, u in zip(features, maps.split([2 * c for c in self.channels], dim=1), self.gate, strict=True):
            p = F.interpolate(p, f.shape[-2:], mode="bilinear", align_corners=False)
            gamma, beta = p.chunk(2, dim=1)
            out.append(f * (1 + self.strength * torch.tanh(gamma * u[:, None, None])) + self.strength * beta)
        return out

    def gate_penalty(self) -> Tensor:
        """Mean of |u| over all gates, as SCAM's."""
        return torch.cat([u.abs() for u in self.gate]).mean()

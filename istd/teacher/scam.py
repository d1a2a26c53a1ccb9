"""SCAM: semantic-conditioned affine modulation of CNN features by a frozen vision foundation model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from istd.teacher.depths import Depths, as_sequence


class SCAM(nn.Module):
    """One affine modulation per encoder stage, computed from the token maps of a ViT.

    1. Soft fusion over K depths: `F = sum_k pi_k F_k`, `pi = softmax(logits)`, logits learned from 0.
    2. Token attention pooling: `a = softmax_j(v't_j)`, `g = sum_j a_j t_j` over the N tokens t_j of F. (The release
       adds a bias to the score, which the softmax cancels: a number without influence and without gradient.)
    3. `(gamma_l, beta_l)_l = MLP(g)`, one hidden ReLU layer; its last layer starts at zero, so SCAM starts as identity.
    4. Gate: `gamma_l <- 1 + tanh(gamma_l * u_l)` with u_l learned from 1 and penalised by |u_l|_1.
    5. `f_l <- (1 + s (gamma_l - 1)) f_l + s beta_l`, broadcast over space, strength s.

    The options take these apart, as the paper's table 4 does; each of them starts as the identity too, unless `start`
    says otherwise.

    Args:
        depth: K.
        dim: channels D of a token, or of every depth's, where they differ: see `Depths`.
        channels: channel count of every encoder stage.
        hidden: width of the MLP.
        strength: s; the release uses 0.12 for ALCL-Net and 0.55 for MLCL-Net.
        fusion: `soft`, or `last`: the last depth alone.
        pooling: `attention`, or `mean` over tokens.
        stages: `all`, or `last`: the deepest stage alone is modulated.
        injection: `affine`, or `concat`: `f_l <- f_l + s conv1x1([f_l, h])` with h the MLP's hidden layer, instead of
            steps 3 to 5.
        start: `identity`, or `random`: the last layer starts like any other, as published, so that the teacher begins
            with features that are modulated at random.

    Raises:
        ValueError: for an unknown option.

    Source: semantic-priors (2026), equations 4 to 6 and table 4; the strength and steps 1 to 5 as its released
    code computes them. The start at the identity is ours.
    """

    def __init__(
        self,
        depth: int,
        dim: int | Sequence[int],
        channels: Sequence[int],
        hidden: int = 128,
        strength: float = 0.12,
        *,
        fusion: str = "soft",
        pooling: str = "attention",
        stages: str = "all",
        injection: str = "affine",
        start: str = "identity",
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("fusion", fusion, ("soft", "last")),
            ("pooling", pooling, ("attention", "mean")),
            ("stages", stages, ("all", "last")),
            ("injection", injection, ("affine", "concat")),
            ("start", start, ("identity", "random")),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}.")
        self.channels, self.strength = tuple(channels), strength
        self.first = len(self.channels) - 1 if stages == "last" else 0
        modulated = self.channels[self.first :]
        self.depths = Depths(dim)
        dim = self.depths.dim
        self.depth_logits = nn.Parameter(torch.zeros(depth)) if fusion == "soft" else None
        self.attention = nn.Linear(dim, 1, bias=False) if pooling == "attention" else None
        self.affine = nn.Linear(hidden, 2 * sum(modulated)) if injection == "affine" else None
        self.concat = nn.ModuleList(nn.Conv2d(c + hidden, c, 1) for c in modulated) if injection == "concat" else None
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        last = [*([self.affine] if self.affine is not None else []), *(self.concat or [])]
        for layer in last if start == "identity" else []:
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.gate = nn.ParameterList(nn.Parameter(torch.ones(c)) for c in modulated if injection == "affine")

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def pool(self, tokens: Tensor) -> Tensor:
        """`(B, K, N, D)` or `(B, K, h, w, D) -> (B, D)`: fusion over depths, then pooling over tokens."""
        tokens = as_sequence(self.depths(tokens.to(self._dtype)))
        if self.depth_logits is None:
            fused = tokens[:, -1]
        else:
            fused = torch.einsum("k,bknd->bnd", self.depth_logits.softmax(0), tokens)
        if self.attention is None:
            return fused.mean(dim=1)
        pooled: Tensor = (self.attention(fused).softmax(dim=1) * fused).sum(dim=1)
        return pooled

    def forward(self, features: Sequence[Tensor], tokens: Tensor) -> list[Tensor]:
        """Modulate the encoder outputs `[(B, C_l, H_l, W_l)]` by tokens `(B, K, N, D)`.

        Raises:
            ValueError: if stages or tokens have other channels than SCAM was built for.
        """
        found = tuple(f.shape[1] for f in features)
        if found != self.channels:
            raise ValueError(f"`features` have {found} channels; this SCAM was built for {self.channels}.")
        code = self.embed(self.pool(tokens))
        change = self._concatenated if self.concat is not None else self._modulated
        return [*features[: self.first], *change(features[self.first :], code)]

    def _modulated(self, features: Sequence[Tensor], code: Tensor) -> list[Tensor]:
        assert self.affine is not None
        parameters = self.affine(code).split([2 * f.shape[1] for f in features], dim=1)
        out = []
        for f, p, u in zip(features, parameters, self.gate, strict=True):
            gamma, beta = p.chunk(2, dim=1)
            change = torch.tanh(gamma * u)
            out.append(f * (1 + self.strength * change)[..., None, None] + (self.strength * beta)[..., None, None])
        return out

    def _concatenated(self, features: Sequence[Tensor], code: Tensor) -> list[Tensor]:
        assert self.concat is not None
        out = []
        for f, conv in zip(features, self.concat, strict=True):
            spread = code[..., None, None].expand(-1, -1, *f.shape[-2:])
            out.append(f + self.strength * conv(torch.cat([f, spread.to(f.dtype)], dim=1)))
        return out

    def gate_penalty(self) -> Tensor:
        """Mean of |u| over all gates, as in the released code (the paper writes the sum of the l1 norms)."""
        if not len(self.gate):
            return next(self.parameters()).new_zeros(())
        return torch.cat([u.abs() for u in self.gate]).mean()

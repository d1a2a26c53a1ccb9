"""The published form of the diffusion: particles that move at random, for comparison with the grid solver."""

import torch
from torch import Tensor
from torch.nn import functional as F

from istd.labels.diffusion import DiffusionMask, HeatDiffusion
from istd.labels.initial import INITIAL_MASKS


class ParticleDiffusion(HeatDiffusion):
    """Heat as the histogram of particles, `X <- X + grad c dt + sqrt(2 D(X) dt) N(0, 1)`, started at the point.

    After `steps` moves the histogram of their pixels is smoothed by a 3x3 Gaussian and divided by its maximum. Every
    call draws the same noise from `seed` and gives it to all windows, so that a mask does not depend on its neighbours.
    The published constants of a spot are the defaults. Nothing is differentiable through the histogram.

    Args:
        particles: how many start at every point.
        seed: of the noise.
        steps: number of moves.
        **settings: see `HeatDiffusion`.

    Source: Diffuse to Detect (2026), released code (which also starts particles at bright spots nearby).
    """

    def __init__(self, particles: int = 260, seed: int = 0, steps: int = 40, **settings: float) -> None:
        super().__init__(steps=steps, **settings)
        if particles < 1:
            raise ValueError(f"`particles` must be at least 1, got {particles}.")
        self.particles, self.seed = particles, seed

    @torch.no_grad()
    def heat(self, contrast: Tensor) -> Tensor:
        """`(B, n, n)` contrasts with the point in the middle -> `(B, n, n)` heat, its maximum 1."""
        n, dt = contrast.shape[-1], self.time / self.steps
        drift = torch.stack(torch.gradient(contrast, dim=(1, 2)), dim=-1).flatten(1, 2)
        conductivity = self.conductivity(contrast).flatten(1)
        noise = torch.randn(
            self.steps, self.particles, 2, generator=torch.Generator().manual_seed(self.seed), dtype=contrast.dtype
        ).to(contrast.device)
        x = torch.full((len(contrast), self.particles, 2), float(n // 2), dtype=contrast.dtype, device=contrast.device)
        for kick in noise:
            at = _pixel(x, n)
            spread = (2 * dt * conductivity.gather(1, at)).sqrt()
            x = x + dt * drift.gather(1, at[..., None].expand(-1, -1, 2)) + spread[..., None] * kick
        counts = torch.zeros_like(conductivity).scatter_add_(1, _pixel(x, n), torch.ones_like(x[..., 0]))
        line = torch.tensor([0.25, 0.5, 0.25], dtype=contrast.dtype, device=contrast.device)
        smooth = F.conv2d(counts.reshape(-1, 1, n, n), (line[:, None] * line)[None, None], padding=1)[:, 0]
        return smooth / smooth.amax((1, 2), keepdim=True)


def _pixel(x: Tensor, n: int) -> Tensor:
    """Flat index of the pixel that each particle is in; outside, the nearest one."""
    cell = x.round().long().clamp(0, n - 1)
    return cell[..., 0] * n + cell[..., 1]


INITIAL_MASKS.register("diffusion-particles", DiffusionMask(ParticleDiffusion()))

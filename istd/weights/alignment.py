"""The published update of diffuse-to-detect's sample weights: errors that align, and no hypergradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bilevel import BilevelProblem, Hypergradient
from istd.data.crops import Batch


@dataclass(frozen=True, eq=False)
class OutputAlignment:
    """Gradient of `-scale mean_i w_i s_i`, with s_i how well sample i's errors align with those on validation.

    `s_i = z-score over the batch of relu(mean over pixels of (P_i - Y_i) * mean_j (P_j - Y_j))`, i in the training and
    j in the validation batch, P probabilities and Y labels: with P - Y the derivative of cross-entropy by the logit, a
    forward-only stand-in for the product of gradients that reweighting by meta-gradients follows. What the outer
    variables do to the inner ones plays no part, so the whole value is called direct.

    Attributes:
        network: the student.
        weights: the outer module, called on sample indices.
        scale: published 0.25.

    Source: Diffuse to Detect (2026), released code.
    """

    network: nn.Module
    weights: nn.Module
    scale: float = 0.25

    def __call__(
        self, problem: BilevelProblem, inner: Any, outer: Any, inner_batches: Sequence[Batch], outer_batch: Batch
    ) -> Hypergradient:
        """One forward pass a batch, and the gradient of the outer loss for the student's own outer step."""
        w = {name: value.detach().requires_grad_(True) for name, value in inner.items()}
        a = {name: value.detach().requires_grad_(True) for name, value in outer.items()}
        loss = problem.outer_loss(w, a, outer_batch)
        slopes = torch.autograd.grad(loss, list(w.values()), materialize_grads=True)
        train = inner_batches[0]
        with torch.no_grad():
            trained, judged = (self._errors(inner, batch) for batch in (train, outer_batch))
            score = (trained * judged.mean(0)).mean((1, 2, 3)).relu()
            score = (score - score.mean()) / score.std().clamp(min=1e-6)
        own = functional_call(self.weights, a, (train.index,))
        gain = torch.autograd.grad(-self.scale * (own * score).mean(), list(a.values()), materialize_grads=True)
        value = dict(zip(a, gain, strict=True))
        return Hypergradient(
            value=value,
            direct=value,
            indirect={k: torch.zeros_like(x) for k, x in value.items()},
            inner_gradient=dict(zip(w, slopes, strict=True)),
            outer_loss=loss.detach(),
            stats={"method": "output alignment"},
        )

    def _errors(self, inner: Any, batch: Batch) -> Tensor:
        """P - Y `(B, 1, H, W)`; BatchNorm's running statistics stay as they are."""
        values = dict(inner) | {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        logits: Tensor = functional_call(self.network, values, (batch.image,))
        return logits.sigmoid() - batch.target[:, :1]

"""Online weights: every batch is weighted by how well its gradients agree with those of a clean loss."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class L2RW(nn.Module):
    """Learning to reweight: `w_i = max(<grad l_i, grad F>, 0)`, rescaled to mean one, anew for every batch.

    With sample weights e, one descent step from e = 0 gives w(e) = w - lr sum_i e_i grad l_i, so that
    `-dF(w(e))/de_i = lr <grad l_i, grad F>` at e = 0: the one-step unrolled hypergradient. All inner products come from
    one pass: with c = 1, `d/dc_i <grad(sum_j c_j l_j), grad F>`. Where no sample agrees with F, all weights are zero
    and the step is skipped, as published. Cost: about three plain steps; no outer variables, no memory. It fails where
    one clean batch says little about one training batch: the weights are as noisy as both.

    Args:
        outer_loss: returns F as a 0-d tensor at the current parameters, on a clean batch of its choice.
        parameters: the parameters of the network that is trained.

    Source: Ren et al. (Learning to Reweight, ICML 2018), equations 8 to 13.
    """

    def __init__(self, outer_loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self._outer_loss = outer_loss
        self._parameters_of_network = tuple(p for p in parameters if p.requires_grad)
        if not self._parameters_of_network:
            raise ValueError("`parameters` holds no trainable parameter.")

    def forward(self, indices: Tensor, losses: Tensor) -> Tensor:
        """`(B,)` sample indices and losses, with the graph that leads to the parameters -> `(B,)` weights.

        Raises:
            ValueError: if the losses do not depend on the parameters.
        """
        if not torch.is_grad_enabled():
            return torch.ones_like(losses)
        if not losses.requires_grad:
            raise ValueError("`losses` must carry the graph that leads to the parameters; do not detach them before.")
        wanted = self._parameters_of_network
        goal = torch.autograd.grad(self._outer_loss(), wanted, allow_unused=True)
        counts = torch.ones_like(losses, requires_grad=True)
        total = (counts * losses).sum()
        slopes = torch.autograd.grad(total, wanted, create_graph=True, allow_unused=True)
        pairs = [(s, g) for s, g in zip(slopes, goal, strict=True) if s is not None and g is not None]
        if not pairs:
            return torch.ones_like(losses)
        agreement = torch.stack([(s * g).sum() for s, g in pairs]).sum()
        (products,) = torch.autograd.grad(agreement, counts, retain_graph=True)
        raw = products.clamp(min=0)
        return raw / raw.mean().clamp(min=torch.finfo(raw.dtype).tiny)

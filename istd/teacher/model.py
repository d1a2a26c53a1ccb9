"""The teacher: the student's own weights, with an adapter (SCAM or SAMF) between encoder and decoder.

Encoder features are computed once and decoded twice, bare for the student and modulated for the teacher. The two
decoder passes see different feature distributions, so the teacher keeps BatchNorm statistics of its own and the
student's never mix with them (`share_batch_norm=True` restores the published mixture).
"""

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import functional_call

from istd.teacher.samf import SAMF
from istd.teacher.scam import SCAM
from istd.teacher.spatial_scam import SpatialSCAM


class Outputs(NamedTuple):
    """Logits `(B, 1, H, W)` of both passes."""

    student: Tensor
    teacher: Tensor


class _Decoder(nn.Module):
    """`student.decode_all` as the forward of a module, so that a functional call can lend it other buffers."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student: Any = student

    def forward(self, features: list[Tensor], every: bool) -> tuple[Tensor, ...]:
        out: tuple[Tensor, ...] = self.student.decode_all(features) if every else (self.student.decode(features),)
        return out


class Teacher(nn.Module):
    """A student and its VFM-conditioned twin on shared weights.

    Args:
        student: a network of `istd.students`.
        adapter: what the VFM's tokens do to the student's features: SCAM, SAMF or SpatialSCAM.
        share_batch_norm: let both passes update one set of BatchNorm statistics, as published.
    """

    def __init__(self, student: nn.Module, adapter: SCAM | SAMF | SpatialSCAM, share_batch_norm: bool = False) -> None:
        super().__init__()
        self.student: Any = student
        self.adapter = adapter
        self._names = {} if share_batch_norm else {n: n.replace(".", "_") for n, _ in student.named_buffers()}
        self.statistics = nn.Module()
        for name, buffer in student.named_buffers():
            if name in self._names:
                self.statistics.register_buffer(self._names[name], buffer.clone())

    def forward(self, image: Tensor, tokens: Tensor) -> Outputs:
        """`(B, C, H, W)` normalised images and tokens as the adapter takes them -> logits of student and teacher."""
        features = self.student.encode(image)
        return Outputs(self.student.decode(features), self.decode(features, tokens))

    def teach(self, image: Tensor, tokens: Tensor) -> Tensor:
        """The teacher's logits alone: `forward` without the student's pass."""
        return self.decode(self.student.encode(image), tokens)

    def decode(self, features: list[Tensor], tokens: Tensor) -> Tensor:
        """The teacher's logits from encoder features."""
        return self._decode(features, tokens, every=False)[0]

    def decode_all(self, features: list[Tensor], tokens: Tensor) -> tuple[Tensor, ...]:
        """The teacher's logits of all `outputs` that the student declares, from encoder features."""
        return self._decode(features, tokens, every=True)

    def _decode(self, features: list[Tensor], tokens: Tensor, every: bool) -> tuple[Tensor, ...]:
        modulated = self.adapter(features, tokens)
        lent = {f"student.{name}": getattr(self.statistics, own) for name, own in self._names.items()}
        out: tuple[Tensor, ...] = functional_call(_Decoder(self.student), lent, (modulated, every))
        return out

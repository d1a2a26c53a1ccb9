"""ALCNet: attentional local contrast network (Dai et al., IEEE TGRS 2021), in the form of its public PyTorch ports.

The small residual encoder of ACM with four blocks a stage; a decoder of transposed convolutions and asymmetric
modulations, without blocks of its own; a head at half the input's resolution.

Every layer is that of the ports, in their order: the networks that rows called ALCNet report, and whose trained weights
are public. The paper's network has a parameter-free local contrast measure at each stage and fuses by bottom-up gates
alone; the ports have neither. `alcnet` is the network of PAL (2025), with one-group normalisation in the fusion and
three input channels; `alcnet-lesps` that of LESPS (2023), with batch normalisation and one input channel. Both carry
blocks that no output depends on (`uplayer2`, `uplayer1`), which ours lack.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from istd.students.base import Stage, Student
from istd.students.blocks import run_stages, scaled
from istd.students.quarter import AsymmetricModulation, logit_head, quarter_stem, residual_stages, upsampling
from istd.students.registry import STUDENTS, StudentInfo


class ALCNet(Student):
    """ALCNet with a `width` factor on every channel count.

    Args:
        width: factor on the channels; 1 is the published network.
        in_channels: channels of the input image.
        norm: normalisation of the fusion, `"group"` or `"batch"`.
    """

    def __init__(self, width: float = 1.0, in_channels: int = 3, norm: str = "group") -> None:
        super().__init__()
        stem, *channels = (scaled(c, width) for c in (8, 16, 32, 64))
        self.in_channels, self.stages = in_channels, tuple(Stage(c, 4 * 2**i) for i, c in enumerate(channels))
        self.stem = quarter_stem(in_channels, stem, channels[0])
        self.head = logit_head(stem)  # here, since the published order has it here
        self.encoder = residual_stages(channels, blocks=4)
        fine, middle, coarse = channels
        self.up = nn.ModuleList([upsampling(coarse, middle), upsampling(middle, fine), upsampling(fine, stem)])
        self.fuse = nn.ModuleList([AsymmetricModulation(middle, norm), AsymmetricModulation(fine, norm)])

    def encode(self, x: Tensor) -> list[Tensor]:
        """`(B, in_channels, H, W) -> [(B, 16 w, H/4, W/4), (B, 32 w, H/8, W/8), (B, 64 w, H/16, W/16)]`."""
        return run_stages(self.encoder, self.stem(x), pool=False)

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder outputs -> logits `(B, 1, H, W)`, upsampled twofold."""
        fine, middle, x = features
        x = self.fuse[0](self.up[0](x), middle)
        x = self.fuse[1](self.up[1](x), fine)
        return F.interpolate(self.head(self.up[2](x)), scale_factor=2, mode="bilinear", align_corners=False)


UNUSED = ("uplayer2", "uplayer1")

STUDENTS.register(
    "alcnet",
    StudentInfo(
        ALCNet, "ALCNet (Dai et al., 2021; form of PAL)", published_parameters=520_037, gflops=0.59, left_out=UNUSED
    ),
)
STUDENTS.register(
    "alcnet-lesps",
    StudentInfo(
        partial(ALCNet, in_channels=1, norm="batch"),
        "ALCNet (Dai et al., 2021; form of LESPS)",
        published_parameters=519_889,
        gflops=0.59,
        left_out=UNUSED,
    ),
)

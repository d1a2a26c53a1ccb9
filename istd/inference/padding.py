"""How an image of any size is made to fit a network: the one rule of training, evaluation and deployment.

Networks halve their input a few times, so both sides must be multiples of their largest stride. The last rows and
columns are mirrored, and no more of them than the network needs: what lies beyond the image is invented, and clutter at
the border gives false alarms that depend on it. Multiples of 32 instead of 16 move a student's IoU by some tenths of a
point, either way: a hundred pixels, nearly all within reach of the border, of the few thousand that a test split has.
Neither is better beyond that noise, but two rules are two results. A step at the border is another matter: padded with
zeros, students find a target along it and lose half of their IoU (`python benchmarks/padding.py runs/x --data DIR`).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from istd.students import stages_of


def stride_of(student: nn.Module) -> int:
    """What both sides of a student's input must be multiples of: the largest stride of its stages."""
    return max(stage.stride for stage in stages_of(student))


def pad_to_multiple(image: Tensor, stride: int) -> Tensor:
    """Reflect the last rows and columns of `(B, C, H, W)` until H and W are multiples of `stride`."""
    height, width = image.shape[-2:]
    bottom, right = -height % stride, -width % stride
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(image, (0, right, 0, bottom), mode=mode) if bottom or right else image

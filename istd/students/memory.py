"""The order in which a student's weights and maps lie in memory, chosen by what was measured.

Channels-last is the faster order for inference on a CPU, and the one that kernels for GPUs and for bfloat16 are written
for. Training in float32 on a CPU is the exception: for wide convolutions at full resolution the kernel that computes
weight gradients is up to five times slower in channels-last, and a student that has many of them says so
(`Student.contiguous_training`).
`python benchmarks/students.py --formats` measures both orders; `benchmarks/results/memory-formats.md` is its table.
"""

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def memory_format(student: nn.Module, training: bool, precision: torch.dtype = torch.float32) -> torch.memory_format:
    """The faster order for a student on the device that it lies on.

    Args:
        student: the network; one that does not say `contiguous_training` is taken as channels-last.
        training: whether gradients will be computed.
        precision: what convolutions compute in, under autocast for instance.
    """
    on_cpu = next((p.device.type for p in student.parameters()), "cpu") == "cpu"
    plain = training and on_cpu and precision in (torch.float32, torch.float64)
    contiguous = plain and bool(getattr(student, "contiguous_training", False))
    return torch.contiguous_format if contiguous else torch.channels_last


def in_fast_format(student: Network, training: bool, precision: torch.dtype = torch.float32) -> Network:
    """The student itself, its weights brought to `memory_format`; the maps follow them. Move it to its device first."""
    return student.to(memory_format=memory_format(student, training, precision))

"""What a device can compute in bfloat16."""

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself; where it is emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and native is not None and bool(native())

"""CPU threads of this process: PyTorch's, and those of the numerical libraries beside it."""

import torch
from threadpoolctl import threadpool_limits


def use_threads(count: int) -> None:
    """Let PyTorch, BLAS and OpenMP use `count` threads each from now on.

    PyTorch's own setting leaves the pools of NumPy, SciPy and scikit-learn at one thread a core. Beside another busy
    process such threads wait for each other, and a vector operation of microseconds takes milliseconds.

    Raises:
        ValueError: if `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"`threads` must be at least 1, got {count}.")
    torch.set_num_threads(count)
    threadpool_limits(count)

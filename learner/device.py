"""The device that a learner computes on.

Owns the choice and its settings; must not import anything but torch.
"""

from __future__ import annotations

import torch


def resolve_device(name: str) -> torch.device:
    """The device that learner.device names; "auto" is CUDA where there is one, else the CPU.

    Raises ValueError if torch finds no CUDA device where one is named.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"learner.device is {name}, but torch finds no CUDA device here; give auto or cpu")
    return device


def allow_tf32(device: torch.device) -> None:
    """On CUDA, lets float32 matrix products round their inputs to 10 bits of mantissa, in the whole process.

    Sums stay float32. That is as exact as TD targets need, and several times as fast on GPUs with TF32.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True

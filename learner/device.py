"""The device that a learner computes on.

Owns its choice and its settings; must not import anything but torch.
"""

from __future__ import annotations

import torch


def prepare_device(name: str) -> torch.device:
    """The device that learner.device names; "auto" is CUDA where there is one, else the CPU.

    On CUDA, in the whole process, float32 matrix products round their inputs to 10 bits of mantissa and sum
    in float32 (TF32): as exact as TD targets need, and several times as fast on GPUs that have it.

    Raises ValueError if CUDA is named and torch finds none.
    """
    found = torch.cuda.is_available()
    device = torch.device(("cuda" if found else "cpu") if name == "auto" else name)
    if device.type == "cuda":
        if not found:
            raise ValueError(
                f"learner.device is {name}, but torch finds no CUDA device here; give auto or cpu"
            )
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    return device

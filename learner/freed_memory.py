"""Memory that tensors free and the next ones take again, without a way through the system.

Owns one setting of the C library; must not import torch.

glibc gives the end of its heap back to the system whenever enough of it is free, and then gets it again page
by page, each filled with zeros. In the updates of MinAtar's network this happened in every pass: 100 to 230
page faults an update, a tenth of its time or more (measured on a Zen 5 by `ru_minflt`).
"""

import ctypes
from collections.abc import Callable
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""
_KEPT_BYTES = 64 << 20
_LARGEST_KEPT_BYTES = 32 << 20
"""The most that glibc takes as M_MMAP_THRESHOLD; larger tensors come from the system and go back to it."""


def keep_freed_memory() -> bool:
    """Lets this process keep up to 64 MiB of freed memory. Returns whether its C library knows how: glibc."""
    # Without a name CDLL opens the process itself, which no other system than Unix has.
    try:
        mallopt: Callable[[int, int], Any] = ctypes.CDLL(None).mallopt
    except (TypeError, OSError, AttributeError):
        return False
    return all([mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES), mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)])

"""What torch has no public name for: fused optimizer steps, dense layers of oneDNN, groups of processes.

Owns every use of torch's private names in `learner`; must not import anything but torch. For each of them
tests/learner/test_torch_private.py checks what we rely on.
"""

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C import _distributed_c10d as c10d

Store = c10d.Store
"""Where processes that connect leave their addresses for each other."""

_MEETING_SECONDS = timedelta(seconds=120)
# The coordinator ends ranks that hang long before.
_EXCHANGE_SECONDS = timedelta(days=1)

HAS_ONEDNN: bool = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether this build of torch has oneDNN, and with it `onednn_linear` and `onednn_packed`."""


def adam_step(
    weights: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: Tensor,
    *,
    learning_rate: float | Tensor,
    epsilon: float,
    skip: Tensor | None,
) -> None:
    """One step of Adam (Kingma and Ba 2015, arXiv:1412.6980) in place, with beta 0.9 and 0.999.

    `torch.optim.Adam(fused=True)` calls the same operator. For one tensor, the bookkeeping around it takes
    twice as long as the operator does: a tenth of a small network's update.

    Args:
        weights, gradient, exp_avg, exp_avg_sq: [P] float32.
        steps: scalar float32, the number of steps with this one: Adam's t.
        learning_rate: as a scalar float32 tensor, the device reads it.
        skip: scalar float32; where it is 1, neither weights nor moments change. The device reads it.
    """
    torch._fused_adam_(
        [weights],
        [gradient],
        [exp_avg],
        [exp_avg_sq],
        [],
        [steps],
        lr=learning_rate,
        beta1=0.9,
        beta2=0.999,
        eps=epsilon,
        weight_decay=0.0,
        amsgrad=False,
        maximize=False,
        found_inf=skip,
    )


def sgd_step(
    weights: Tensor, gradient: Tensor, *, learning_rate: float | Tensor, skip: Tensor | None
) -> None:
    """weights -= learning_rate * gradient, in place, both [P] float32; `skip` as in `adam_step`."""
    torch._fused_sgd_(
        [weights],
        [gradient],
        [],
        lr=learning_rate,
        momentum=0.0,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        found_inf=skip,
    )


def onednn_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """inputs [B, K] weight^T [K, N] + bias [N] -> [B, N], float32 on the CPU, computed by oneDNN.

    The code that torch.compile makes calls this operator. weight may be packed or transposed; bias must be
    contiguous, because the operator ignores its strides. "none" leaves out the ReLU that oneDNN could fuse,
    because that turns NaN into 0.
    """
    outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return outputs


def onednn_packed(weight: Tensor) -> Tensor:
    """weight [N, K] in the memory layout that oneDNN prefers: a copy, which only `onednn_linear` can read."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def serve_store(host: str) -> tuple[Store, int]:
    """A store that other processes join at host and the port returned; it listens on this address only."""
    listener = socket.create_server((host, 0))
    port: int = listener.getsockname()[1]
    store = c10d.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=_MEETING_SECONDS,
        master_listen_fd=listener.detach(),
    )
    return store, port


def join_store(host: str, port: int) -> Store:
    """The store that another process serves. Raises RuntimeError if it cannot be reached."""
    return c10d.TCPStore(host, port, is_master=False, timeout=_MEETING_SECONDS)


def connect_sums(kind: str, store: Store, host: str, rank: int, size: int) -> Callable[[Tensor], None]:
    """Connects `size` processes; returns what replaces a tensor by the sum over all of them, in place.

    kind: "cpu" for tensors in the host's memory, "cuda" for those on a GPU. host: this machine's address for
    the others. The public `torch.distributed.init_process_group` makes one group, a global of the process, at
    the address that the machine's name happens to have.

    Both raise RuntimeError: if not all processes come within two minutes, and if one is gone later.
    """
    own = c10d.PrefixStore(kind, store)
    group: Any  # torch's stubs leave out what these two classes share
    if kind == "cuda":
        nccl = c10d.ProcessGroupNCCL.Options()
        nccl._timeout = _EXCHANGE_SECONDS
        group = c10d.ProcessGroupNCCL(own, rank, size, nccl)
    else:
        gloo = c10d.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        gloo._devices = [c10d.ProcessGroupGloo.create_device(hostname=host)]
        gloo._timeout = _EXCHANGE_SECONDS
        gloo._threads = 1
        group = c10d.ProcessGroupGloo(own, rank, size, gloo)

    def sum_(tensor: Tensor) -> None:
        group.allreduce([tensor]).wait()

    return sum_

from __future__ import annotations

import pytest
import torch

from learner.device import prepare_device


def test_the_cpu_by_name() -> None:
    assert prepare_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_refused() -> None:
    assert prepare_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="no CUDA device"):
        prepare_device("cuda")

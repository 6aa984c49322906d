"""The device on which tests run that hang on one: the CPU, and a GPU in variants of the same tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.cuda,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    ],
)


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device on which torch makes tensors and modules meanwhile, unless told otherwise."""
    chosen = torch.device(request.param)
    if chosen.type == "cpu":  # torch's own default; a context around the test would be seen by modes
        yield chosen
        return
    # Replays have to repeat the forward; the fastest convolutions add in any order.
    with chosen, torch.backends.cudnn.flags(enabled=True, deterministic=True):
        yield chosen

"""Ten thousand blocks run: nothing in the engine recurses over depth."""

from __future__ import annotations

import pytest
import torch
from engine.samples import Chain, inverted
from torch import nn


@pytest.mark.slow
def test_ten_thousand_blocks_run_forward_and_backward() -> None:
    torch.manual_seed(0)
    model = Chain(10_000, lambda width: nn.Linear(width, width, bias=False), 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-2)
    x = torch.randn(2, 16, requires_grad=True)
    net = inverted(model, x)
    found = torch.autograd.grad(net(x).pow(2).sum(), x)[0]
    expected = torch.autograd.grad(model(x).pow(2).sum(), x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())

"""What the code of today's transformers does in its forward traces, and does the same in the net."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tracing.agreement import agree, linear, mlp, randn


def test_halves_whose_middle_is_computed_each_time_stay_in_a_module_that_becomes_one_node() -> None:
    class Rotary(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.into, self.out = linear(seed=seed), linear(seed=seed + 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.into(x)
            low = x[..., : x.shape[-1] // 2]
            high = x[..., x.shape[-1] // 2 :]
            return self.out(torch.cat([-high, low], -1))

    class Layer(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.attend, self.mlp = Rotary(seed), mlp(seed=seed + 5)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attend(x)
            return x + self.mlp(x)

    net = agree(nn.Sequential(Layer(0), Layer(20)), randn(3, 4))
    assert {"0.attend", "0.mlp", "1.attend"} <= {node.module for node in net.graph.nodes}

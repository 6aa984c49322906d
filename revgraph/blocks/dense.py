"""Dense networks: functions of couplings over vectors."""

from __future__ import annotations

from torch import nn


class DenseFunction(nn.Sequential):
    """`depth` hidden layers, each linear and ReLU, then a linear layer: [N, in] to [N, out].

    The last layer starts at zero where `starts_at_zero`, so that a coupling starts as the identity.
    """

    def __init__(
        self, in_features: int, out_features: int, hidden: int, depth: int = 2, starts_at_zero: bool = False
    ) -> None:
        layers: list[nn.Module] = []
        width = in_features
        for _ in range(depth):
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        last = nn.Linear(width, out_features)
        if starts_at_zero:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        super().__init__(*layers, last)

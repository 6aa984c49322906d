"""Dynamics: two-stream forms of residual networks, each with one function a step.

They are plain arithmetic around half-steps, in which the tracer finds the couplings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from revgraph.bijections import Scale


class Momentum(nn.Module):
    """One step of a momentum network (Sander et al. 2021): a residual network with a velocity.

    Takes and returns the streams x and v, both of one shape: `v' = gamma * v + (1 - gamma) * F(x)`,
    `x' = x + v'`. A velocity of zeros to begin with is as good as a learned one.

    Undoing a step divides by gamma: errors of rounding grow by 1 / gamma a step, so that deep networks want a
    gamma near 1, or anchors (`rg.plan(..., max_drift=...)`).

    Raises:
        ValueError: gamma is not above 0 and at most 1.
    """

    outputs = 2

    def __init__(self, f: nn.Module, gamma: float = 0.9) -> None:
        super().__init__()
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be above 0 and at most 1, not {gamma}")
        self.f = f
        self.decay = Scale(gamma)

    @property
    def gamma(self) -> Tensor:
        """The share of the velocity that is left after a step; a buffer, saved with the weights."""
        return self.decay.factor

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = self.decay(v) + (1 - self.gamma) * self.f(x)
        return x + v, v


class Midpoint(nn.Module):
    """One step of the midpoint rule: `x'' = x + 2h F(x')`, with one function a step (Chang et al. 2018).

    Takes the last two states (x, x') and returns the next two, (x', x'').
    """

    outputs = 2

    def __init__(self, f: nn.Module, h: float = 0.5) -> None:
        super().__init__()
        self.f = f
        self.h = h

    def forward(self, before: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        return now, before + 2 * self.h * self.f(now)


class Leapfrog(nn.Module):
    """One step of the leapfrog rule: `x'' = 2x' - x + h^2 F(x')` (Chang et al. 2018, second-order networks).

    Takes the last two states (x, x') and returns the next two, (x', x'').
    """

    outputs = 2

    def __init__(self, f: nn.Module, h: float = 1.0) -> None:
        super().__init__()
        self.f = f
        self.h = h

    def forward(self, before: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        return now, (2 * now + self.h**2 * self.f(now)) - before


class DualResidual(nn.Module):
    """One block of a dual-residual network (Dr2Net; Zhao et al. 2024): a residual block, made reversible.

    Takes and returns the streams x and y, both of one shape: `x' = F(x) + alpha * x + y`, `y' = beta * x`.
    With alpha = 1 and y = 0 before the first block, x nears that of the residual network `x' = x + F(x)` as
    beta nears 0; with alpha = 0 and beta = 1 it is a block of a RevNet with one function.

    Undoing a block divides by beta, which grows errors of rounding by 1 / beta: `set` moves both coefficients
    during finetuning. They are buffers, saved with the weights.

    Raises:
        ValueError: beta is 0.
    """

    outputs = 2
    alpha: Tensor

    def __init__(self, f: nn.Module, alpha: float = 1.0, beta: float = 0.1) -> None:
        super().__init__()
        self.f = f
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.scale = Scale(beta)

    @property
    def beta(self) -> Tensor:
        """The coefficient of the added, reversible connection."""
        return self.scale.factor

    def set(self, alpha: float, beta: float) -> None:
        """Use other coefficients from the next forward on.

        Raises:
            ValueError: beta is 0.
        """
        self.alpha = torch.full_like(self.alpha, alpha)
        self.scale.set(beta)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return y + (self.f(x) + self.alpha * x), self.scale(x)

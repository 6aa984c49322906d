"""Schedules: the coefficients of a converted net, moved while it is finetuned."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import nn

from revgraph.coefficients import verify_coefficients
from revgraph.conversion import coefficients_of, set_dual_residual
from revgraph.errors import GraphError

Shape = Literal["linear", "cosine"]


class DualResidualSchedule:
    """Moves a converted net's coefficients from their present values to `alpha` and `beta` in `steps` steps.

    Call `step()` after each training step, as for a learning rate; afterwards the coefficients stay. A
    "linear" way has even steps; a "cosine" one begins and ends slowly. `state_dict` and `load_state_dict` let
    a run that stopped go on; the coefficients themselves are saved with the net's weights.

    Raises:
        GraphError: the net is not of `rg.dual_residual`, or a figure is out of range.

    Example:
        >>> import torch, revgraph as rg
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.f = torch.nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         return x + torch.tanh(self.f(x))
        >>> net = rg.dual_residual(torch.nn.Sequential(Block(), Block()), torch.ones(2, 4), beta=0.25)
        >>> schedule = rg.DualResidualSchedule(net, steps=2, alpha=0.5, beta=0.75)
        >>> schedule.step()
        >>> schedule.alpha, schedule.beta
        (0.75, 0.5)
    """

    def __init__(
        self, net: nn.Module, steps: int, *, alpha: float, beta: float, shape: Shape = "linear"
    ) -> None:
        verify_coefficients(alpha, beta)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise GraphError(f"a schedule's steps are {steps!r}, and must be a whole number, 1 or more")
        if shape not in ("linear", "cosine"):
            raise GraphError(f"a schedule's shape is {shape!r}, and must be 'linear' or 'cosine'")
        now = coefficients_of(net)
        self._net = net
        self._steps = steps
        self._shape: Shape = shape
        self._start = (now.alpha.item(), now.beta.item())
        self._end = (float(alpha), float(beta))
        self._done = 0

    @property
    def alpha(self) -> float:
        """The coefficient of the pretrained network's own connections, as the schedule has it now."""
        return self._at(0)

    @property
    def beta(self) -> float:
        """The coefficient of the added connections, as the schedule has it now."""
        return self._at(1)

    def step(self) -> None:
        """Move on by one step; between a backward and the next forward."""
        self._done = min(self._done + 1, self._steps)
        set_dual_residual(self._net, alpha=self.alpha, beta=self.beta)

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands."""
        return {
            "done": self._done,
            "steps": self._steps,
            "shape": self._shape,
            "start": list(self._start),
            "end": list(self._end),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, with its steps, shape and ends, and set the net's coefficients."""
        self._done, self._steps, self._shape = state["done"], state["steps"], state["shape"]
        self._start = (float(state["start"][0]), float(state["start"][1]))
        self._end = (float(state["end"][0]), float(state["end"][1]))
        set_dual_residual(self._net, alpha=self.alpha, beta=self.beta)

    def _at(self, index: int) -> float:
        way = self._done / self._steps
        if self._shape == "cosine":
            way = (1 - math.cos(math.pi * way)) / 2
        return self._start[index] + way * (self._end[index] - self._start[index])

"""Initializing: parameters that are chosen by what a first batch of data looks like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from revgraph.bijections import ActNorm
from revgraph.engine.module import ReversibleModule, check_net
from revgraph.engine.observer import Observer
from revgraph.expressions import module_at
from revgraph.program import CouplingLaw


def initialize(net: ReversibleModule, *inputs: Any, **extras: Any) -> int:
    """Fit every `ActNorm` of the net to a first batch, in order, and return how many there are.

    Each is given the scale and shift with which its channels have mean 0 and variance 1 on this batch (Glow;
    Kingma, Dhariwal 2018, section 3.1). One forward without gradients, in the net's mode.

    Raises:
        TraceError: `net` is no net of `rg.trace` or `rg.load`.

    Example:
        >>> import torch, revgraph as rg
        >>> flow = rg.load("realnvp", batch=100)
        >>> rg.initialize(flow, torch.randn(100, 2) * 3 + 1)
        1
        >>> flow(torch.randn(100, 2) * 3 + 1).std().round().item()
        1.0
    """
    check_net(net, "rg.initialize")
    fitting = _Fitting(net)
    with torch.no_grad(), net.watched_by(fitting):
        net(*inputs, **extras)
    return len(fitting.done)


class _Fitting(Observer):
    """Fits each `ActNorm` as the value that it reads is made, before it runs."""

    def __init__(self, net: ReversibleModule) -> None:
        self.readers: dict[str, list[ActNorm]] = {}
        self.done: set[ActNorm] = set()
        for operation in net._program.operations:
            if isinstance(operation.law, CouplingLaw) and operation.target is not None:
                module = module_at(net, operation.law.path)
                if isinstance(module, ActNorm):
                    self.readers.setdefault(operation.target, []).append(module)

    def made(self, name: str, value: Tensor) -> None:
        for module in self.readers.get(name, ()):
            if module not in self.done:  # one that is used again was fitted where it was used first
                module.fit(value)
                self.done.add(module)

"""nflows' flows, whose forward is in a method, `log_prob`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.clients.client import Client, Example


class LogLikelihood(nn.Module):
    """What a flow is trained with."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)


def _real_nvp(width: int, inner: int, depth: int, batch: int) -> Example:
    from nflows.flows import SimpleRealNVP

    flow = SimpleRealNVP(width, inner, depth, 2, batch_norm_between_layers=True)
    return Example(LogLikelihood(flow), (torch.randn(batch, width),))


def _full() -> Example:
    with torch.device("cpu"):  # its masks are looked at as it is made
        return _real_nvp(64, 512, 24, 1024)


def _loss(log_likelihood: Tensor) -> Tensor:
    return -log_likelihood.mean()


CLIENTS = (Client("RealNVP", "nflows", lambda: _real_nvp(6, 16, 4, 16), _full, _loss),)

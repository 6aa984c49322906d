"""Running a network's step with its reversible stretches in somebody else's hands."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import revgraph as rg
from benchmarks.comparison.networks import Network

Blocks = Sequence[tuple[nn.Module, nn.Module]]
Streams = Tensor | tuple[Tensor, Tensor]
"""Two streams as they come: apart, or joined along dimension 1."""


class Candidate(nn.Module, ABC):
    """A network as one contender runs it: `net` owns the weights under the network's own names."""

    def __init__(self, net: rg.ReversibleModule) -> None:
        super().__init__()
        self.net = net

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...


class Assembled(Candidate):
    """The network's own stem, entries and head; between them, stretches that `run` makes of its F and G."""

    def __init__(
        self, net: rg.ReversibleModule, network: Network, run: Callable[[Blocks], nn.Module]
    ) -> None:
        super().__init__(net)
        self.network = network
        self.stretches = nn.ModuleList(
            run([(net.get_submodule(f), net.get_submodule(g)) for f, g in stretch.blocks])
            for stretch in network.stretches
        )

    def forward(self, x: Tensor) -> Tensor:
        value: Streams = x if self.network.stem is None else self.net.get_submodule(self.network.stem)(x)
        for stretch, run in zip(self.network.stretches, self.stretches, strict=True):
            if stretch.entry is not None:
                value = self.net.get_submodule(stretch.entry)(*apart(value))
            value = run(value)
        y = joined(value)
        return y if self.network.head is None else self.net.get_submodule(self.network.head)(y)


class Reversible(Candidate):
    """The network as revgraph runs it, under the net's own plan."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BlockwiseStretch(nn.Module, ABC):
    """Additive blocks, called one after another."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AdditiveBlock(f, g) for f, g in blocks)

    @abstractmethod
    def call(self, block: nn.Module, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]: ...

    def forward(self, value: Streams) -> Streams:
        x1, x2 = apart(value)
        for block in self.blocks:
            x1, x2 = self.call(block, x1, x2)
        return x1, x2


class PlainStretch(BlockwiseStretch):
    """Under plain autograd."""

    def call(self, block: nn.Module, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        return block(x1, x2)


class CheckpointStretch(BlockwiseStretch):
    """Each block under torch's checkpoint."""

    def call(self, block: nn.Module, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        return checkpoint(block, x1, x2, use_reentrant=False)


class AdditiveBlock(nn.Module):
    """Two half-steps in plain code."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + self.f(x2)
        y2 = x2 + self.g(y1)
        return y1, y2


def apart(value: Streams) -> tuple[Tensor, Tensor]:
    """Both streams, as views where they come joined."""
    if isinstance(value, tuple):
        return value
    x1, x2 = value.chunk(2, dim=1)
    return x1, x2


def joined(value: Streams) -> Tensor:
    """Both streams in one tensor, copied where they come apart."""
    return torch.cat(value, dim=1) if isinstance(value, tuple) else value


def run_plainly(network: Network, scale: float = 1.0) -> Candidate:
    """The network under plain autograd: what the others are measured against."""
    return Assembled(weights(network, scale), network, PlainStretch)


def weights(network: Network, scale: float = 1.0) -> rg.ReversibleModule:
    """A copy of the network's modules, every parameter multiplied by `scale`."""
    net = copy.deepcopy(network.net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(scale)
    return net

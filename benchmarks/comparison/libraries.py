"""The reversible blocks of other libraries, each around the F and G that it is given.

Each function imports its library when it is called, so that one that is missing concerns nobody else. A
library is used as its documentation says, with its default settings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.comparison.running import Blocks, Streams, apart, joined


def memcnn_stretch(blocks: Blocks) -> nn.Module:
    """Additive couplings, each in a wrapper that frees its input."""
    import memcnn

    couplings = (memcnn.AdditiveCoupling(f, g) for f, g in blocks)
    return Joined([memcnn.InvertibleModuleWrapper(coupling) for coupling in couplings], frees_input=True)


def revtorch_stretch(blocks: Blocks) -> nn.Module:
    """One sequence of reversible blocks."""
    from revtorch import ReversibleBlock, ReversibleSequence

    return Joined([ReversibleSequence(nn.ModuleList(ReversibleBlock(f, g) for f, g in blocks))])


def revlib_stretch(blocks: Blocks) -> nn.Module:
    """One sequence of half-steps, F and G in turn."""
    import revlib

    return Joined([revlib.ReversibleSequential(*(function for block in blocks for function in block))])


def reformer_stretch(blocks: Blocks) -> nn.Module:
    """The reversible sequence that reformer-pytorch runs its layers with."""
    from reformer_pytorch.reversible import ReversibleSequence

    return JoinedAlongSecond(ReversibleSequence(nn.ModuleList(nn.ModuleList(block) for block in blocks)))


def invtorch_stretch(blocks: Blocks) -> nn.Module:
    """Additive blocks, written as invtorch's documentation says: it comes with no coupling of its own."""
    import invtorch.nn

    class Block(invtorch.nn.Module):
        def __init__(self, f: nn.Module, g: nn.Module) -> None:
            super().__init__()
            self.f, self.g = f, g

        def function(self, x: Tensor) -> Tensor:
            x1, x2 = apart(x)
            y1 = x1 + self.f(x2)
            return joined((y1, x2 + self.g(y1)))

        def inverse(self, y: Tensor) -> Tensor:
            y1, y2 = apart(y)
            x2 = y2 - self.g(y1)
            return joined((y1 - self.f(x2), x2))

    return Joined([Block(f, g) for f, g in blocks], frees_input=True)


class Joined(nn.Module):
    """Modules in a row that take and return both streams in one tensor, joined along dimension 1."""

    def __init__(self, modules: list[nn.Module], frees_input: bool = False) -> None:
        super().__init__()
        self.row = nn.Sequential(*modules)
        self.frees_input = frees_input

    def forward(self, value: Streams) -> Tensor:
        x = joined(value)
        # What is the caller's must live on: the library gets a copy to free.
        return self.row(x.clone() if self.frees_input and x is value else x)


class JoinedAlongSecond(nn.Module):
    """A module that takes and returns both streams in one tensor, joined along dimension 2."""

    def __init__(self, sequence: nn.Module) -> None:
        super().__init__()
        self.sequence = sequence

    def forward(self, value: Streams) -> Streams:
        if isinstance(value, Tensor) and value.dim() == 2:  # [N, C] as [N, 1, C], which needs no copy
            return self.sequence(value.unsqueeze(1)).squeeze(1)
        y1, y2 = self.sequence(torch.cat(apart(value), dim=2)).chunk(2, dim=2)
        return y1, y2

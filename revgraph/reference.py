"""Algorithm 1 of Gomez et al. 2017, literally and in the paper's letters.

An oracle for tests and a text for tutorials; the engine does the same over any graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Result:
    """What the backward of one block gives: its inputs, their gradients, and those of the weights."""

    x1: Tensor
    x2: Tensor
    dx1: Tensor
    dx2: Tensor
    dwF: tuple[Tensor, ...]
    dwG: tuple[Tensor, ...]


def algorithm1(f: nn.Module, g: nn.Module, y1: Tensor, y2: Tensor, dy1: Tensor, dy2: Tensor) -> Result:
    """The inputs and gradients of `y1 = x1 + F(x2)`, `y2 = x2 + G(y1)`, from its outputs and their gradients.

    All tensors have one shape a stream; gradients of weights come in the order of `parameters()`. F and G are
    evaluated once each (section 3.2, Algorithm 1).

    Example:
        >>> import torch, revgraph as rg
        >>> f, g = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> y1, y2, dy1, dy2 = torch.ones(4, 3, 2)
        >>> result = rg.reference.algorithm1(f, g, y1, y2, dy1, dy2)
        >>> torch.allclose(result.x1 + f(result.x2), y1)
        True
    """
    with torch.enable_grad():
        z1 = y1.detach().requires_grad_()  # line 1
        Gz1 = g(z1)
        x2 = (y2 - Gz1).detach().requires_grad_()  # line 2
        Fx2 = f(x2)
        x1 = (z1 - Fx2).detach()  # line 3
    wF, wG = tuple(f.parameters()), tuple(g.parameters())
    dG_dz1, *dwG = torch.autograd.grad(Gz1, (z1, *wG), dy2)  # line 8: bar wG = (dG/dwG)^T bar y2
    dz1 = dy1 + dG_dz1  # line 4: bar z1 = bar y1 + (dG/dz1)^T bar y2
    dF_dx2, *dwF = torch.autograd.grad(Fx2, (x2, *wF), dz1)  # line 7: bar wF = (dF/dwF)^T bar z1
    dx2 = dy2 + dF_dx2  # line 5: bar x2 = bar y2 + (dF/dx2)^T bar z1
    return Result(
        x1, x2.detach(), dx1=dz1, dx2=dx2, dwF=tuple(dwF), dwG=tuple(dwG)
    )  # line 6: bar x1 = bar z1

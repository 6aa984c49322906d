"""FrEIA's invertible networks, called as they are: the output and its log-determinant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.clients.client import Client, Example


def _likelihood(outputs: tuple[Tensor, Tensor]) -> Tensor:
    z, log_det = outputs
    return (z.pow(2).flatten(1).sum(1) / 2 - log_det).mean() / z[0].numel()


def _dense(inner: int) -> Any:
    def subnet(inside: int, outside: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inside, inner), nn.ReLU(), nn.Linear(inner, outside))

    return subnet


def _convolutions(inner: int) -> Any:
    def subnet(inside: int, outside: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inside, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, outside, 3, padding=1)
        )

    return subnet


def _nice(width: int, depth: int, inner: int, batch: int) -> Example:
    """Additive couplings and fixed permutations, with a scale at the end (Dinh et al. 2015)."""
    from FrEIA import framework, modules

    nodes: list[Any] = [framework.InputNode(width)]
    for seed in range(depth):
        nodes.append(
            framework.Node(nodes[-1], modules.NICECouplingBlock, {"subnet_constructor": _dense(inner)})
        )
        nodes.append(framework.Node(nodes[-1], modules.PermuteRandom, {"seed": seed}))
    nodes.append(framework.Node(nodes[-1], modules.ActNorm, {}))
    model = framework.GraphINN([*nodes, framework.OutputNode(nodes[-1])])
    return Example(model, (torch.randn(batch, width),))


def _glow(size: int, depth: int, inner: int, batch: int) -> Example:
    """Affine couplings at two resolutions, half of the channels leaving after the first."""
    from FrEIA import framework, modules

    nodes: list[Any] = [framework.InputNode(3, size, size)]

    def steps() -> None:
        for seed in range(depth):
            arguments = {"subnet_constructor": _convolutions(inner), "clamp": 1.2}
            nodes.append(framework.Node(nodes[-1], modules.GLOWCouplingBlock, arguments))
            nodes.append(framework.Node(nodes[-1], modules.PermuteRandom, {"seed": seed}))

    nodes.append(framework.Node(nodes[-1], modules.HaarDownsampling, {}))
    steps()
    split = framework.Node(nodes[-1], modules.Split, {})
    nodes.append(split)
    early = framework.Node(split.out1, modules.Flatten, {})
    nodes.append(framework.Node(split.out0, modules.HaarDownsampling, {}))
    steps()
    late = framework.Node(nodes[-1], modules.Flatten, {})
    both = framework.Node([late.out0, early.out0], modules.Concat1d, {"dim": 0})
    model = framework.GraphINN([*nodes, early, late, both, framework.OutputNode(both)])
    return Example(model, (torch.randn(batch, 3, size, size),))


def _all_in_one(size: int, depth: int, inner: int, batch: int) -> Example:
    """A sequence of blocks, each a coupling, a permutation and a scale."""
    from FrEIA import framework, modules

    model = framework.SequenceINN(4, size, size)
    for _ in range(depth):
        model.append(modules.AllInOneBlock, subnet_constructor=_convolutions(inner), permute_soft=False)
    return Example(model, (torch.randn(batch, 4, size, size),))


CLIENTS = (
    Client("NICE", "FrEIA", lambda: _nice(8, 4, 16, 16), lambda: _nice(784, 24, 1000, 256), _likelihood),
    Client("GLOW", "FrEIA", lambda: _glow(8, 3, 8, 2), lambda: _glow(64, 16, 256, 32), _likelihood),
    Client(
        "AllInOne",
        "FrEIA",
        lambda: _all_in_one(8, 4, 8, 2),
        lambda: _all_in_one(64, 32, 256, 32),
        _likelihood,
    ),
)

"""Compiled steps of random nets under random plans against plain autograd, in float64.

    PYTHONPATH=tests python -m compiling.random_steps 500 [aot | inductor [FIRST [dynamic]]]

is the long run: it tells the worst error, and every seed that fails.
"""

from __future__ import annotations

import random
import sys
import warnings
from typing import Any

import torch
from engine.random_nets import BATCH, BOUNDARIES, COUPLINGS, WIDTH, WIRINGS, Move, RandomNet
from engine.random_plans import heavy_operators, random_plan
from torch import Tensor

import revgraph as rg
from revgraph import compile


def random_net(pick: random.Random) -> tuple[RandomNet, list[Tensor]]:
    """A net of up to four streams and ten moves, some of its parameters frozen, and inputs for it."""
    streams = made = pick.randint(1, 4)
    moves: list[Move] = []
    for _ in range(pick.randint(1, 10)):
        others = tuple(pick.sample(range(made), min(made, pick.randint(1, 3))))
        kind = pick.choice(COUPLINGS + COUPLINGS + BOUNDARIES + WIRINGS)
        moves.append(Move(kind, pick.randrange(streams), others, pick.choice((0.5, -2.0))))
        made += 1
    model = RandomNet(streams, tuple(moves), tuple(pick.sample(range(made), pick.randint(0, 2)))).double()
    for parameter in model.parameters():
        parameter.requires_grad_(pick.random() > 0.15)
    inputs = [torch.randn(BATCH, WIDTH, dtype=torch.double) for _ in range(streams)]
    return model, [each.requires_grad_(pick.random() < 0.8) for each in inputs]


def gradients(run: Any, inputs: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """The loss and all gradients; what no gradient reaches has one of zeros."""
    loss = sum((each * each * (place + 1)).sum() for place, each in enumerate(run(*inputs)))
    assert isinstance(loss, Tensor)
    if not loss.requires_grad:
        return [loss]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    pairs = zip(leaves, found, strict=True)
    return [loss, *(torch.zeros_like(leaf) if each is None else each for leaf, each in pairs)]


def worst_error(seed: int, backend: Any, dynamic: bool = False) -> float:
    """The largest error of loss and gradients, over the largest element of each where that is above 1.

    That of a dynamic step is over two batches.
    """
    pick = random.Random(seed)
    torch.manual_seed(seed)
    model, inputs = random_net(pick)
    net = rg.trace(model, *inputs)
    net.plan = random_plan(pick, net.graph, heavy_operators(net, inputs))
    step = compile(net, backend, dynamic=dynamic)
    errors: list[float] = []
    for given in [inputs, [larger(each) for each in inputs]] if dynamic else [inputs]:
        leaves = [leaf for leaf in (*model.parameters(), *given) if leaf.requires_grad]
        pairs = zip(gradients(step, given, leaves), gradients(model, given, leaves), strict=True)
        errors += [((one - two).abs().max() / two.abs().max().clamp(min=1)).item() for one, two in pairs]
    return max(errors)


def larger(x: Tensor) -> Tensor:
    """An input of a batch of three more."""
    return torch.randn(BATCH + 3, WIDTH, dtype=torch.double).requires_grad_(x.requires_grad)


def main(count: int, backend: str = "aot", first: int = 0, dynamic: bool = False) -> None:
    warnings.simplefilter("ignore")
    worst, failed = 0.0, 0
    for seed in range(first, first + count):
        try:
            worst = max(worst, worst_error(seed, backend, dynamic))
        except Exception as error:
            failed += 1
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        torch._dynamo.reset()
    print(f"{count} plans with {backend}: {failed} failed, worst error {worst:.2g}")


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        *sys.argv[2:3],
        *map(int, sys.argv[3:4]),
        *("dynamic" in each for each in sys.argv[4:]),
    )

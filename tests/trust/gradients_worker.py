"""`gradients_worker.py FOLDER RANK PROCESSES`: cases of several processes, and what came of them.

Each trains for two steps on this process's part of a batch, and notes in `FOLDER/RANK.json` how far its
gradients were from those of the plain model in one process on the whole batch; or, for cases that must fail,
the error. Then it saves a checkpoint in `FOLDER/two`, and loads the one in `FOLDER/one`. Last
comes a run that fails in one process.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from trust.networks import WIDTH, Function, Scaling, SyncNorm, additive, make
from trust.states import load, momentum, save, whole

import revgraph as rg

Wrap = Callable[[rg.ReversibleModule], nn.Module]


def loss_of(y: Tensor) -> Tensor:
    return y.square().mean()


def part(x: Tensor) -> Tensor:
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def sharded(again: bool = True, root: bool = True) -> Wrap:
    """Each function sharded by itself, and what is left in one piece; `again` after the forward too."""

    def wrap(net: rg.ReversibleModule) -> nn.Module:
        for node in net.graph.nodes:
            if node.kind in ("coupling", "boundary") and node.module:
                function = net.get_submodule(node.module)
                if root is False or node.kind == "coupling":
                    fully_shard(function, reshard_after_forward=again)
        return fully_shard(net, reshard_after_forward=again) if root else net

    return wrap


def gradients(model: nn.Module, whole: bool, x: Tensor) -> dict[str, Tensor]:
    """Those of the plain model; unless on the `whole` batch, means of each part's by itself."""
    parts = [x] if whole else x.chunk(dist.get_world_size())
    for each in parts:
        (loss_of(model(each)) / len(parts)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def error(found: nn.Module, expected: dict[str, Tensor]) -> float:
    """The largest difference of any gradient, relative to its largest number."""
    worst = 0.0
    for name, parameter in found.named_parameters():
        name = name.removeprefix("module.")
        gradient = parameter.grad
        if gradient is None or name not in expected:
            assert gradient is None and name not in expected, f"{name}: a gradient on one side only"
            continue
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        worst = max(worst, float((whole - expected[name]).abs().max() / expected[name].abs().max()))
    return worst


def trained(
    made: tuple[nn.Module, Tensor],
    wrap: Wrap,
    decision: Any = "invert",
    whole: bool = True,
    options: dict[str, Any] | None = None,
    compiles: bool = False,
) -> float:
    model, x = made
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, SyncNorm):
            module.together = False
    net = rg.trace(model, part(x))
    decisions = {node.name: decision for node in net.graph.nodes if node.kind == "coupling"}
    net.plan = rg.decide(
        net.graph, decisions if options is None else options.pop("decisions"), **options or {}
    )
    wrapped = wrap(rg.compile(net, "aot") if compiles else net)
    one, several = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (plain, wrapped))
    worst = 0.0
    for _ in range(2):
        for optimizer in (one, several):
            optimizer.zero_grad()
        expected = gradients(plain, whole, x)
        loss_of(wrapped(part(x))).backward()
        worst = max(worst, error(wrapped, expected))
        one.step()
        several.step()
    return worst


def reruns(made: tuple[nn.Module, Tensor]) -> float:
    """Nodes that run again for each node after them, long after FSDP has seen their backward off."""
    names = [str(index) for index in range(4)]
    options = {"decisions": dict.fromkeys(names, "recompute"), "stored": [], "reruns": names}
    return trained(made, sharded(root=False), options=options)


def line() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(5)
    units = (nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(4))
    return nn.Sequential(*(Unit(unit) for unit in units)).double(), torch.randn(8, WIDTH, dtype=torch.float64)


class Unit(rg.Boundary):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def gathered_in_passing() -> float:
    """A backward that asks for a replay of a function and not for its gradients leaves it in shards.

    Were it left gathered, the next forward would use the weights of before the step.
    """
    torch.manual_seed(6)
    model = rg.Affine(Scaling()).double()
    plain = copy.deepcopy(model)
    x1, x2 = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    x1.requires_grad_()
    net = rg.trace(model, x1, x2)
    net.plan = rg.decide(net.graph, {"f": "invert"})
    wrapped = sharded(root=False)(net)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (wrapped, plain)]
    gradients = [torch.autograd.grad(loss_of(each(x1, x2)[0]), x1)[0] for each in (wrapped, plain)]
    with torch.no_grad():
        for optimizer in optimizers:
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.mul_(2)
    outputs = [each(x1, x2)[0] for each in (wrapped, plain)]
    return max(float((a - b).detach().abs().max()) for a, b in (gradients, outputs))


def stepped_too_early(made: tuple[nn.Module, Tensor]) -> float:
    """The optimizer changes the shards between forward and backward."""
    model, x = made
    net = rg.trace(model, part(x))
    wrapped = sharded()(net)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    loss_of(wrapped(part(x))).backward()
    loss = loss_of(wrapped(part(x)))
    optimizer.step()
    loss.backward()
    return 0.0


def sharded_blocks(made: tuple[nn.Module, Tensor]) -> float:
    model, x = made
    net = rg.trace(model, part(x))
    for block in net.blocks:
        fully_shard(block)
    fully_shard(net)(part(x))
    return 0.0


def saved_by_two(folder: Path) -> float:
    """A checkpoint of shards, and beside it all that should be in it."""
    model, x = make(PLAIN)
    wrapped = sharded()(rg.trace(model, part(x)))
    optimizer = momentum(wrapped)
    loss_of(wrapped(part(x))).backward()
    optimizer.step()
    save(folder / "two", wrapped, optimizer)
    states = whole(wrapped, optimizer)
    if dist.get_rank() == 0:
        torch.save(states, folder / "two.pt")
    return 0.0


def loaded_from_one(folder: Path) -> list[str]:
    """The names of what came out otherwise than one process had saved it."""
    model, x = make(PLAIN)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    wrapped = sharded()(rg.trace(model, part(x)))
    optimizer = momentum(wrapped)
    load(folder / "one", wrapped, optimizer)
    found, expected = whole(wrapped, optimizer), torch.load(folder / "one.pt")
    missing = found.keys() ^ expected.keys()
    return [*missing, *(name for name in found if not torch.equal(found[name], expected[name]))]


def in_small_buckets(net: rg.ReversibleModule) -> nn.Module:
    """Several buckets, at whose borders torch would cut a graph that is compiled inside."""
    return DistributedDataParallel(net, bucket_cap_mb=WIDTH * WIDTH * 8 / 2**20)


def batch_norm() -> nn.Module:
    return nn.BatchNorm1d(WIDTH)


PLAIN, AFFINE = additive(lambda: nn.LayerNorm(WIDTH)), lambda: rg.Affine(Scaling(), Scaling())
SYNCHRONIZED: Function = additive(SyncNorm)
NORMALIZED: Function = additive(batch_norm)
CASES: dict[str, Callable[[], float]] = {
    "data-parallel": lambda: trained(make(PLAIN), DistributedDataParallel),
    "data-parallel, recompute": lambda: trained(make(PLAIN), DistributedDataParallel, "recompute"),
    "data-parallel, affine": lambda: trained(make(AFFINE), DistributedDataParallel),
    "data-parallel, batch norm": lambda: trained(make(NORMALIZED), DistributedDataParallel, whole=False),
    "data-parallel, synchronized norm": lambda: trained(make(SYNCHRONIZED), DistributedDataParallel),
    "data-parallel, compiled": lambda: trained(make(PLAIN), in_small_buckets, compiles=True),
    "data-parallel, compiled, batch norm": lambda: trained(
        make(NORMALIZED), in_small_buckets, whole=False, compiles=True
    ),
    "data-parallel, unused": lambda: trained(
        make(PLAIN, spare=True), lambda net: DistributedDataParallel(net, find_unused_parameters=True)
    ),
    "sharded": lambda: trained(make(PLAIN), sharded()),
    "sharded, gathered until backward": lambda: trained(make(PLAIN), sharded(again=False)),
    "sharded, recompute": lambda: trained(make(PLAIN), sharded(), "recompute"),
    "sharded, affine": lambda: trained(make(AFFINE), sharded()),
    "sharded, batch norm": lambda: trained(make(NORMALIZED), sharded(), whole=False),
    "sharded, synchronized norm": lambda: trained(make(SYNCHRONIZED), sharded()),
    "sharded, unused": lambda: trained(make(PLAIN, spare=True), sharded()),
    "sharded, reruns": lambda: reruns(line()),
    "sharded, gathered in passing": gathered_in_passing,
    "optimizer step too early": lambda: stepped_too_early(make(PLAIN)),
    "blocks sharded": lambda: sharded_blocks(make(PLAIN)),
}


def main(folder: Path, rank: int, processes: int) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    found: dict[str, Any] = {}
    states = {
        "saved by two": lambda: saved_by_two(folder),
        "loaded from one": lambda: loaded_from_one(folder),
    }
    for name, case in {**CASES, **states}.items():
        try:
            found[name] = case()
        except Exception as failure:
            notes = getattr(failure, "__notes__", [])
            found[name] = "\n".join((f"{type(failure).__name__}: {failure}", *notes))
        dist.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

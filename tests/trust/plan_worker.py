"""`plan_worker.py FOLDER RANK`: one of two processes that share plans, and notes in `FOLDER/RANK.json` how.

Only process 0 may plan: elsewhere the planner is taken away.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from trust.networks import WIDTH, additive, make

import revgraph as rg
from revgraph.engine import module
from revgraph.errors import RevgraphError
from revgraph.training.sharing import share_plan


def forbidden(*given: Any, **named: Any) -> Any:
    raise AssertionError("planned in a process that is to take the plan of another")


def net_of(batch: int) -> tuple[rg.ReversibleModule, torch.Tensor]:
    model, x = make(additive(lambda: torch.nn.LayerNorm(WIDTH)))
    return rg.trace(model, x[:batch]), x[:batch]


def told(call: Callable[[], object]) -> str:
    try:
        call()
    except RevgraphError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    if rank:
        module.plan = rg.plan = forbidden  # type: ignore[assignment]
    found: dict[str, str] = {}

    net, x = net_of(4)
    share_plan(net)
    found["least"] = net.plan.to_json()
    wrapped = DistributedDataParallel(net)
    wrapped(x).square().mean().backward()
    found["trained"] = told(lambda: None)

    node = next(node.name for node in net.graph.planned)
    share_plan(net, lambda graph: forbidden() if rank else rg.decide(graph, {node: "keep"}))
    found["by hand"] = net.plan.to_json()

    found["budget"] = told(lambda: share_plan(net, lambda graph: rg.plan(graph, budget=1)))
    found["after budget"] = net.plan.to_json()

    other, _ = net_of(4 - rank)
    found["other batch"] = told(lambda: share_plan(other, rg.keep_all))
    dist.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

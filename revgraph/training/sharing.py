"""One plan for all processes that train together: the main one makes it, the others read it as JSON text.

Processes whose functions communicate (FSDP, synchronized normalization) must replay the same nodes in the
same order, or they wait for each other for ever. One plan for all makes sure of that, and saves the others
the search.

The text goes as a tensor of bytes: nothing that another process sent is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from revgraph.engine.module import ReversibleModule
from revgraph.graph import Graph
from revgraph.planning import Plan
from revgraph.training.errors import Elsewhere

PLAN, FAILURE = 0, 1


def share_plan(net: ReversibleModule, make: Callable[[Graph], Plan] | None = None) -> None:
    """Give `net` in every process the plan of process 0, which `make` makes there alone for the net's graph.

    Without `make` it is the plan that process 0's net has. All processes of the default group call this
    alike; a single one, or one without a group, plans for itself.

    Raises:
        PlanError: `make` fails in this process, or the plan is for another graph than this process's net.
        Elsewhere: that happened in another process, which tells why itself.

    Example:
        >>> import torch, revgraph as rg
        >>> from revgraph.training.sharing import share_plan
        >>> net = rg.trace(torch.nn.Linear(4, 4), torch.ones(2, 4))
        >>> share_plan(net, lambda graph: rg.plan(graph, budget="1 GiB"))
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        if make is not None:
            net.plan = make(net.graph)
        return
    text = _from_main(net, make)
    failed: Exception | None = None
    if dist.get_rank() > 0:
        try:
            net.plan = Plan.from_json(text, net.graph)
        except Exception as error:
            failed = error
    fails = torch.tensor([int(failed is not None)], device=_device())
    dist.all_reduce(fails, dist.ReduceOp.MAX)
    if failed is not None:
        raise failed
    if fails.item():
        raise Elsewhere("the main process's plan does not fit the net of another process, which tells why")


def _from_main(net: ReversibleModule, make: Callable[[Graph], Plan] | None) -> str:
    """The JSON of the plan that process 0 gives its net.

    Raises:
        Elsewhere: that failed there; in process 0 the error is its own.
    """
    if dist.get_rank() > 0:
        kind, text = _broadcast(0, "")
        if kind == FAILURE:
            raise Elsewhere(f"the main process failed: {text}")
        return text
    try:
        if make is not None:
            net.plan = make(net.graph)
        text = net.plan.to_json()
    except Exception as error:
        _broadcast(FAILURE, str(error) or type(error).__name__)
        raise
    return _broadcast(PLAN, text)[1]


def _broadcast(kind: int, text: str) -> tuple[int, str]:
    """What process 0 gives here, in every process."""
    content = torch.frombuffer(bytearray(text.encode() or b"\n"), dtype=torch.uint8).to(_device())
    head = torch.tensor([kind, content.numel()], device=_device())
    dist.broadcast(head, src=0)
    kind, size = head.tolist()
    if dist.get_rank() > 0:
        content = torch.empty(size, dtype=torch.uint8, device=_device())
    dist.broadcast(content, src=0)
    return kind, content.cpu().numpy().tobytes().decode()


def _device() -> torch.device:
    """Where the group's tensors must be: the CPU if it has a backend there, else this process's device."""
    kinds = [each.partition(":")[0] for each in dist.get_backend_config().split(",")]
    return torch.device("cpu" if "cpu" in kinds else kinds[0])

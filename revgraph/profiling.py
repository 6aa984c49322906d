"""Profiling: how long each node of a net takes on this machine, to plan by."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from revgraph.engine.executable import PlannedOperation
from revgraph.engine.forward import Forward
from revgraph.engine.module import ReversibleModule, check_net
from revgraph.errors import PlanError
from revgraph.expressions import map_leaves
from revgraph.isolation import out_of_inference_mode, random_kept
from revgraph.planning import GENERIC, PROFILES, DeviceProfile, decide, keep_all, simulate
from revgraph.planning.schedule import schedule
from revgraph.tracing.arguments import bind, read_form
from revgraph.trials import loss_of

REPEATS = 5
WARMUP = 2


def profile(net: ReversibleModule, *inputs: Any, repeats: int = REPEATS, **extras: Any) -> DeviceProfile:
    """How long every node of the net takes here on these inputs: a profile to give to `plan` as its `cost`.

    Each node runs forward and backward by itself, a few times, of which the fastest counts, on the device
    and with the threads that the inputs and torch have. Parts of nodes, where results are kept, are foreseen
    by general rates, scaled to the node. What a replay takes besides is what a step that replays everything
    takes longer than one that keeps everything. A profile is a measurement: made twice, it differs a little,
    and plans may. It is kept with the plan that is made by it, in its JSON form, too. The net, its buffers
    and the random state are left as they were.

    Raises:
        TraceError: `net` is no net of `rg.trace` or `rg.load`.
        PlanError: `repeats` is not above 0, or an input has another shape than the graph was made for.

    Example:
        >>> import torch, revgraph as rg
        >>> net = rg.load("revnet-38", batch=2)
        >>> here = rg.profile(net, torch.randn(2, 3, 32, 32), repeats=1)
        >>> rg.plan(net.graph, "50%", cost=here).profile.name
        'measured on cpu'
    """
    check_net(net, "rg.profile")
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise PlanError(f"repeats is a whole number above 0, not {repeats!r:.60}")
    env: dict[str, Any] = {}
    read_form(net._program.arguments, bind(net._program.signature, inputs, extras), "the call", env)
    for name, thing in env.items():
        if isinstance(thing, Tensor) and name in net.graph.value:
            expected = net.graph.value[name].shape
            if tuple(thing.shape) != tuple(expected):
                raise PlanError(
                    f"input {name!r} has the shape {tuple(thing.shape)}, and the graph is made for "
                    f"{tuple(expected)}: profile the net with inputs of the graph's shapes"
                )
    devices = {each.device for each in env.values() if isinstance(each, Tensor)}
    gpus = [device for device in devices if device.type == "cuda"]
    rates = GENERIC if gpus else PROFILES["cpu-core"]
    trial = copy.deepcopy(net)  # its buffers may change
    nodes: list[tuple[str, float, float]] = []
    with (
        out_of_inference_mode(),
        random_kept(),
        torch.enable_grad(),
        torch.random.fork_rng([device.index or 0 for device in gpus]),
    ):
        forward = Forward(trial, trial._executable, {name: _cut(each) for name, each in env.items()})
        for operation in trial._executable.operations:
            if operation.node and net.graph.node[operation.node].cost.courses:
                timing = _Timing(forward, operation, gpus)
                nodes.append((operation.node, *timing.seconds(repeats)))
            forward.evaluate(operation)
            for number in operation.makes:
                forward.values[number] = _cut(forward.values[number])
            forward.free(operation)
        where = ", ".join(sorted({device.type for device in devices})) or "cpu"
        found = replace(rates, name=f"measured on {where}", nodes=tuple(nodes))
        given = map_leaves(_cut, (inputs, extras))

        def step() -> None:
            loss_of(trial(*given[0], **given[1])).backward()

        return replace(found, seconds_per_replay=_seconds_per_replay(trial, found, step, gpus, repeats))


def _seconds_per_replay(
    net: ReversibleModule,
    found: DeviceProfile,
    step: Callable[[], None],
    gpus: list[torch.device],
    repeats: int,
) -> float:
    """What a replay takes besides its node's operators, on average over all of a step that keeps nothing."""
    graph, bare = net.graph, replace(found, seconds_per_replay=0.0)
    boundaries = [node.name for node in graph.planned if node.kind == "boundary"]
    replaying = decide(graph, dict.fromkeys(boundaries, "recompute"), profile=bare)
    count = len(schedule(replaying).replays)
    if not count:
        return found.seconds_per_replay
    measured, foreseen = [], []
    for plan in (keep_all(graph, bare), replaying):
        net.plan = plan
        measured.append(min([_timed(step, gpus) for _ in range(WARMUP + repeats)][WARMUP:]))
        foreseen.append(sum(moment.nanoseconds for moment in simulate(plan)) / 1e9)
    more = (measured[1] - measured[0]) - (foreseen[1] - foreseen[0])
    return max(0.0, more / count)


class _Timing:
    """Times one operation of a net, on the values that are there now."""

    def __init__(self, forward: Forward, operation: PlannedOperation, gpus: list[torch.device]) -> None:
        self.forward = forward
        self.operation = operation
        self.gpus = gpus
        target = () if operation.target is None else (operation.target,)
        self.read = {number: forward.values[number] for number in (*operation.reads, *target)}
        found = (module._parameters.get(name) for module, name in operation.modules.parameters)
        self.parameters = [*dict.fromkeys(each for each in found if each is not None and each.requires_grad)]

    def seconds(self, repeats: int) -> tuple[float, float]:
        """The least seconds of forward and backward in so many runs, after a few to warm up."""
        runs = [self._run() for _ in range(WARMUP + repeats)][WARMUP:]
        forward, backward = zip(*runs, strict=True)
        return min(forward), min(backward)

    def _run(self) -> tuple[float, float]:
        values = self.forward.values
        leaves: list[Tensor] = list(self.parameters)
        for number, value in self.read.items():
            if isinstance(value, Tensor) and value.requires_grad:
                leaves.append(value)
                values[number] = value.clone()  # which the function may edit
        try:
            forward = _timed(lambda: self.forward.evaluate(self.operation), self.gpus)
            made = [values[number] for number in self.operation.makes]
        finally:
            for number, value in self.read.items():
                values[number] = value
        roots = [each for each in made if isinstance(each, Tensor) and each.requires_grad]
        if not roots or not leaves:
            return forward, 0.0
        gradients = [torch.ones_like(root) for root in roots]
        run = partial(torch.autograd.grad, roots, leaves, gradients, allow_unused=True)
        return forward, _timed(run, self.gpus)


def _timed(run: Callable[[], Any], gpus: list[torch.device]) -> float:
    """Seconds until the run and what it has begun on these GPUs are done."""
    for device in gpus:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    for device in gpus:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _cut(value: Any) -> Any:
    """A value without what autograd knows of how it was made."""
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value

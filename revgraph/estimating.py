"""Estimating: how much each half-step of a net adds to the errors of what it is undone from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from revgraph.engine.executable import PlannedOperation
from revgraph.engine.forward import Forward
from revgraph.engine.module import ReversibleModule, check_net
from revgraph.expressions import map_leaves
from revgraph.graph import Graph
from revgraph.isolation import model_of, untouched
from revgraph.tracing.arguments import bind, read_form

# The relative error that is put on what a half-step reads: far above rounding, far below the values.
SHAKES = {torch.float64: 1e-6, torch.float32: 1e-4}
COARSE_SHAKE = 1e-2
# What a half-step grows errors by at least, so that 0 means that nobody has measured.
LEAST_GROWTH = 1e-6


def estimate_drift(net: ReversibleModule, *inputs: Any, **extras: Any) -> Graph:
    """The net's graph, which has from now on for every coupling how inverting it rounds and grows errors.

    Each half-step is undone once from exact values and once from slightly wrong ones, on one real forward, in
    the net's mode (training or evaluation). `rg.plan(net.graph, max_drift=...)` places anchors by that. The
    net's buffers and the random state are left as they were.

    Raises:
        TraceError: `net` is no net of `rg.trace` or `rg.load`.

    Example:
        >>> import torch, revgraph as rg
        >>> net = rg.load("revnet-38", batch=2)
        >>> graph = rg.estimate_drift(net, torch.randn(2, 3, 32, 32))
        >>> all(node.cost.growth > 0 for node in graph.nodes if node.kind == "coupling")
        True
    """
    check_net(net, "rg.estimate_drift")
    found: dict[str, tuple[float, float]] = {}
    env: dict[str, Any] = {}
    read_form(net._program.arguments, bind(net._program.signature, inputs, extras), "the call", env)
    with untouched(model_of(net)), torch.no_grad():
        forward = Forward(net, net._executable, env)
        for operation in net._executable.operations:
            if operation.law is not None and operation.target is not None:
                found[operation.node] = _rounding_and_growth(net, operation, forward.values)
            forward.evaluate(operation)
            forward.free(operation)
    nodes = tuple(
        replace(node, cost=replace(node.cost, rounding=found[node.name][0], growth=found[node.name][1]))
        if node.name in found
        else node
        for node in net.graph.nodes
    )
    net.adopt(replace(net.graph, nodes=nodes))
    return net.graph


def _rounding_and_growth(
    net: ReversibleModule, operation: PlannedOperation, values: list[Any]
) -> tuple[float, float]:
    """The relative error of the target undone from exact values, and by how much errors grow in that."""
    law = operation.law
    assert law is not None
    assert operation.target is not None
    x = values[operation.target]
    given = [values[number] for number in operation.reads]
    devices = sorted({each.device.index for each in (x, *given) if isinstance(each, Tensor) and each.is_cuda})

    def undone(inputs: list[Any], y: Tensor | None) -> tuple[Tensor, Tensor]:
        """The target that follows from y (from the one of the forward, unless given), and that y."""
        with torch.random.fork_rng(devices):
            results = operation.function.run(*inputs)
        term = results[0] if results else None
        y = law.couple(net, x, term) if y is None else y
        return law.uncouple(net, y, term), y

    exact, y = undone(given, None)
    shake = SHAKES.get(x.dtype, COARSE_SHAKE)
    shaken = [map_leaves(lambda leaf: _shaken(leaf, shake), each) for each in given]
    rough, _ = undone(shaken, _shaken(y, shake))
    rounding = _error(exact, x)
    return rounding, max(LEAST_GROWTH, (_error(rough, x) - rounding) / shake)


def _shaken(leaf: Any, shake: float) -> Any:
    """A tensor with errors of up to `shake` times its largest element."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or not leaf.numel():
        return leaf
    return leaf + (2 * torch.rand_like(leaf) - 1) * (shake * leaf.abs().max())


def _error(found: Tensor, expected: Tensor) -> float:
    """The largest error over the largest element; 1 where that says nothing."""
    if not expected.numel():
        return 0.0
    scale = expected.abs().max().item()
    error = (found.double() - expected.double()).abs().max().item()
    return error / scale if scale > 0 and error < float("inf") else float(error > 0)

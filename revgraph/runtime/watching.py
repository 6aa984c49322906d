"""Watching: fingerprints of a few values, taken now and then while training, that tell how far they drift."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from revgraph.errors import DriftWarning, PlanError
from revgraph.planning.plans import Plan
from revgraph.runtime.probe import Probe

# Values that are watched, and elements of each.
VALUES, ELEMENTS = 8, 64


class DriftWatch:
    """Has every so many forwards take fingerprints of rebuilt values, spread over the plan."""

    def __init__(self, every: int, limit: float) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise PlanError(f"drift is watched every so many steps, a whole number above 0, not {every!r}")
        if not 0 < limit < float("inf"):
            raise PlanError(f"the limit of drift is a relative error above 0, as 1e-3, not {limit!r}")
        self.every = every
        self.limit = limit
        self.steps = 0

    def next(self, plan: Plan) -> Fingerprints | None:
        """A probe for the forward that begins, if it is one to watch."""
        self.steps += 1
        if (self.steps - 1) % self.every:
            return None
        rebuilt = {name: source.node for name, source in plan.sources.items() if source.how == "inverted"}
        in_order = [value.name for value in plan.graph.values if value.name in rebuilt]
        count = min(VALUES, len(in_order))
        chosen = {in_order[n * len(in_order) // count] for n in range(count)}  # the first drifts the most
        return Fingerprints({name: rebuilt[name] for name in chosen}, self.limit)


class Fingerprints(Probe):
    """Some elements of some values of one forward; warns of the first that comes back too far off."""

    def __init__(self, nodes: dict[str, str], limit: float) -> None:
        self.nodes = nodes
        self.limit = limit
        self.taken: dict[str, Tensor] = {}
        self.warned = False

    def made(self, name: str, value: Tensor) -> None:
        if name in self.nodes:
            self.taken[name] = _elements(value)

    def rebuilt(self, name: str, value: Tensor) -> None:
        before = self.taken.pop(name, None)
        if before is None or self.warned:
            return
        now = _elements(value)
        scale = before.abs().max().item() if before.numel() else 0.0
        error = (now.double() - before.double()).abs().max().item() / scale if scale else 0.0
        if not error <= self.limit:  # nan is not, either
            self.warned = True
            warnings.warn(
                f"value {name!r}, rebuilt by inverting node {self.nodes[name]!r}, is off by {error:.2g} of "
                f"its size (the limit is {self.limit:.2g}): gradients before it are wrong by about as much. "
                "Bound the drift (revgraph.estimate_drift, then revgraph.plan(net.graph, max_drift=...)), "
                "use exact mode (revgraph.trace(..., exact=True)), or keep nodes on the way.",
                DriftWarning,
                stacklevel=2,
            )


def _elements(value: Tensor) -> Tensor:
    """Some elements, evenly spread, as a copy."""
    with torch.no_grad():
        flat = value.detach().reshape(-1)
        return flat[:: max(1, flat.numel() // ELEMENTS)][:ELEMENTS].clone()

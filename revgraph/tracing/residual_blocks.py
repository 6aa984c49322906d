"""Residual blocks of an ordinary network, `x + F(x)` in runs of several, made blocks of a dual-residual
network.

`find_residuals` finds the runs in a traced graph, `SecondStreams` gives each run a second stream (Zhao et al.
2024). `conversion` passes the latter to `trace` as its `rewrite`, which calls it before couplings are looked
for.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from revgraph.coefficients import DualCoefficients
from revgraph.tracing.find_couplings.readings import ADDITIONS
from revgraph.tracing.tracer import Tracer

# What may stand between a residual addition and the end of its block, by its name in torch.
ACTIVATIONS = {"relu", "relu6", "leaky_relu", "leakyrelu", "elu", "gelu", "silu", "mish", "hardswish", "tanh"}


@dataclass(frozen=True)
class ResidualBlock:
    """One residual block as a function of `entry` alone: `exit = act(F(entry) + entry)`.

    `addition` has `skip` for an operand, which is the entry or an identity of it. `exit` is the addition, or
    what follows from it alone before the next block: an activation, a normalisation.
    """

    entry: fx.Node
    skip: fx.Node
    addition: fx.Node
    exit: fx.Node


@dataclass(frozen=True)
class _Addition:
    """An addition of a value and what was computed from it; `branch` are the nodes in between."""

    node: fx.Node
    entry: fx.Node
    skip: fx.Node
    branch: frozenset[fx.Node]


def find_residuals(
    graph: fx.Graph, fakes: Mapping[fx.Node, Any], modules: Mapping[str, nn.Module]
) -> list[list[ResidualBlock]]:
    """The runs of residual blocks in a traced graph, in order, each of two or more.

    A run ends where a value's shape changes, or where more than one value leads on. Of blocks inside
    another's F those count that form a run; single ones are left to the outer block.
    """
    search = _AdditionSearch(graph, fakes, modules)
    chosen: dict[fx.Node, _Addition] = {}
    for addition in search.additions():
        inside = [chosen[node] for node in chosen if node in addition.branch]
        if any(len(run) > 1 for run in search.runs(inside)):
            continue
        for inner in inside:
            del chosen[inner.node]
        chosen[addition.node] = addition
    return [run for run in search.runs(chosen.values()) if len(run) > 1]


@dataclass
class _AdditionSearch:
    graph: fx.Graph
    fakes: Mapping[fx.Node, Any]
    modules: Mapping[str, nn.Module]

    def __post_init__(self) -> None:
        self.order = {node: index for index, node in enumerate(self.graph.nodes)}

    def additions(self) -> Iterator[_Addition]:
        for node in self.graph.nodes:
            if node.op not in ("call_function", "call_method") or node.target not in ADDITIONS:
                continue
            if len(node.args) == 2 and not node.kwargs and len(node.all_input_nodes) == 2:
                first, second = node.all_input_nodes
                found = self._addition(node, first, second) or self._addition(node, second, first)
                if found is not None:
                    yield found

    def _addition(self, node: fx.Node, skip: fx.Node, term: fx.Node) -> _Addition | None:
        if not (self._same_form(skip, node) and self._same_form(term, node)):
            return None
        entry = skip
        while self._is_identity(entry):
            (entry,) = entry.all_input_nodes
        branch = self._between(entry, term)
        return _Addition(node, entry, skip, branch) if branch and entry.op != "get_attr" else None

    def runs(self, additions: Iterable[_Addition]) -> list[list[ResidualBlock]]:
        """These additions as blocks, in runs of those where one's exit is the next one's entry."""
        entries = {addition.entry: addition for addition in additions}
        blocks = {
            entry: ResidualBlock(entry, addition.skip, addition.node, self._exit(addition.node, entries))
            for entry, addition in entries.items()
        }
        exits = {block.exit for block in blocks.values()}
        runs: list[list[ResidualBlock]] = []
        for entry, block in blocks.items():
            if entry in exits:
                continue
            run = [block]
            while run[-1].exit in blocks:
                run.append(blocks[run[-1].exit])
            runs.append(run)
        return runs

    def _exit(self, addition: fx.Node, entries: Mapping[fx.Node, _Addition]) -> fx.Node:
        """The next block's entry if the addition leads there alone; else the activation behind it, if any."""
        node = activated = addition
        while node not in entries:
            users = list(node.users)
            if len(users) != 1 or not self._same_form(users[0], addition):
                return activated
            following = users[0]
            if node is activated and (self._is_activation(following) or following.target == "clone"):
                activated = following
            node = following
        return node

    def _between(self, entry: fx.Node, term: fx.Node) -> frozenset[fx.Node]:
        """The nodes on the ways from the entry to the term, the term included; none if there is no way."""
        earliest = self.order[entry]
        known: dict[fx.Node, bool] = {entry: True}
        pending = [term]
        while pending:
            node = pending[-1]
            if node in known:
                pending.pop()
            elif self.order[node] <= earliest:
                known[node] = False
            elif missing := [other for other in node.all_input_nodes if other not in known]:
                pending += missing
            else:
                known[node] = any(known[other] for other in node.all_input_nodes)
        return frozenset(node for node, leads in known.items() if leads and node is not entry)

    def _same_form(self, one: fx.Node, two: fx.Node) -> bool:
        first, second = self.fakes.get(one), self.fakes.get(two)
        return (
            isinstance(first, Tensor)
            and isinstance(second, Tensor)
            and first.shape == second.shape
            and first.dtype == second.dtype
            and first.is_floating_point()
        )

    def _is_identity(self, node: fx.Node) -> bool:
        return node.op == "call_module" and type(self.modules[str(node.target)]) is nn.Identity

    def _is_activation(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            name = type(self.modules[str(node.target)]).__name__.lower()
        else:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return name in ACTIVATIONS


@dataclass(frozen=True)
class SecondStreams:
    """Rewrites a traced graph, with the coefficients at `path` in the model.

    A run of blocks `x' = H(x)` becomes `x' = H(x; alpha) + y`, `y' = beta * x` (Zhao et al. 2024), where
    alpha multiplies the identity that H adds. H may be any function of x, so that what follows the addition
    inside a block, such as a ReLU, stays inside. Each run begins with y = 0.
    """

    path: str
    coefficients: DualCoefficients

    def __call__(self, tracer: Tracer, graph: fx.Graph) -> set[fx.Node]:
        """Rewrite the graph; returns the nodes that lie on streams.

        Only now do the coefficients enter the model: a forward over all children must not have met them.
        """
        tracer.root.add_module(self.path, self.coefficients)
        modules = dict(tracer.root.named_modules(remove_duplicate=False))
        streams: set[fx.Node] = set()
        for run in find_residuals(graph, tracer.fakes, modules):
            with graph.inserting_before(run[0].exit):
                y = graph.call_function(torch.zeros_like, (run[0].entry,))
            self._describe(tracer, y, run[0].entry, run[0].exit)
            streams |= {y, *(block.exit for block in run)}
            for block, following in zip(run, [*run[1:], None], strict=True):
                self._scale_identity(tracer, graph, block)
                self._add(tracer, graph, block, y)
                if following is not None:
                    with graph.inserting_after(block.exit):
                        y = graph.call_module(self.path, (block.entry,))
                    self._describe(tracer, y, block.entry, block.exit)
        return streams

    def _scale_identity(self, tracer: Tracer, graph: fx.Graph, block: ResidualBlock) -> None:
        """`F(x) + x` becomes `F(x) + alpha * x`."""
        with graph.inserting_before(block.addition):
            alpha = graph.get_attr(f"{self.path}.alpha")
            scaled = graph.call_function(operator.mul, (block.skip, alpha))
        tracer.fakes[alpha] = tracer.fakes[block.entry].new_empty(())
        tracer.where[alpha] = tracer.where.get(block.addition, "")
        self._describe(tracer, scaled, block.entry, block.addition)
        block.addition.args = tuple(scaled if arg is block.skip else arg for arg in block.addition.args)

    def _add(self, tracer: Tracer, graph: fx.Graph, block: ResidualBlock, y: fx.Node) -> None:
        """The exit's own call moves to a node before it, so that what reads the exit now reads the sum."""
        end = block.exit
        with graph.inserting_before(end):
            whole = graph.node_copy(end, lambda node: node)
        self._describe(tracer, whole, end, end)
        end.op, end.target, end.args, end.kwargs = "call_function", operator.add, (y, whole), {}
        end.name = "block"

    def _describe(self, tracer: Tracer, node: fx.Node, form: fx.Node, place: fx.Node) -> None:
        fake: Tensor = tracer.fakes[form]
        tracer.fakes[node] = fake.new_empty(fake.shape)
        tracer.where[node] = tracer.where.get(place, "")
        tracer.scope_of[node] = tracer.scope_of.get(place, "")

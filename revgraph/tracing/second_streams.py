"""Second streams: residual blocks of a traced graph turned into blocks of a dual-residual network."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from revgraph.coefficients import DualCoefficients
from revgraph.tracing.residuals import Block, find_residuals
from revgraph.tracing.tracer import Tracer


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
        for run in find_residuals(graph, tracer.shadows, modules):
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

    def _scale_identity(self, tracer: Tracer, graph: fx.Graph, block: Block) -> None:
        """`F(x) + x` becomes `F(x) + alpha * x`."""
        with graph.inserting_before(block.addition):
            alpha = graph.get_attr(f"{self.path}.alpha")
            scaled = graph.call_function(operator.mul, (block.skip, alpha))
        tracer.shadows[alpha] = tracer.shadows[block.entry].new_empty(())
        tracer.where[alpha] = tracer.where.get(block.addition, "")
        self._describe(tracer, scaled, block.entry, block.addition)
        block.addition.args = tuple(scaled if arg is block.skip else arg for arg in block.addition.args)

    def _add(self, tracer: Tracer, graph: fx.Graph, block: Block, y: fx.Node) -> None:
        """The exit's own call moves to a node before it, so that what reads the exit now reads the sum."""
        end = block.exit
        with graph.inserting_before(end):
            whole = graph.node_copy(end, lambda node: node)
        self._describe(tracer, whole, end, end)
        end.op, end.target, end.args, end.kwargs = "call_function", operator.add, (y, whole), {}
        end.name = "block"

    def _describe(self, tracer: Tracer, node: fx.Node, form: fx.Node, place: fx.Node) -> None:
        shadow: Tensor = tracer.shadows[form]
        tracer.shadows[node] = shadow.new_empty(shadow.shape)
        tracer.where[node] = tracer.where.get(place, "")
        tracer.scope_of[node] = tracer.scope_of.get(place, "")

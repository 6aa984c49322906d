"""Finding the residual blocks of an ordinary network: additions `x + F(x)`, in runs of several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from revgraph.tracing.readings import ADDITIONS

# What may stand between a residual addition and the end of its block, by its name in torch.
ACTIVATIONS = {"relu", "relu6", "leaky_relu", "leakyrelu", "elu", "gelu", "silu", "mish", "hardswish", "tanh"}


@dataclass(frozen=True)
class Block:
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
    graph: fx.Graph, shadows: Mapping[fx.Node, Any], modules: Mapping[str, nn.Module]
) -> list[list[Block]]:
    """The runs of residual blocks in a traced graph, in order, each of two or more.

    A run ends where a value's shape changes, or where more than one value leads on. Of blocks inside
    another's F those count that form a run; single ones are left to the outer block.
    """
    search = _Search(graph, shadows, modules)
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
class _Search:
    graph: fx.Graph
    shadows: Mapping[fx.Node, Any]
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

    def runs(self, additions: Iterable[_Addition]) -> list[list[Block]]:
        """These additions as blocks, in runs of those where one's exit is the next one's entry."""
        entries = {addition.entry: addition for addition in additions}
        blocks = {
            entry: Block(entry, addition.skip, addition.node, self._exit(addition.node, entries))
            for entry, addition in entries.items()
        }
        exits = {block.exit for block in blocks.values()}
        runs: list[list[Block]] = []
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
        first, second = self.shadows.get(one), self.shadows.get(two)
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

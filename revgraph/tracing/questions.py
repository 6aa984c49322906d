"""Questions of the inputs alone: guards of a graph that can be asked before anything of it has run.

A plain number by which the code goes one way or another (`if step > 100`, `weights[step]`, `int(scale)`) is
held to its answer by a `guard` in the graph, and so is a size of an input. Asked beforehand, another answer
is another form of call, which is traced and kept as others are. The others, of what the graph has computed,
fail in the middle of a run: then the net is put back to where it was (`goes_on`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from revgraph.expressions import Call
from revgraph.program import Operation
from revgraph.rearrangements import Joined, Reshaped, Stacked, Transposed
from revgraph.tracing.proxies import guard
from revgraph.tracing.structures import check_structure
from revgraph.tracing.wiring.slices import cut_up

ASKING = (guard, check_structure, cut_up)
UNDOES_VIEWS = (Joined, Stacked, Reshaped, Transposed)


@dataclass(frozen=True)
class Questions:
    """The operations to ask before a run, in order; whether the graph asks of what it computes, too."""

    operations: Sequence[Operation]
    goes_on: bool

    @classmethod
    def of(cls, operations: Sequence[Operation], inputs: Iterable[str]) -> Questions:
        """Those of a graph with these inputs: each kind once, with the operations that they need."""
        known = {name: name for name in inputs}
        seen: dict[str, Operation] = {}
        goes_on = False
        for each in operations:
            if not _is_plain(each) or not all(name in known for name in each.reads):
                goes_on = goes_on or _asks(each)
                continue
            reads = tuple(known[name] for name in each.reads)
            look = repr((reads, [_look(call) for call in each.expression.calls]))
            first = seen.setdefault(look, each)
            known.update(zip(each.makes, first.makes, strict=True))
        needed: set[str] = set()
        found: list[Operation] = []
        for each in reversed(seen.values()):
            if _asks(each) or not needed.isdisjoint(each.makes):
                needed.update(known[name] for name in each.reads)
                reads = tuple(known[name] for name in each.reads)
                found.insert(0, Operation("", each.expression, reads, each.makes))
        return cls(found, goes_on)

    def ask(self, root: nn.Module, given: Mapping[str, Any]) -> None:
        """Ask them.

        Raises:
            OtherForm: an answer is another one than in the trace.
        """
        values = dict(given)
        for each in self.operations:
            results = each.expression.run(root, [values[name] for name in each.reads])
            values.update(zip(each.makes, results, strict=True))


def _is_plain(operation: Operation) -> bool:
    """Whether an operation makes no more than numbers or views, and can be run at any time."""
    if operation.node and not isinstance(operation.rearrangement, UNDOES_VIEWS):
        return False
    return not any(call.kind == "module" or call.target is cut_up for call in operation.expression.calls)


def _asks(operation: Operation) -> bool:
    return any(call.target in ASKING for call in operation.expression.calls)


def _look(call: Call) -> Any:
    """Equal for calls that ask the same, wherever they stand in the code."""
    args = call.args[:-1] if call.target is guard else call.args
    return call.kind, call.target, args, call.kwargs, call.result

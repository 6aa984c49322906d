"""Questions of the inputs alone: guards of a graph that can be asked before anything of it has run.

A plain number by which the code goes one way or another (`if step > 100`, `weights[step]`, `int(scale)`) is
held to its answer by a `guard` in the graph, and so is a size of an input. Asked beforehand, another answer
is another form of call, which is traced and kept as others are. A guard that fails in the middle of a run is
an error, for by then buffers may have moved and numbers been drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from revgraph.expressions import Call
from revgraph.program import Operation
from revgraph.tracing.proxies import guard


def questions_of(operations: Sequence[Operation], inputs: Iterable[str]) -> list[Operation]:
    """The operations that ask something of the inputs alone, with those that they need, each kind once."""
    known = {name: name for name in inputs}
    seen: dict[str, Operation] = {}
    for each in operations:
        if each.node or not all(name in known for name in each.reads):
            continue
        if any(call.kind == "module" for call in each.expression.calls):
            continue
        reads = tuple(known[name] for name in each.reads)
        first = seen.setdefault(repr((reads, [_look(call) for call in each.expression.calls])), each)
        known.update(zip(each.makes, first.makes, strict=True))
    needed: set[str] = set()
    found: list[Operation] = []
    for each in reversed(seen.values()):
        if any(call.target is guard for call in each.expression.calls) or not needed.isdisjoint(each.makes):
            needed.update(known[name] for name in each.reads)
            found.insert(0, each)
    return [
        Operation("", each.expression, tuple(known[name] for name in each.reads), each.makes)
        for each in found
    ]


def ask(questions: Iterable[Operation], root: nn.Module, given: Mapping[str, Any]) -> None:
    """Ask them.

    Raises:
        OtherForm: an answer is another one than in the trace.
    """
    values = dict(given)
    for each in questions:
        results = each.expression.run(root, [values[name] for name in each.reads])
        values.update(zip(each.makes, results, strict=True))


def _look(call: Call) -> Any:
    """Equal for calls that ask the same, wherever they stand in the code."""
    args = call.args[:-1] if call.target is guard else call.args
    return call.kind, call.target, args, call.kwargs, call.result

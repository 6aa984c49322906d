"""A script: a program with a plan worked into it, ready to run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from revgraph.expressions import Expression, leaves, module_at
from revgraph.graph import Graph
from revgraph.planning.plans import Plan
from revgraph.planning.sources import needs
from revgraph.planning.uses import clients_of, uses_of
from revgraph.program import CouplingLaw, Law, Named, Operation, Program, Rearrangement
from revgraph.streams import streams_of

GIVES = ("rewired", "wired", "recomputed")


@dataclass(frozen=True, slots=True)
class Step:
    """One operation under its plan.

    `decision` is "keep", "invert", "recompute", or "wire" for what is never dropped. `needs` are the values a
    replay reads; `tracked` those it makes that any replay asks for. `gives` says in which ways of `GIVES` it
    serves replays besides its own. `frees` are the names that nothing later reads. `held_from`, `drops` and
    `results` are what the plan says of the node. `undoes_input` is its target if that is the caller's: it is
    rebuilt, though nothing reads it, to show how far the reconstruction has drifted by then. `begins` are
    values that streams begin with.
    """

    index: int
    node: str
    where: str
    decision: str
    expression: Expression
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    tensors: tuple[str, ...]
    law: Law | None
    target: str | None
    rearrangement: Rearrangement | None
    needs: tuple[str, ...]
    tracked: tuple[str, ...]
    stored: tuple[str, ...]
    gives: tuple[str, ...]
    frees: tuple[str, ...]
    modules: tuple[str, ...]
    owners: tuple[str, ...]
    held_from: str
    drops: frozenset[str]
    results: tuple[int, ...]
    undoes_input: str | None
    begins: tuple[str, ...]

    def describe(self) -> str:
        """The node, and where it is declared."""
        return f"node {self.node!r}" + (f" ({self.where})" if self.where else "")


@dataclass(frozen=True, slots=True)
class Script:
    """Steps in order, and the caller's inputs that replays read.

    `begun_inputs` are those that streams begin with. `clients` are, for each value that may be read more
    often than `uses` counts (others are derived from it that are rerun, or dropped and derived again), the
    values derived from it. `drops` are the values to drop after stages, by step and latest first. `drifts`
    counts, for each step, the replays that gave other values than the forward and yet the same ones twice.
    """

    steps: tuple[Step, ...]
    plan: Plan
    clients: Mapping[str, tuple[str, ...]]
    drops: tuple[tuple[int, frozenset[str]], ...]
    tracked_inputs: tuple[str, ...]
    begun_inputs: tuple[str, ...]
    drifts: Counter[int] = field(default_factory=Counter)
    _uses: dict[frozenset[str], dict[str, int]] = field(default_factory=dict)

    def uses(self, silent: frozenset[str]) -> dict[str, int]:
        """How often replays read each value in a backward pass, where `silent` nodes saved nothing."""
        if silent not in self._uses:
            plan = self.plan
            self._uses[silent] = dict(uses_of(plan.graph, plan.decisions, plan.sources, silent))
        return self._uses[silent]


def write_script(program: Program, plan: Plan) -> Script:
    """The script of a program under a plan for its graph."""
    graph = program.graph
    last = {name: index for index, op in enumerate(program.operations) for name in _all_reads(op)}
    unread = {
        index: tuple(name for name in op.makes if name not in last)
        for index, op in enumerate(program.operations)
    }
    frees: dict[int, list[str]] = {index: list(names) for index, names in unread.items()}
    for name, index in last.items():
        frees[index].append(name)
    stored = set(plan.stored) | set(graph.inputs)
    results = _result_names(program)
    begins = set(streams_of(program).beginnings)
    serving = {(source.how, source.node) for source in plan.sources.values()}
    steps = tuple(
        _step(
            graph,
            plan,
            op,
            index,
            stored,
            serving,
            tuple(name for name in frees[index] if name not in results),
            begins,
        )
        for index, op in enumerate(program.operations)
    )
    return Script(
        steps=steps,
        plan=plan,
        clients=clients_of(graph, plan.sources, plan.drops),
        drops=tuple((step.index, step.drops) for step in reversed(steps) if step.drops),
        tracked_inputs=tuple(name for name in graph.inputs if name in plan.sources),
        begun_inputs=tuple(name for name in graph.inputs if name in begins),
    )


def modules_of(net: nn.Module, step: Step) -> list[nn.Module]:
    """Every module that a step calls, with submodules, and those whose own attributes it reads, once each."""
    found = [module_at(net, path) if path else net for path in step.owners]
    for path in step.modules:
        _collect(module_at(net, path), found)
    return list(dict.fromkeys(found)) if len(step.modules) > 1 or step.owners else found


def _collect(module: nn.Module, found: list[nn.Module]) -> None:
    found.append(module)
    for child in module._modules.values():
        if child is not None:
            _collect(child, found)


def _step(
    graph: Graph,
    plan: Plan,
    op: Operation,
    index: int,
    stored: set[str],
    serving: set[tuple[str, str]],
    frees: tuple[str, ...],
    begins: set[str],
) -> Step:
    node = graph.node.get(op.node)
    decision = plan.decisions.get(op.node, "wire")
    return Step(
        index=index,
        node=op.node,
        where=node.where if node is not None else "",
        decision=decision,
        expression=op.expression,
        reads=op.reads,
        makes=op.makes,
        tensors=node.inputs if node is not None else (),
        law=op.law,
        target=op.target,
        rearrangement=op.rearrangement,
        needs=needs(node, plan.decisions[op.node]) if node is not None and op.node in plan.decisions else (),
        tracked=tuple(name for name in op.makes if name in plan.sources),
        stored=tuple(name for name in op.makes if name in stored),
        gives=tuple(way for way in GIVES if (way, op.node) in serving),
        frees=frees,
        modules=op.expression.module_paths,
        owners=_owners(op),
        held_from=plan.holds.get(op.node, ""),
        drops=frozenset(plan.drops.get(op.node, ())),
        results=tuple(plan.results.get(op.node, ())),
        undoes_input=op.target if decision == "invert" and op.target in graph.inputs else None,
        begins=tuple(name for name in op.makes if name in begins),
    )


def _all_reads(op: Operation) -> tuple[str, ...]:
    return op.reads if op.target is None else (*op.reads, op.target)


def _owners(op: Operation) -> tuple[str, ...]:
    owners = [path.rpartition(".")[0] for path in op.expression.attribute_paths]
    if isinstance(op.law, CouplingLaw):
        owners.append(op.law.path)
    return tuple(dict.fromkeys(owners))


def _result_names(program: Program) -> set[str]:
    return {leaf.name for leaf in leaves(program.results) if isinstance(leaf, Named)}

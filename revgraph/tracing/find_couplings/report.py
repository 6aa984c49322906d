"""The report: what a trace made of a model's sums, couplings and modules, and why not more.

They are the last lines of `print(net.graph)`. A sum is explained after the search: what would have had to be
otherwise for it to be a coupling. Coupling modules that ended as boundaries are warned of, for whoever wrote
one expects it to be inverted.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from revgraph.couplings import Boundary, Coupling
from revgraph.graph import Graph
from revgraph.joint_bijections import Bijection
from revgraph.tracing.find_couplings.half_steps import HalfStep
from revgraph.tracing.tracer import Tracer

SUMS: frozenset[Any] = frozenset(
    (operator.add, operator.sub, torch.add, torch.sub, torch.subtract, "add", "sub", "subtract")
)
# Sums beyond these are counted and not explained; a module is large from this share of all parameters on.
MOST_EXPLAINED, LARGE = 200, 0.2
LONGEST, MOST_NAMED = 100, 5

GAINS_NOTHING = "no stream goes through it, so that it would gain nothing"
NO_FORM = "neither operand has the sum's shape and dtype, so that none could be given back"
OWN = "what is added is computed from the other operand (a residual branch): keep them as two streams"
OUT_OF_PLACE = (
    "what it adds cannot be computed where it stands: modules that stay whole are in the way, or random "
    "numbers would be drawn in another order"
)
FIXED = "one operand is a parameter, a buffer or a constant"


@dataclass
class CouplingReport:
    """What is known by now of a model's sums, and of coupling modules that became boundaries."""

    couplings: int = 0
    inside: int = 0
    reasons: dict[str, list[str]] = field(default_factory=dict)
    boundaries: dict[str, str] = field(default_factory=dict)
    unexplained: int = 0

    def lines(self, graph: Graph, tracer: Tracer) -> tuple[str, ...]:
        """The findings as text."""
        lost = sum(map(len, self.reasons.values())) + self.unexplained
        total, lines = self.couplings + self.inside + lost, list[str]()
        if total:
            parts = [f"{self.couplings} {'is a coupling' if self.couplings == 1 else 'are couplings'}"]
            parts += [f"{self.inside} inside the functions of couplings"] if self.inside else []
            parts += [f"{lost} {'is none' if lost == 1 else 'are none'}"] if lost else []
            found = "all couplings" if total == self.couplings > 1 else ", ".join(parts)
            lines.append(f"{total} {'sum' if total == 1 else 'sums'} found: {found}")
        for reason, places in self.reasons.items():
            count = Counter(places)
            named = ", ".join(
                f"{place} ({n} times)" if n > 1 else place for place, n in list(count.items())[:3]
            )
            more = f" and {len(count) - 3} more lines" if len(count) > 3 else ""
            lines.append(f"  not {named}{more}: {reason}")
        lines += [f"no coupling: {name}: {reason}" for name, reason in self.boundaries.items()]
        whole = [f"whole: {name}: {reason}" for name, reason in whole_modules(graph, tracer).items()]
        lines += whole[:MOST_NAMED]
        lines += [f"whole: {len(whole) - MOST_NAMED} more modules"] if len(whole) > MOST_NAMED else []
        lines += [
            f"read by torch.export: {_spoken(path, tracer)}: {_why_exported(reason)}"
            for path, reason in tracer.open_exports().items()
        ]
        return tuple(lines)

    def give_up(self, place: str) -> None:
        """Note that the sum in this place, counted as a coupling, is none after all."""
        self.couplings -= 1
        self.reasons.setdefault(OUT_OF_PLACE, []).append(place)

    def warnings(self) -> Sequence[str]:
        return [
            f"coupling {name} is a boundary: {reason}. It is kept or recomputed, and never inverted."
            for name, reason in self.boundaries.items()
        ]


def explain_sums(
    graph: fx.Graph,
    fakes: Mapping[fx.Node, Any],
    where: Mapping[fx.Node, str],
    found: Mapping[fx.Node, HalfStep],
    streams: Set[fx.Node],
) -> CouplingReport:
    """The sums of a graph whose half-steps are `found`: which are couplings, and why others are not."""
    findings = CouplingReport()
    inside = {node for each in found.values() for node in (*each.region, *each.spine)}
    order = {node: index for index, node in enumerate(graph.nodes)}
    passed = found.keys() | streams
    for node in graph.nodes:
        if node in found:
            findings.couplings += 1
        elif not _is_sum(node, fakes):
            continue
        elif node in inside:
            findings.inside += 1
        elif sum(map(len, findings.reasons.values())) >= MOST_EXPLAINED:
            findings.unexplained += 1
        else:
            reason = _reason(node, fakes, order, passed)
            place = where.get(node, "") or node.name
            findings.reasons.setdefault(reason, []).append(place)
    return findings


def whole_modules(graph: Graph, tracer: Tracer) -> dict[str, str]:
    """The large modules that are one boundary each, with the reason."""
    modules = dict(tracer.root.named_modules(remove_duplicate=False))
    total = _total(tracer)
    whole: dict[str, str] = {}
    for node in graph.nodes:
        module = modules.get(node.module) if node.kind == "boundary" and node.module else None
        if module is None or isinstance(module, (Coupling, Bijection)):
            continue
        share = _share(module, total)
        parts = sum(bool(each._parameters) for each in module.modules())
        lost = [
            path for path, each in module.named_modules() if path and isinstance(each, (Coupling, Bijection))
        ]
        if (share < LARGE or parts < 2) and not lost:
            continue
        reason = _why_whole(node.module, module, tracer)
        held = f", with {len(lost)} couplings in it" if lost else ""
        name = f"{node.module or 'the model'} ({type(module).__name__}, {share:.0%} of the parameters{held})"
        whole[name] = reason
    return whole


def _total(tracer: Tracer) -> int:
    return sum(map(_size, tracer.root.parameters())) or 1


def _share(module: nn.Module, total: int) -> float:
    return sum(map(_size, module.parameters())) / total


def _spoken(path: str, tracer: Tracer) -> str:
    module = tracer.root.get_submodule(path)
    share = _share(module, _total(tracer))
    return f"{path or 'the model'} ({type(module).__name__}, {share:.0%} of the parameters)"


def _size(parameter: nn.Parameter) -> int:
    try:
        return parameter.numel()
    except ValueError:  # a lazy one has no size yet
        return 0


def _why_whole(path: str, module: nn.Module, tracer: Tracer) -> str:
    if path in tracer.opaque:
        reason = f"its forward cannot be traced ({_short(tracer.opaque[path])})"
        if path in tracer.not_exported:
            reason += f", nor read by torch.export ({_short(tracer.not_exported[path])})"
        return reason
    if isinstance(module, Boundary):
        return "it is a revgraph.Boundary"
    if type(module).__module__.startswith("torch.") and not isinstance(module, nn.Sequential):
        return "it is torch's own"
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    if any(hooks):
        return "it has hooks, which run where it is called"
    return "no coupling was found in it"


def _why_exported(reason: str) -> str:
    return (
        f"its forward cannot be traced ({_short(reason)}); shapes, dtypes and flags are those of the example"
    )


def _short(reason: str) -> str:
    text = " ".join(reason.split())
    return text if len(text) < LONGEST else text[:LONGEST] + "..."


def _is_sum(node: fx.Node, fakes: Mapping[fx.Node, Any]) -> bool:
    """Whether a call adds or subtracts two tensors of numbers."""
    if node.op not in ("call_function", "call_method") or node.target not in SUMS:
        return False
    return len(node.args) == 2 and all(_has_numbers(each, fakes) for each in (*node.args, node))


def _has_numbers(thing: Any, fakes: Mapping[fx.Node, Any]) -> bool:
    fake = fakes.get(thing) if isinstance(thing, fx.Node) else thing
    return isinstance(fake, Tensor) and (fake.is_floating_point() or fake.is_complex())


def _reason(
    node: fx.Node, fakes: Mapping[fx.Node, Any], order: Mapping[fx.Node, int], passed: Set[fx.Node]
) -> str:
    """Why a sum is no coupling."""
    made = fakes[node]
    operands: list[Any] = list(node.args)
    if not all(isinstance(each, fx.Node) and each.op != "get_attr" for each in operands):
        return FIXED
    alike = [each for each in operands if _form(fakes[each]) == _form(made)]
    if not alike:
        return NO_FORM
    for target in alike:
        term = operands[1] if target is operands[0] else operands[0]
        if term is target or _depends(term, target, order, passed):
            return OWN
    return GAINS_NOTHING


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _depends(node: fx.Node, target: fx.Node, order: Mapping[fx.Node, int], passed: Set[fx.Node]) -> bool:
    """Whether a node is computed from the target by anything but couplings."""
    seen: set[fx.Node] = set()
    pending: list[fx.Node] = [node]
    while pending:
        each = pending.pop()
        if each is target:
            return True
        if each not in seen and each not in passed and order[each] > order[target]:
            seen.add(each)
            pending += each.all_input_nodes
    return False


def why_no_half_steps(node: fx.Node, module: Coupling, fakes: Mapping[fx.Node, Any]) -> str:
    """Why a call of a coupling module cannot be undone; "" where it can."""
    args: list[Any] = list(node.args)
    if not all(isinstance(each, fx.Node) and each.op != "get_attr" for each in args):
        return "a stream is a parameter, a buffer or a constant, which nothing takes back"
    if len(set(args)) < len(args):
        return "one value is given as two streams, so that its function reads what it changes"
    made: Iterable[Any] = fakes[node] if len(module.names) > 1 else (fakes[node],)
    for before, after in zip((fakes[each] for each in args), made, strict=False):
        if before.shape != after.shape:
            return (
                f"it makes {list(after.shape)} of a target of shape {list(before.shape)}, which cannot be "
                "given back: expand the target first"
            )
    return ""

"""Labels: what is written on a node and on a value, and the longer text a reader gets on request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from revgraph.drawing.lettering import TIMES, Line, clean, shorten
from revgraph.drawing.stages import short_names, stage_names
from revgraph.drawing.subject import Subject
from revgraph.graph import Node, Value
from revgraph.planning.plans import human_bytes

NAME_SIZE = 12.0
SMALL_SIZE = 10.0
ROOM = 168.0
"""Points that a line on a node may take before it is shortened."""


def node_lines(subject: Subject) -> Mapping[str, tuple[Line, ...]]:
    """The lines written on each node."""
    names = short_names(subject)
    stems = {name: block.stem for block in subject.blocks for name in block.nodes}
    stages = stage_names(subject.full)
    lines: dict[str, tuple[Line, ...]] = {}
    for node in subject.graph.nodes:
        expression = node.computes
        if node.name in stems:
            expression = re.sub(re.escape(stems[node.name]) + r"\d+", stems[node.name] + "*", expression)
        if node.name in stages:
            expression = re.sub(r"(?<![\w.])" + re.escape(stages[node.name] + "."), "", expression)
        lines[node.name] = _lines(subject, node, names[node.name], expression)
    return lines


def value_lines(subject: Subject) -> Mapping[str, Line]:
    """The tags: with a plan, of the values it stores; without, of the values that come in a new shape.

    Values that are views of one storage are held once: the first one's tag says
    how many bytes, the others' that they share them.
    """
    tags: dict[str, Line] = {}
    storages: set[str] = set()
    for value in subject.graph.values:
        if value.name in subject.stored:
            held = amount(subject.stored[value.name])
            tags[value.name] = Line(
                f"stored {held}" if held else "stored, shared", "stored-ink", SMALL_SIZE, bold=True
            )
        elif subject.plan is None and _tagged(subject, value):
            held = ", shared" if value.storage in storages else f", {human_bytes(value.nbytes)}"
            tags[value.name] = Line(shorten(shape(value) + held, ROOM, SMALL_SIZE), "muted", SMALL_SIZE)
            storages.add(value.storage)
    return tags


def amount(sizes: Sequence[int]) -> str:
    """Bytes of one thing or of several, drawn once; nothing where there are none.

    >>> amount([2048]), amount([2048, 2048]), amount([2048, 0, 1024])
    ('2.0 KiB', '2 \N{MULTIPLICATION SIGN} 2.0 KiB', '3.0 KiB in 2 of 3')
    """
    held = [size for size in sizes if size]
    if not held:
        return ""
    if len(held) < len(sizes) or len(set(held)) > 1:
        return f"{human_bytes(sum(held))} in {len(held)} of {len(sizes)}"
    return (f"{len(held)} {TIMES} " if len(held) > 1 else "") + human_bytes(held[0])


def shape(value: Value) -> str:
    """The value's shape, its sizes between times signs."""
    return TIMES.join(map(str, value.shape)) or "scalar"


def role(subject: Subject, node: Node) -> str:
    """The part of the palette that a node is painted in."""
    if node.kind not in ("coupling", "boundary"):
        return "plain"
    return node.kind if subject.plan is None else subject.plan.decisions[node.name]


def node_text(subject: Subject, node: Node) -> str:
    """All that is known of a node, in a sentence or two."""
    parts = [f"{node.name}: {node.kind}"]
    plan = subject.plan
    if plan is not None and node.name in plan.decisions:
        parts.append(f"{plan.decisions[node.name]}, {plan.reasons.get(node.name, 'no reason given')}")
        if plan.results.get(node.name):
            parts.append(f"keeps of its function: {kept_results(subject, node)}")
    if node.expression:
        parts.append(f"computes {node.computes}")
    if node.cost.saved_bytes:
        parts.append(f"internals {human_bytes(node.cost.saved_bytes)}")
    for name in node.outputs:
        parts.append(value_text(subject, name))
    return clean("; ".join(parts))


def value_text(subject: Subject, name: str) -> str:
    """All that is known of a value."""
    value = subject.full.value[name]
    text = f"{name}: {shape(value)} {value.dtype}, {human_bytes(value.nbytes)}"
    if value.storage != name:
        text += f", a view of {value.storage}"
    if subject.plan is not None and name in subject.plan.sources:
        source = subject.plan.sources[name]
        text += f", {source.how}" + (f" by {source.node}" if source.node else "")
    return clean(text)


def kept_results(subject: Subject, node: Node) -> str:
    """How many results of its function a node keeps from the forward, and their bytes if known."""
    assert subject.plan is not None
    count = len(subject.plan.results[node.name])
    held = amount(subject.own.get(node.name, ()))
    return ("result" if count == 1 else f"{count} results") + (f" {held}" if held else "")


def headline(subject: Subject) -> tuple[Line, ...]:
    """The drawing's title, and beneath it what matters most."""
    title = Line(subject.full.name or "graph", "ink", 15.0, bold=True)
    plan = subject.plan
    if plan is None:
        return title, Line(_counts(subject), "muted", 11.0)
    peak = f"predicted peak {human_bytes(plan.peak_bytes)}"
    at = f" ({clean(plan.peak_at)})" if plan.peak_at else ""
    ratios = f"FLOPs {TIMES}{plan.flops_ratio:.3f}, time {TIMES}{plan.time_ratio:.3f}"
    rest = f"held {human_bytes(plan.held_bytes)}, {ratios}"
    beside = f"ordinary training: peak {human_bytes(plan.ordinary_bytes)}"
    ordinary = (Line(beside, "ink", 11.0),) if plan.ordinary_bytes else ()
    return title, Line(peak + at, "ink", 11.0), *ordinary, Line(rest, "muted", 11.0)


def description(subject: Subject) -> str:
    """The drawing in words, for those who do not see it."""
    text = (
        f"A network as a graph, from its inputs at the top to its outputs at the bottom: {_counts(subject)}."
    )
    plan = subject.plan
    if plan is not None:
        decided = list(plan.decisions.values())
        each = ", ".join(f"{decided.count(word)} {word}" for word in dict.fromkeys(decided))
        text += (
            f" Its plan: {each}; predicted peak {human_bytes(plan.peak_bytes)} ({plan.peak_at}); "
            f"{human_bytes(plan.held_bytes)} held from forward to backward; {plan.flops_ratio:.3f} times the "
            f"FLOPs of ordinary autograd. Stored: {_some(plan.stored)}."
        )
    for block in subject.blocks:
        text += f" {block.first} to {block.last}: {block.count} equal blocks, drawn once."
    return clean(text)


def _lines(subject: Subject, node: Node, name: str, expression: str) -> tuple[Line, ...]:
    if node.kind in ("input", "output", "wiring"):
        return (Line(shorten(name, ROOM, SMALL_SIZE) or "(no name)", "muted", SMALL_SIZE),)
    lines = [Line(shorten(name, ROOM, NAME_SIZE, bold=True) or "(no name)", "ink", NAME_SIZE, bold=True)]
    plan = subject.plan
    if plan is None:
        if clean(expression):
            lines.append(Line(shorten(expression, ROOM, SMALL_SIZE), "muted", SMALL_SIZE))
        return tuple(lines)
    decision = plan.decisions[node.name]
    held = amount(subject.own.get(node.name, ()))
    word = f"keep {held}" if decision == "keep" and held else decision
    lines.append(Line(word, f"{decision}-line", SMALL_SIZE))
    if plan.results.get(node.name):
        lines.append(Line(f"+ {kept_results(subject, node)}", "keep-line", SMALL_SIZE, bold=True))
    elif held and decision != "keep":
        lines.append(Line(f"+ notes {held}", "keep-line", SMALL_SIZE))
    if node.name in subject.peak_nodes:
        lines.append(Line(f"peak {human_bytes(plan.peak_bytes)}", "peak", SMALL_SIZE, bold=True))
    return tuple(lines)


def _tagged(subject: Subject, value: Value) -> bool:
    before = subject.graph.producer[value.name].inputs
    new = all(subject.graph.value[name].shape != value.shape for name in before)
    return new and bool(subject.graph.readers[value.name])


def _counts(subject: Subject) -> str:
    kinds = [node.kind for node in subject.full.nodes]
    named = (("coupling", "couplings"), ("boundary", "boundaries"), ("wiring", "wirings"))
    counts = [(kinds.count(one), one, many) for one, many in named]
    return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in counts)


def _some(names: tuple[str, ...]) -> str:
    return (", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")) or "nothing"

"""Reasons: why each node of a plan is decided as it is, in words and figures."""

from __future__ import annotations

from revgraph.courses import Course, Work
from revgraph.graph import Node
from revgraph.planning.plans import TERM, Plan, human_bytes, result_name
from revgraph.planning.simulating import courses_of


def reasons_of(plan: Plan) -> dict[str, str]:
    """For every node that the plan decides on, what its decision costs and what it saves."""
    courses = courses_of(plan)
    return {node.name: _reason(plan, node, courses[node.name]) for node in plan.graph.planned}


def _reason(plan: Plan, node: Node, chosen: Course) -> str:
    keep = node.cost.courses.get("keep")
    if keep is None:
        return "without knowing what it costs, for it could not be run without values"
    internals = keep.held_bytes
    if plan.decisions[node.name] == "keep":
        if not internals:
            return "for it has no internals to save"
        return f"for its internals ({human_bytes(internals)}) fit, and it is not evaluated twice"
    held = chosen.held_bytes
    saves = f"holds {human_bytes(held)} in place of {human_bytes(internals)} of internals"
    hold = plan.holds.get(node.name)
    # A run for another node's backward makes the outputs, too, which a replay for its own does without.
    again = _again(node, chosen.replay_work if hold is None else keep.forward_work)
    back = ""
    if plan.decisions[node.name] == "invert":
        back = f"; its target {node.target!r} follows from its output"
    if hold is not None:
        back += f"; it is run again for the backward of {hold!r}, and its internals stay from then on"
    return f"which {saves} and {again}{_kept(plan, node)}{back}"


def _again(node: Node, work: Work) -> str:
    if not work.flops:
        return "computes no heavy operator again"
    share = work.flops / node.cost.flops if node.cost.flops else 1.0
    return f"computes {share:.0%} of its {node.cost.flops:,} FLOPs again"


def _kept(plan: Plan, node: Node) -> str:
    results = plan.results.get(node.name, ())
    words = [result_name(node, index) for index in results]
    words = [word if index == TERM else f"the {word}" for index, word in zip(results, words, strict=True)]
    return f", for it keeps {' and '.join(words)}" if words else ""

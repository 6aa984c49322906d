"""Plans as JSON text: written whole, with the graph that they are for, and checked when they are read.

What is written is what a plan decides, and what was predicted of it. Its schedule is made anew, and so are
the bytes and FLOPs, which are then compared with those that the text says: a text that was edited, or that
another version of revgraph wrote which predicts otherwise, is refused instead of run.

The graph stands in the text, each distinct course once, so that a plan can be read, drawn and simulated
without the network. Whether it fits a network is asked when it is given to one (`same_graph`).

Nodes and values are written in the graph's order, so equal plans are equal texts. Reading runs nothing from
the text: names are looked up in the graph, and every other word is one of a few.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, NoReturn, TypeVar, cast, get_args

from revgraph.errors import GraphError, PlanError
from revgraph.graph import Graph
from revgraph.planning.deciding import decide, finished
from revgraph.planning.plans import DECISIONS, CostKind, Decision, How, Plan, Source
from revgraph.planning.profiles import OVERHEADS, RATES, DeviceProfile
from revgraph.planning.same_graph import fitted
from revgraph.planning.sources import needs, rule_needs

FORMAT = 1
KEYS = (
    "revgraph_plan", "peak_bytes", "held_bytes", "ordinary_bytes", "peak_at", "flops_ratio", "time_ratio",
    "cost", "profile", "decisions", "stored", "anchors",
    "results", "holds", "drops", "sources", "reasons", "graph",
)  # fmt: skip
PREDICTED = ("peak_bytes", "held_bytes", "ordinary_bytes", "peak_at", "flops_ratio", "time_ratio")
COSTS: tuple[str, ...] = get_args(CostKind)
HOWS: tuple[str, ...] = get_args(How)

T = TypeVar("T")


def written(plan: Plan) -> str:
    """A plan as JSON text, which `read` reads back to an equal plan."""
    nodes, values = plan.graph.node, plan.graph.value
    data = {
        "revgraph_plan": FORMAT,
        "peak_bytes": plan.peak_bytes,
        "held_bytes": plan.held_bytes,
        "ordinary_bytes": plan.ordinary_bytes,
        "peak_at": plan.peak_at,
        "flops_ratio": plan.flops_ratio,
        "time_ratio": plan.time_ratio,
        "cost": plan.cost,
        "profile": plan.profile.as_json(),
        "decisions": _ordered(plan.decisions, nodes),
        "stored": plan.stored,
        "anchors": plan.anchors,
        "results": _ordered(plan.results, nodes),
        "holds": _ordered(plan.holds, nodes),
        "drops": _ordered(plan.drops, nodes),
        "sources": {
            name: [source.how, source.node] if source.node else [source.how]
            for name, source in _ordered(plan.sources, values).items()
        },
        "reasons": _ordered(plan.reasons, nodes),
        "graph": json.loads(plan.graph.to_json()),
    }
    return json.dumps(data, separators=(",", ":"))


def read(text: str, graph: Graph | None = None) -> Plan:
    """The plan that `written` wrote; for `graph`, if that is given.

    Raises:
        PlanError: the text is no such plan, the plan is not sound, its predictions are not those of its
            simulation, or it is for another graph than the one given.
    """
    try:
        data = json.loads(text, parse_constant=_no_number)
        plan = _verified(_plan(data))
    except PlanError:
        raise
    # A graph that was edited can be consistent and have costs that no node has; what that breaks is found
    # while the plan is simulated.
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, AssertionError) as error:
        raise PlanError(
            f"this is not a plan in revgraph's JSON form ({type(error).__name__}: {error!s:.300}). "
            "Write one with plan.to_json(), or with `revgraph plan NET --save FILE`."
        ) from error
    return plan if graph is None else fitted(plan, graph)


def _plan(data: Any) -> Plan:
    """The plan that JSON data says, with all names known and all decisions legal for its graph."""
    if not isinstance(data, dict) or "revgraph_plan" not in data:
        raise ValueError("it has no 'revgraph_plan', the number of the format")
    if data["revgraph_plan"] != FORMAT:
        raise PlanError(
            f"plan format {data['revgraph_plan']!r:.60} is unknown: this revgraph reads format {FORMAT}"
        )
    for key in KEYS:
        if key not in data:
            raise ValueError(f"{key!r} is missing")
    for key in data:
        if key not in KEYS:
            raise ValueError(f"a plan has no {key!r:.60}; it has {', '.join(KEYS)}")
    try:
        graph = Graph.from_json(json.dumps(data["graph"]))
    except GraphError as error:
        raise PlanError(f"the plan's own graph cannot be read: {error!s:.600}") from error
    node, value = _one_of(graph.node, "node"), _one_of(graph.value, "value")
    decisions = cast("dict[str, Decision]", _mapping(data["decisions"], node, _word(DECISIONS), "decisions"))
    for each in graph.planned:
        if each.name not in decisions:
            raise PlanError(f"the plan does not decide on {each.name!r:.60}, a {each.kind} of its graph")
    stored = _several(value)(data["stored"])
    results = _mapping(data["results"], node, _several(_index), "results")
    holds = _mapping(data["holds"], node, node, "holds")
    drops = _mapping(data["drops"], node, _several(value), "drops")
    sources = _mapping(data["sources"], value, _source, "sources")
    reruns = {source.node for source in sources.values() if source.how == "recomputed"} | holds.keys()
    _verify_sources(graph, decisions, stored, sources)
    found = decide(
        graph,
        decisions,
        stored=stored,
        reruns=sorted(reruns),
        holds=holds,
        drops=drops,
        results=results,
        profile=_profile(data["profile"]),
    )
    for name, said in {"stored": stored, "results": results, "drops": drops}.items():
        if getattr(found, name) != said:
            raise PlanError(f"the plan's {name} are not as a plan has them: in order, once each, and of use")
    return replace(
        found,
        sources=sources,
        reasons=_mapping(data["reasons"], _one_of(found.decisions, "node"), _text, "reasons"),
        anchors=_several(value)(data["anchors"]),
        peak_bytes=_count(data["peak_bytes"]),
        held_bytes=_count(data["held_bytes"]),
        peak_at=_text(data["peak_at"]),
        flops_ratio=_ratio(data["flops_ratio"]),
        ordinary_bytes=_count(data["ordinary_bytes"]),
        time_ratio=_ratio(data["time_ratio"]),
        cost=cast("CostKind", _word(COSTS)(data["cost"])),
        made="file",
    )


def _verified(plan: Plan) -> Plan:
    """The plan, whose predictions are those of its simulation, and which gives a reason for every node."""
    for name in plan.decisions:
        if name not in plan.reasons:
            raise PlanError(f"the plan gives no reason for {name!r:.60}")
    found = finished(plan)
    for name in PREDICTED:
        said, simulated = getattr(plan, name), getattr(found, name)
        if said != simulated:
            raise PlanError(
                f"the plan says {name} {said!r:.60}, and its simulation gives {simulated!r:.60}: the text "
                "was changed, or another version of revgraph wrote it. Make it again with revgraph.plan."
            )
    return found


def _verify_sources(
    graph: Graph, decisions: Mapping[str, Decision], stored: Iterable[str], sources: Mapping[str, Source]
) -> None:
    """Nothing, where all that replays ask for comes back from what is stored, by means that there are.

    The schedule follows sources from value to value, so they must not go round in a circle.
    """
    at_hand = {*stored, *graph.inputs}
    for name, source in sources.items():
        if not _is_possible(graph, decisions, at_hand, name, source):
            by = f" by {source.node!r:.60}" if source.node else ""
            raise PlanError(f"value {name!r:.60} cannot come back as the plan says: {source.how}{by}")
    done: set[str] = set()
    opened: set[str] = set()
    pending = [name for node in graph.planned for name in needs(node, decisions[node.name])]
    while pending:
        name = pending[-1]
        if name in done:
            pending.pop()
            continue
        if name not in sources:
            raise PlanError(f"the plan does not say how value {name!r:.60} comes back, which a replay reads")
        missing = [each for each in rule_needs(graph, sources[name]) if each not in done]
        if missing and name in opened:
            raise PlanError(f"value {name!r:.60} would come back from itself, by the plan's sources")
        opened.add(name)
        pending += missing
        if not missing:
            done.add(name)
    for name in sources:
        if name not in done:
            raise PlanError(f"the plan says how value {name!r:.60} comes back, and nothing asks for it")


def _is_possible(
    graph: Graph, decisions: Mapping[str, Decision], at_hand: set[str], name: str, source: Source
) -> bool:
    if source.how == "stored":
        return name in at_hand and not source.node
    node = graph.node.get(source.node)
    if node is None:
        return False
    if source.how == "inverted":
        return decisions.get(node.name) == "invert" and node.target == name
    if source.how == "recomputed":
        return decisions.get(node.name) in ("invert", "recompute") and name in node.outputs
    return node.kind == "wiring" and name in (node.inputs if source.how == "rewired" else node.outputs)


def _ordered(named: Mapping[str, T], order: Iterable[str]) -> dict[str, T]:
    return {name: named[name] for name in order if name in named}


def _mapping(item: Any, key: Callable[[Any], str], form: Callable[[Any], T], what: str) -> dict[str, T]:
    if not isinstance(item, dict):
        raise ValueError(f"{what} should be an object, not {item!r:.60}")
    return {key(name): form(each) for name, each in item.items()}


def _several(form: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    def form_of_each(item: Any) -> tuple[T, ...]:
        if not isinstance(item, list):
            raise ValueError(f"{item!r:.60} should be a list")
        return tuple(form(each) for each in item)

    return form_of_each


def _one_of(known: Mapping[str, object], what: str) -> Callable[[Any], str]:
    def name(item: Any) -> str:
        if _text(item) not in known:
            raise PlanError(f"the plan names {item!r:.60}, which is no {what} of its graph")
        return item

    return name


def _word(words: tuple[str, ...]) -> Callable[[Any], str]:
    def word(item: Any) -> str:
        if _text(item) not in words:
            raise ValueError(f"{item!r:.60} is none of {', '.join(words)}")
        return item

    return word


def _source(item: Any) -> Source:
    if not isinstance(item, list) or len(item) not in (1, 2):
        raise ValueError(f"{item!r:.60} should be a list of a source and its node")
    how = cast("How", _word(HOWS)(item[0]))
    return Source(how, *map(_text, item[1:]))


def _profile(item: Any) -> DeviceProfile:
    names = [each.name for each in fields(DeviceProfile)]
    if not isinstance(item, dict) or set(item) != set(names):
        raise ValueError(f"a device profile is an object with {', '.join(names)}, not {item!r:.60}")
    numbers = {name: _ratio(item[name]) for name in (*RATES, *OVERHEADS)}
    return DeviceProfile(name=_text(item["name"]), nodes=_several(_times)(item["nodes"]), **numbers)


def _times(item: Any) -> tuple[str, float, float]:
    if not isinstance(item, list) or len(item) != 3:
        raise ValueError(f"{item!r:.60} should be a list of a node and two times")
    return _text(item[0]), _ratio(item[1]), _ratio(item[2])


def _text(item: Any) -> str:
    if not isinstance(item, str):
        raise ValueError(f"{item!r:.60} should be text")
    item.encode()  # half of a surrogate pair, which no file can hold, is a ValueError
    return item


def _index(item: Any) -> int:
    if not isinstance(item, int) or isinstance(item, bool):
        raise ValueError(f"{item!r:.60} should be a whole number")
    return item


def _count(item: Any) -> int:
    if _index(item) < 0:
        raise ValueError(f"{item!r:.60} should be a whole number from 0")
    return item


def _ratio(item: Any) -> float:
    if isinstance(item, bool) or not isinstance(item, (int, float)):
        raise ValueError(f"{item!r:.60} should be a number")
    return float(item)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number in JSON")

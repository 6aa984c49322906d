"""The report: one HTML file in which the pictures of a plan share a cursor that steps through time."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any

from revgraph.drawing.axis import axis
from revgraph.drawing.charts import chart_frontier
from revgraph.drawing.lettering import TIMES
from revgraph.drawing.matrix import matrix
from revgraph.drawing.palette import PAINTS
from revgraph.drawing.telling import ALGORITHM, lines_of, what, why
from revgraph.drawing.timeline import timeline
from revgraph.planning.composing import compose
from revgraph.planning.plans import Plan, human_bytes

ROLES = {"ground": "ground", "ink": "ink", "muted": "muted", "edge": "stage-line", "soft": "stage"}
ACCENT = ("#0b5ba1", "#75bbff")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src '{hash}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="revgraph">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body{asking}>
<header>
<h1>{name}</h1>
<p id="headline">{headline}</p>
<p class="muted">{figures}</p>
</header>
{question}<nav aria-label="Steps">
<button id="first" title="first step (Home)">first</button>
<button id="back" title="one step back (left arrow)">back</button>
<button id="next" title="one step on (right arrow)">next</button>
<button id="last" title="last step (End)">last</button>
<button id="peak" title="the step with the most bytes (P)">peak</button>
<button id="unfold" aria-pressed="false" hidden title="draw repeated blocks one by one">unfold</button>
<input id="step" type="range" min="0" max="{last}" value="0" aria-label="step of the schedule">
<a id="count" title="a link to this step"></a>
<input id="search" type="search" list="names" placeholder="find a node" aria-label="find a node"
 title="a node's name (/)">
<datalist id="names">{options}</datalist>
<button id="help" aria-haspopup="dialog" title="the keys (?)">?</button>
<p id="keys" class="muted">{keys}; click a node to read about it</p>
<section id="found" aria-label="the node that was found" hidden>
<p id="about" aria-live="polite"></p>
<p id="goto"></p>
<button id="close" title="put it away (Escape)">close</button>
</section>
</nav>
<section id="now">
<div id="this"><h2>This step</h2>
<output aria-live="polite"><p id="what"></p><p id="why"></p></output>
<p id="live"></p><p id="parts" class="muted"></p></div>
<div><h2>Algorithm 1</h2><ol id="algorithm">{algorithm}</ol></div>
<div><h2>On the tape</h2><div id="tape"></div>
<p id="absent" class="muted">In the plan, a value that is not held at this step has a dashed border.</p></div>
</section>
<div id="panes">
<div id="plan" tabindex="0" role="region" aria-label="the plan">
{plan}
</div>
<div id="time" tabindex="0" role="region" aria-label="memory and schedule">
{timeline}
{matrix}
</div>
</div>
{frontier}<dialog id="keylist" aria-label="keys"><h2>Keys</h2><dl>{keylist}</dl>
<form method="dialog"><button>close</button></form></dialog>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


_QUESTION = """<section id="question" aria-label="a question">
<h2>Which step is the peak?</h2>
<p>Step through with the arrow keys or the slider. Stop where the most bytes are live while a step runs.</p>
<p><button id="answer">It is this step</button> <button id="reveal">Show the answer</button></p>
<p id="verdict" aria-live="polite"></p>
</section>
"""
KEYS = (
    (("←", "→"), "step", "one step back, one on"),
    (("↑", "↓"), "node", "to the node before, to the next one: past all steps of one stage"),
    (("PgUp", "PgDn"), "", "ten steps back, ten on"),
    (("Home", "End"), "", "the first step, the last"),
    (("P",), "peak", "the step with the most bytes"),
    (("/",), "find", "find a node by name"),
    (("Esc",), "", "put away what was found"),
    (("?",), "all keys", "show and hide this list"),
)
"""The keys, their word in the short list, if they are in that, and what they do."""

OTHERS = {
    "input": "an input, which the caller holds",
    "output": "what the network returns",
    "wiring": "wiring, which only rearranges values, and is undone or redone where they are asked for",
}
"""What is told of nodes on which a plan does not decide."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What is shown beside a plan: measured bytes by step, a budget in bytes, a frontier and other plans.

    With `question`, the report asks for the peak before it marks it.
    """

    measured: Sequence[tuple[int, int]] = ()
    budget: int | None = None
    frontier: Sequence[Plan] = ()
    beside: Mapping[str, Plan] = field(default_factory=dict)
    question: bool = False


def report(plan: Plan, drawings: Sequence[str], shown: Mapping[str, str], extras: Extras) -> str:
    """The page of a plan, around its finished drawing; it asks nothing of any other place.

    Where the first drawing is folded, a second may have all nodes; `shown` leads from every node to the one
    that is drawn for it in the first.

    Raises:
        PlanError: the plan cannot be carried out.
        ModuleNotFoundError: there is a frontier to show, and matplotlib is not installed.
    """
    composed = compose(plan)
    steps = [each.moment.step for each in composed]
    on = axis(steps)
    peaks = [each.moment.peak_bytes for each in composed]
    data = {
        "axis": {"left": on.left, "step": on.step},
        "peak": peaks.index(max(peaks)) if peaks else 0,
        "shown": {name: drawn for name, drawn in shown.items() if name != drawn},
        "explain": {
            node.name: plan.explain(node.name)
            if node.name in plan.decisions
            else f"{node.name}: {OTHERS.get(node.kind, node.kind)}"
            for node in plan.graph.nodes
        },
        "steps": [
            {
                "action": each.moment.step.action,
                "node": each.moment.step.node,
                "stage": each.moment.step.stage,
                "makes": each.moment.step.makes,
                "stores": each.moment.step.stores,
                "frees": each.moment.step.frees,
                "live": each.moment.live_bytes,
                "peak": each.moment.peak_bytes,
                "parts": each.parts,
                "what": what(each.moment.step),
                "why": why(each.moment.step, plan),
                "lines": lines_of(each.moment.step, plan),
            }
            for each in composed
        ],
    }
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _PAGE.format(
        hash=f"sha256-{digest}",
        title=escape(f"revgraph: plan of {plan.graph.name or 'a network'}"),
        style=_colours() + _asset("report.css"),
        name=escape(plan.graph.name or "a network"),
        headline=escape(_headline(plan)),
        figures=escape(_figures(plan)),
        question=_QUESTION if extras.question else "",
        asking=' class="asking"' if extras.question else "",
        keys=", ".join(f"{_caps(keys)} {escape(word)}" for keys, word, _ in KEYS if word),
        keylist="".join(f"<dt>{_caps(keys)}</dt><dd>{escape(does)}</dd>" for keys, _, does in KEYS),
        last=len(composed) - 1,
        options="".join(f'<option value="{escape(name)}">' for name in plan.graph.node),
        algorithm="".join(f'<li value="{number}">{text}</li>' for number, text in ALGORITHM.items()),
        plan="\n".join(
            f"<div{' hidden' if place else ''}>\n{drawing}</div>" for place, drawing in enumerate(drawings)
        ),
        timeline=timeline(plan, composed, extras.budget, extras.measured),
        matrix=matrix(plan, steps),
        frontier=_frontier(plan, extras),
        data=_embedded(data),
        script=script,
    )


def _frontier(plan: Plan, extras: Extras) -> str:
    """The chart of the frontier, with its style kept to itself, for it would hold for other pictures too."""
    if not extras.frontier:
        return ""
    marked = {"this plan": plan, **extras.beside}
    chart = chart_frontier(extras.frontier, ".svg", extras.budget, marked).decode()
    chart = chart[chart.index("<svg") :].replace("*{", "#frontier *{")
    return f'<section id="frontier">\n<h2>Other budgets</h2>\n{chart}</section>\n'


def _headline(plan: Plan) -> str:
    """The peak beside that of ordinary training."""
    peak = f"Peak {human_bytes(plan.peak_bytes)}"
    if not plan.ordinary_bytes:
        return peak
    share = plan.peak_bytes / plan.ordinary_bytes
    return f"{peak}, {share:.0%} of ordinary training's {human_bytes(plan.ordinary_bytes)}."


def _figures(plan: Plan) -> str:
    return (
        f"Held between forward and backward {human_bytes(plan.held_bytes)}, FLOPs {TIMES}"
        f"{plan.flops_ratio:.3f} of ordinary training, estimated time {TIMES}{plan.time_ratio:.3f} "
        f"({plan.profile.name})."
    )


def _caps(keys: Sequence[str]) -> str:
    return " ".join(f"<kbd>{escape(key)}</kbd>" for key in keys)


def _colours() -> str:
    light = "".join(f"--{name}: {PAINTS[role].light}; " for name, role in ROLES.items())
    dark = "".join(f"--{name}: {PAINTS[role].dark}; " for name, role in ROLES.items())
    return (
        f":root {{ {light}--accent: {ACCENT[0]}; }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark}--accent: {ACCENT[1]}; }} }}\n"
    )


def _asset(name: str) -> str:
    return (files("revgraph.drawing") / "assets" / name).read_text(encoding="utf-8")


def _embedded(data: Any) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")

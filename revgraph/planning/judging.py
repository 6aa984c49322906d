"""Judging: what a solution of a planning problem really holds and computes again, as its plan is simulated.

The numbers of a problem are a model. A formulation may think of more ways to bring a value back than a plan
has (there each value has one source), and foresees peaks only roughly. So searches go by the schedule and the
simulator alone: a solution is what its plan does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from revgraph.errors import PlanError
from revgraph.planning.deciding import captured_ahead, captured_nodes, check_reruns, decide, unweighed
from revgraph.planning.plans import Decision, Plan, Source
from revgraph.planning.posing import Posed
from revgraph.planning.schedule import EVALUATING, schedule
from revgraph.planning.simulating import weigh
from revgraph.planning.solver.problem import Solution
from revgraph.planning.sources import sources_from


class Judge:
    """Judges the solutions of a posed problem by their plans, in which `anchors` are stored on top.

    Called with a solution, it gives the one that is carried out, without what would be done to no purpose,
    and with its true peak, cost and runs; None where no plan does that.
    """

    def __init__(self, posed: Posed, anchors: Iterable[str] = ()) -> None:
        self.posed = posed
        self.graph = posed.graph
        self.anchors = tuple(anchors)
        self.values = [value.name for value in posed.graph.values]
        self.nodes = [item.name for item in posed.problem.items]
        items = posed.problem.items
        self.decisions: list[list[Decision]] = [[option.name for option in item.options] for item in items]
        self.results = [[option.results for option in item.options] for item in items]
        # Solutions that come to the same once they are tidied are simulated once.
        self._judged: dict[Hashable, Solution] = {}
        self._asked: tuple[object, ...] = ()
        self._answer: dict[str, Source] = {}

    def __call__(self, solution: Solution) -> Solution | None:
        try:
            tidied = self._tidied(solution)
            key = tidied.decisions()
            if key not in self._judged:
                self._judged[key] = self._simulated(tidied)
            return self._judged[key]
        except PlanError:
            return None

    @property
    def count(self) -> int:
        """How many plans were simulated."""
        return len(self._judged)

    def plan(self, solution: Solution) -> Plan:
        """The plan of a solution that was judged."""
        names, nodes = self.values, self.nodes
        return decide(
            self.graph,
            self._decided(solution.options, solution.reruns),
            stored=[*self.anchors, *(names[value] for value in solution.stored)],
            reruns=[nodes[k] for k in sorted(solution.reruns)],
            **self._besides(solution),
            profile=self.posed.profile,
        ).noted(cost=self.posed.cost)

    def solution(self, plan: Plan) -> Solution:
        """What a plan decides, as a solution.

        Where the problem has left an option out, for another one is as good in every way, the one that holds
        least stands in.
        """
        values = {name: value for value, name in enumerate(self.values)}
        options: list[int] = []
        for item, courses in zip(self.posed.problem.items, self.posed.courses, strict=True):
            held = [(each.held_bytes, len(each.pinned), each.cost) for each in item.options]
            wanted = plan.decided(item.name)
            stand_in = held.index(min(held)) if held else -1
            options.append(courses.index(wanted) if wanted in courses else stand_in)
        return Solution(tuple(options), frozenset(values[name] for name in plan.stored))

    def _tidied(self, solution: Solution) -> Solution:
        """The solution without stored values that nothing reads, and reruns and captures that never happen.

        What is stored stays to the last stage that reads it, and the caller's inputs stay: only what was
        rebuilt drops.

        Raises:
            PlanError: a value is asked for that is neither stored nor can be rebuilt.
        """
        names, nodes = self.values, self.nodes
        stored = [*self.anchors, *(names[value] for value in sorted(solution.stored))]
        decided = plain = self._decided(solution.options, ())
        reruns = solution.reruns
        while True:
            sources = self._sources(decided, stored, [nodes[k] for k in sorted(reruns)])
            run = {source.node for source in sources.values() if source.how == "recomputed"}
            again = frozenset(k for k in reruns if nodes[k] in run)
            then = self._decided(solution.options, again) if again else plain
            if again == reruns and then == decided:
                break
            decided, reruns = then, again
        kept = frozenset(value for value in solution.stored if names[value] in sources)
        stays = {*kept, *self.posed.problem.given}
        drops = {j: tuple(v for v in values if v not in stays) for j, values in solution.drops.items()}
        return replace(
            solution,
            stored=kept,
            reruns=reruns,
            holds={
                k: j
                for k, j in solution.holds.items()
                if k in reruns and j not in solution.holds and decided[nodes[j]] != "keep"
            },
            drops={j: values for j, values in drops.items() if values},
        )

    def _simulated(self, solution: Solution) -> Solution:
        """The solution with what the simulation of its plan says."""
        plan = self._planned(solution)
        captured = captured_nodes(plan)
        if any(self.nodes[k] not in captured for k in solution.holds):
            solution = replace(solution, holds=self._moved(solution, plan))
            plan = self._planned(solution)
            captured = captured_nodes(plan)
            holds = {k: j for k, j in solution.holds.items() if self.nodes[k] in captured}
            if len(holds) < len(solution.holds):
                solution = replace(solution, holds=holds)
                plan = self._planned(solution)
        plan = captured_ahead(plan)
        weight, plain = weigh(plan), self.posed.problem.plain_cost
        spent = weight.nanoseconds if self.posed.cost == "time" else weight.flops
        runs = Counter([each.node for each in schedule(plan) if each.action in EVALUATING])
        return replace(
            solution,
            peak_bytes=weight.peak_bytes,
            cost=spent - plain if plain else 0,
            repeats=runs.total() - len(runs),
            most_runs=max(runs.values(), default=0),
        )

    def _moved(self, solution: Solution, plan: Plan) -> dict[int, int]:
        """The captures of a solution that happen, and those that do not in the stage where their rerun is.

        What a programme runs again in one stage comes later where a value that it passes on is stored.
        """
        captured, places = captured_nodes(plan), {name: k for k, name in enumerate(self.nodes)}
        holds = {k: j for k, j in solution.holds.items() if self.nodes[k] in captured}
        stage = -1
        for each in reversed(schedule(plan)):
            k = places.get(each.node, -1)
            if each.action == "backward":
                stage = k if plan.decided(each.node) != "keep" and k not in holds else -1
            elif each.action == "rerun" and k in solution.holds and k not in holds and k < stage:
                holds[k] = stage
        return {k: j for k, j in holds.items() if j not in holds}

    def _planned(self, solution: Solution) -> Plan:
        """The plan of a solution, before it is simulated."""
        names, nodes, given = self.values, self.nodes, self.graph.inputs
        decided, reruns = (
            self._decided(solution.options, solution.reruns),
            [nodes[k] for k in sorted(solution.reruns)],
        )
        values = {*self.anchors, *(names[value] for value in solution.stored)}.difference(given)
        stored = tuple([name for name in names if name in values])
        besides = self._besides(solution)
        check_reruns(self.graph, decided, reruns, besides["holds"])
        sources = self._sources(decided, stored, reruns)
        return unweighed(self.graph, decided, stored, sources, **besides, profile=self.posed.profile)

    def _sources(
        self, decided: Mapping[str, Decision], stored: Sequence[str], reruns: Sequence[str]
    ) -> dict[str, Source]:
        """How all that is asked for comes back; the last answer is kept, for most is asked more than once."""
        asked = decided, tuple(stored), reruns
        if asked != self._asked:
            self._answer = sources_from(self.graph, decided, stored, reruns)
            self._asked = asked
        return self._answer

    def _besides(self, solution: Solution) -> dict[str, Any]:
        """What a plan decides besides, in the words of `decide`."""
        names, nodes = self.values, self.nodes
        return {
            "holds": {nodes[k]: nodes[j] for k, j in solution.holds.items()},
            "drops": {nodes[j]: [names[v] for v in values] for j, values in solution.drops.items()},
            "results": {
                nodes[k]: self.results[k][option]
                for k, option in enumerate(solution.options)
                if option >= 0 and self.results[k][option] and k not in solution.reruns
            },
        }

    def _decided(self, options: Sequence[int], reruns: Collection[int]) -> dict[str, Decision]:
        """The decision on every node.

        The engine runs nothing again that it keeps, and courses of reruns are known without kept results.
        """
        decided: dict[str, Decision] = {
            node: decisions[option]
            for node, decisions, option in zip(self.nodes, self.decisions, options, strict=True)
            if option >= 0
        }
        for k in reruns:
            if decided[self.nodes[k]] == "keep":
                decided[self.nodes[k]] = "recompute"
        return decided

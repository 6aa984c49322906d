"""A plan: for every node whether it is kept, inverted or recomputed, and what is stored for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args

from revgraph.courses import Course
from revgraph.displays import ShownAsPicture
from revgraph.errors import PlanError
from revgraph.graph import Graph, Node
from revgraph.planning.profiles import GENERIC, DeviceProfile

if TYPE_CHECKING:
    from revgraph.reporting import Report

Decision = Literal["keep", "invert", "recompute"]
DECISIONS: tuple[str, ...] = get_args(Decision)
CostKind = Literal["time", "flops"]
How = Literal["stored", "inverted", "rewired", "wired", "recomputed"]
Made = Literal["by hand", "file", "default", "least", "budget", "frontier"]
UNKNOWN = Course()
TERM = -1  # among kept results: what a coupling's function returns


@dataclass(frozen=True, slots=True)
class Source:
    """How a value comes back in the backward pass.

    `how` is "stored", "inverted" (by the coupling `node`, of which it is the target), "rewired" (by the
    wiring `node`, from its outputs), "wired" (by the wiring `node`, from its inputs) or "recomputed" (by
    running `node` again).
    """

    how: How
    node: str = ""


def course_of(node: Node, name: str) -> Course:
    """A node's course of this name, `invert+0+2`: without the kept results where that with them is not known,
    and empty where that is not known either."""
    courses = node.cost.courses
    return courses.get(name) or courses.get(name.split("+")[0], UNKNOWN)


@dataclass(frozen=True)
class Plan(ShownAsPicture):
    """Decisions for the couplings and boundaries of a graph, with what they cost.

    `stored` are the values held from forward to backward; `sources` says of every value that the backward
    pass asks for how it comes back. Bytes are activation bytes: live storages without parameters, buffers,
    gradients of parameters and the caller's inputs. `flops_ratio` is a training step's FLOPs over those of
    ordinary autograd, `time_ratio` its seconds over ordinary autograd's by the device profile, and
    `ordinary_bytes` what ordinary autograd takes at its peak. `cost` is what the plan was chosen to make
    small: "time" or "flops".

    The stage of a node is the time in backward when it is replayed, and what that asks for is derived.
    `holds` names for a node that is rerun the later node in whose stage its rerun captures its internals,
    so that it needs no replay of its own. `drops` names for a node the rebuilt values that go at the end of
    its stage although they are asked for again: they are then derived again. `results` gives for an inverted
    or recomputed node the results of its function that are kept from the forward: those of heavy operators
    by index, in the order they run, and `TERM` for a coupling's term.

    `anchors` are stored besides, because someone asked for it or to bound the drift.

    `made` says how the plan came about: by hand, from a file, or as the best that a search found, by default,
    for the least peak, within the budget of `budget_bytes`, or on the frontier. Plans compare without it.

    `schedules` are those made of it (`schedule`).
    """

    graph: Graph
    decisions: Mapping[str, Decision]
    stored: tuple[str, ...]
    sources: Mapping[str, Source] = field(repr=False)
    reasons: Mapping[str, str] = field(repr=False)
    peak_bytes: int
    held_bytes: int
    peak_at: str
    flops_ratio: float
    results: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    holds: Mapping[str, str] = field(default_factory=dict)
    drops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    anchors: tuple[str, ...] = ()
    time_ratio: float = 1.0
    ordinary_bytes: int = 0
    cost: CostKind = "time"
    profile: DeviceProfile = GENERIC
    made: Made = field(default="by hand", compare=False)
    budget_bytes: int | None = field(default=None, compare=False)
    schedules: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def noted(self, **facts: Any) -> Plan:
        """The same plan, with its schedules, and other facts about it (bytes, FLOPs, reasons)."""
        noted = replace(self, **facts)
        noted.schedules.update(self.schedules)
        return noted

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: without what is made again when it is needed."""
        return {name: fact for name, fact in self.__dict__.items() if name != "courses"} | {"schedules": {}}

    @cached_property
    def courses(self) -> Mapping[str, Course]:
        """For each node how its memory runs as it is decided; empty where that is not known."""
        decisions, results = self.decisions, self.results
        return {
            node.name: course_of(
                node, self.decided(node.name) if node.name in results else decisions.get(node.name, "keep")
            )
            for node in self.graph.nodes
        }

    def decided(self, name: str) -> str:
        """A node's decision, and the results that it keeps besides: `invert+0+2`."""
        decision, results = self.decisions.get(name, "keep"), self.results.get(name)
        return decision + "".join(f"+{index}" for index in results) if results else decision

    @property
    def cost_ratio(self) -> float:
        """What the plan was chosen to make small, over ordinary autograd's."""
        return self.time_ratio if self.cost == "time" else self.flops_ratio

    @property
    def anchor_bytes(self) -> int:
        """The bytes that anchors hold from forward to backward."""
        values = [self.graph.value[name] for name in self.anchors if name in self.stored]
        return sum({value.storage: value.nbytes for value in values}.values())

    def to_json(self) -> str:
        """This plan as JSON text, which `Plan.from_json` reads back to an equal plan; its graph is in it.

        Equal plans give the same text. It has what a plan decides and predicts, on one line and without
        spaces; `revgraph.planning.files` says how.

        Example:
            >>> import torch, revgraph as rg
            >>> net = rg.trace(torch.nn.Linear(4, 4), torch.ones(2, 4))
            >>> rg.Plan.from_json(net.plan.to_json()) == net.plan
            True
        """
        from revgraph.planning.files import written  # it needs the schedule, which needs this class

        return written(self)

    @staticmethod
    def from_json(text: str, graph: Graph | None = None) -> Plan:
        """The plan that `Plan.to_json` wrote; for `graph`, if that is given, otherwise for the one it has.

        All is checked, and the plan simulated: what it decides fits its graph, and it takes the bytes and
        FLOPs that it says. Reading runs no code from the text.

        Raises:
            PlanError: the text is no such plan, the plan is not sound, or it is for another graph than the
                one given; the text says in what they differ.
        """
        from revgraph.planning.files import read  # as above

        return read(text, graph)

    def explain(self, name: str) -> str:
        """Why the node `name` is decided as it is, in a sentence.

        Raises:
            PlanError: the plan decides on no such node.
        """
        if name not in self.decisions:
            raise PlanError(f"the plan decides on no node {name!r}; it decides on {_some(self.decisions)}")
        return f"{name}: {self.decisions[name]}, {self.reasons[name]}"

    def summary(self) -> str:
        """The plan in at most ten lines of at most 80 columns.

        They say what ordinary training takes at its peak, what this plan takes and where, what is held
        between forward and backward, FLOPs and estimated time, and how the plan came about.
        """
        from revgraph.planning.wording import summary  # it needs the simulator, which needs this class

        return summary(self)

    def table(self) -> Report:
        """All of the plan, a row for every node, with what it holds and the reason for its decision.

        Its column of held bytes adds up to `held_bytes`. `print` shows it as text, notebooks as a table.
        """
        return import_module("revgraph.reporting").report(self)  # which stands above plans

    def __str__(self) -> str:
        from revgraph.planning.wording import text  # as above

        return text(self)


def result_name(node: Node, index: int) -> str:
    """What a kept result of a node's function is called: `output of conv2`."""
    if index == TERM:
        return "what its function returns"
    names = node.cost.heavy_names
    return f"output of {names[index]}" if index < len(names) else f"heavy result {index}"


def human_bytes(count: int) -> str:
    """Bytes as a person reads them, in binary units: 12 B, 3.4 KiB, 5.6 MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _some(names: Mapping[str, object]) -> str:
    first = list(names)[:3]
    return ", ".join(map(repr, first)) + (", ..." if len(names) > 3 else "")

"""The schedule: a training step under a plan as a flat list of instructions.

This is the one executable form of a plan. The engine carries its instructions out, the simulator weighs them,
drawings and reports show them. Nothing else decides what comes back when, or when it goes.

How it is made, in two passes:

1. *Order.* The backward visits nodes last to first. A node that is inverted or recomputed, and whose forward
   saved anything, has a stage: the time when it is replayed. What its replay reads is derived first, from
   stored values and from what earlier stages left, each value by its source (`plan.sources`). In this pass a
   value that has been rebuilt stays at hand until the plan drops it.
2. *Liveness.* Backwards over that list: a value lives from the instruction that makes it to its last reader
   before it is made again, and goes there. What nobody reads is not made at all. Stored values go likewise.

So lifetimes are computed and not counted while the backward runs: a rebuilt value is held for exactly as long
as somebody reads it, unless the plan drops it and derives it again.

What a forward really saved can differ from what costs foresaw (other flags, kept results, masks that
autograd dropped at once), so `silent`, the nodes of which nothing will be asked, is an argument. `gone` are
inputs that the caller has let go of since, where inversion gives them back.

Autograd may ask for less than a whole pass (`autograd.grad` of a few leaves, one output of several). Then
stages are passed over, and `Schedule.catch_up` has the instructions that must run nevertheless: those whose
values or captured tensors live beyond the gap, and what these read. At every position of a pass the same
values are at hand, however it got there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal, NamedTuple, overload

from revgraph.errors import PlanError
from revgraph.graph import Graph, Node
from revgraph.planning.plans import Plan, Source
from revgraph.planning.sources import Rules, sources_from

Action = Literal[
    "run",
    "free",
    "loss",
    "invert",
    "recompute",
    "recompute_and_keep",
    "invert_again",
    "rerun",
    "invert_wiring",
    "wire",
    "backward",
]
EVALUATING: frozenset[Action] = frozenset(
    ("run", "invert", "recompute", "recompute_and_keep", "invert_again", "rerun")
)
"""Actions in which a node's function runs."""
CAPTURING: frozenset[Action] = frozenset(("invert", "recompute", "recompute_and_keep"))
"""Actions that capture what the node's own backward will ask for."""
REPLAYING: frozenset[Action] = EVALUATING.difference(("run",)).union(("invert_wiring", "wire"))
"""Actions that are carried out again in the backward pass."""


class Instruction(NamedTuple):
    """One thing that happens in a training step.

    `run` is a node's forward, `free` lets go of what was stored for nothing, `loss` is the loss and the turn,
    `backward` a node's backward. In between, `invert` and `recompute` replay a node for its own backward:
    they capture its internals, and inversion gives the target back. `recompute_and_keep` runs a node for its
    outputs and captures besides; `invert_again` and `rerun` give values without capturing; `invert_wiring`
    and `wire` run a wiring backwards or forwards.

    `stage` is the node whose backward asks for it. `reads` must be in memory, `makes` are rebuilt values that
    are held on, `stores` are held from forward to backward, `frees` go afterwards. It is `exact` where all
    that its function reads is the forward's to the bit, and not what inversion gave back.
    """

    action: Action
    node: str
    stage: str = ""
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    frees: tuple[str, ...] = ()
    exact: bool = True


class _Index(NamedTuple):
    captured_at: dict[str, int]
    begins: list[int]
    last_reads: list[list[int]]


class Schedule(Sequence[Instruction]):
    """The instructions of a step, and where the backward's are.

    What is told of the backward is worked out when it is first asked for: a plan that is only weighed asks
    for none of it.
    """

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self.instructions = tuple(instructions)

    @cached_property
    def replays(self) -> tuple[Instruction, ...]:
        """What is carried out again in the backward pass, in order; a position counts them."""
        return tuple(each for each in self.instructions if each.action in REPLAYING)

    @cached_property
    def last_at(self) -> dict[str, int]:
        """For a node the position of its last replay."""
        return {each.node: position for position, each in enumerate(self.replays)}

    @property
    def captured_at(self) -> dict[str, int]:
        """For a node the position that captures it."""
        return self._index.captured_at

    @property
    def begins(self) -> list[int]:
        """For each position that of its stage's first instruction."""
        return self._index.begins

    @overload
    def __getitem__(self, index: int) -> Instruction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Instruction, ...]: ...
    def __getitem__(self, index: int | slice) -> Instruction | tuple[Instruction, ...]:
        return self.instructions[index]

    def __len__(self) -> int:
        return len(self.instructions)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions)

    def catch_up(self, start: int, place: int) -> dict[int, bool]:
        """The positions to run on the way from `start` to `place`, and whether to capture in each.

        They bring to hand all that the schedule has there afterwards: what they make or capture is read
        later, or what they make by one another.
        """
        captures = {
            position: position == place or self._asked_until(position) > place
            for position in range(start, place + 1)
        }
        targets = {
            position
            for position, captured in captures.items()
            if captured or any(last > place for last in self._index.last_reads[position])
        }
        return {position: captures[position] for position in self._needed(start, targets)[0]}

    def needed(self, start: int, place: int) -> list[int]:
        """The positions from `start` on that lead to this one, and itself."""
        return self._needed(start, {place})[0]

    def taken_by_skipped(self, start: int, place: int) -> frozenset[str]:
        """The values at `start` that stages need which are passed over on the way to `place`."""
        skipped = {
            position
            for position in range(start, place)
            if self.replays[position].action in CAPTURING and self._asked_until(position) <= place
        }
        return self._needed(start, skipped)[1]

    def _asked_until(self, position: int) -> int:
        """The position by which what is captured here has been asked for; -1 where nothing is captured."""
        each = self.replays[position]
        reads = self._index.last_reads[position]
        return reads[-1] if each.action in CAPTURING and len(reads) > len(each.makes) else -1

    def _needed(self, start: int, targets: set[int]) -> tuple[list[int], frozenset[str]]:
        """Dead-code elimination: the target positions, and before them what makes the values they read.

        Besides, the values that these take from before `start`.
        """
        found: list[int] = []
        wanted: set[str] = set()
        for position in range(max(targets, default=start - 1), start - 1, -1):
            each = self.replays[position]
            if position in targets or not wanted.isdisjoint(each.makes):
                found.append(position)
                wanted.difference_update(each.makes)
                wanted.update(each.reads)
        return found[::-1], frozenset(wanted)

    @cached_property
    def _index(self) -> _Index:
        """The replays by number, and when what each makes or captures is read for the last time."""
        made_at: dict[str, tuple[int, int]] = {}  # for a value, the position that made it and its place there
        captured_at: dict[str, int] = {}
        begins: list[int] = []
        last_reads: list[list[int]] = []
        stage, begin = "", 0
        for each in self.instructions:
            if each.action == "backward":  # captured tensors are asked for until here
                at = captured_at.get(each.node)
                if at is not None:
                    last_reads[at].append(len(last_reads))
            if each.action not in REPLAYING:
                continue
            position = len(last_reads)
            for name in each.reads:
                if name in made_at:
                    made, place = made_at[name]
                    last_reads[made][place] = position
            if each.stage != stage:
                stage, begin = each.stage, position
            begins.append(begin)
            if each.action in CAPTURING:
                captured_at[each.node] = position
            made_at.update((name, (position, place)) for place, name in enumerate(each.makes))
            last_reads.append([-1] * len(each.makes))
        return _Index(captured_at, begins, last_reads)


def schedule(
    plan: Plan, silent: Collection[str] | None = None, gone: Collection[str] = frozenset()
) -> Schedule:
    """The schedule of one whole training step under a plan, made once and kept with it.

    Of the nodes `silent` autograd asks for nothing; without them, of those that costs say so of. Of the
    inputs `gone` the caller has let go; they are rebuilt like any other value.
    """
    if silent is None and not gone:  # what is asked for most, without looking at every node each time
        usual = plan.schedules.get(None)
        if usual is None:
            usual = plan.schedules[None] = schedule(plan, silent_nodes(plan))
        return usual
    key = frozenset(silent_nodes(plan) if silent is None else silent), frozenset(gone)
    made = plan.schedules.get(key)
    if made is None:
        silent, gone = key
        sources = sources_without(plan, gone) if gone else plan.sources
        backward = _Backward(plan, silent, sources, gone).instructions()
        made = plan.schedules[key] = Schedule(_with_lifetimes(plan, _forward(plan), backward))
    return made


def silent_nodes(plan: Plan) -> frozenset[str]:
    """The nodes that save nothing under this plan, as far as costs are known."""
    return frozenset(
        node.name for node in plan.graph.planned if node.cost.courses and not plan.courses[node.name].replays
    )


def sources_without(plan: Plan, gone: Collection[str]) -> dict[str, Source]:
    """The plan's sources where these inputs are not at hand.

    Raises:
        PlanError: something cannot come back without them.
    """
    reruns = {source.node for source in plan.sources.values() if source.how == "recomputed"}
    return sources_from(plan.graph, plan.decisions, plan.stored, sorted(reruns), gone)


def lent_inputs(plan: Plan) -> frozenset[str]:
    """The caller's inputs that need not be held for the backward: inversion gives them back, all of them at
    once, for whatever reads them."""
    graph = plan.graph
    given = {graph.node[name].target for name, decision in plan.decisions.items() if decision == "invert"}
    for node in reversed(graph.nodes):
        if node.kind == "wiring" and given.issuperset(node.outputs):
            given.update(node.inputs)
    found = frozenset(name for name in graph.inputs if name in given and name in plan.sources)
    if found:
        try:
            sources_without(plan, found)
        except PlanError:
            return frozenset()
    return found


def _held(plan: Plan) -> list[str]:
    """The stored values that are held on to: those of which something may be asked."""
    return [name for name in plan.stored if name in plan.sources]


class _Steps:
    """The instructions of a graph that no plan changes, but for what they store, made once for a graph and
    kept with it; `inputs` are those of each node, each once."""

    def __init__(self, graph: Graph) -> None:
        self.backwards = [node for node in reversed(graph.nodes) if node.kind not in ("input", "output")]
        self.inputs = {node.name: tuple(dict.fromkeys(node.inputs)) for node in graph.nodes}
        self.backward = {node.name: Instruction("backward", node.name, node.name) for node in graph.nodes}
        self.forward = [
            Instruction("run", node.name, reads=node.inputs, makes=node.outputs, frees=node.cost.frees)
            for node in reversed(self.backwards)
        ]
        self.run_at = {name: place for place, each in enumerate(self.forward) for name in each.makes}
        if graph.loss is not None:
            name = graph.loss.name
            self.forward.append(Instruction("loss", name, reads=graph.loss.inputs))
            self.forward.append(Instruction("backward", name, name))


def _forward(plan: Plan) -> list[Instruction]:
    steps, stored = plan.graph.worked_out(_Steps), set(_held(plan))
    found = list(steps.forward)
    for place in {steps.run_at[name] for name in stored if name in steps.run_at}:
        stores = tuple([name for name in found[place].makes if name in stored])
        found[place] = found[place]._replace(stores=stores)
    return found


# A replay before it is known what of all that it could give is read, and what is read for the last time: the
# fields of an instruction, with the values that it gives in place of `makes`.
_Replay = tuple[Action, str, str, tuple[str, ...], Sequence[str], bool]


class _Backward:
    """The order of the backward pass: what each stage does, with all that it could give."""

    def __init__(
        self, plan: Plan, silent: Collection[str], sources: Mapping[str, Source], gone: Collection[str]
    ) -> None:
        self.plan = plan
        self.graph: Graph = plan.graph
        self.silent = silent
        self.maker = {
            name: ("own" if source.how == "inverted" else source.how, self.graph.node[source.node])
            for name, source in sources.items()
            if source.how != "stored"
        }
        self.needs = plan.graph.worked_out(Rules).needs
        self.steps = plan.graph.worked_out(_Steps)
        self.fixed = {*plan.stored, *self.graph.inputs}.difference(gone)
        self.at_hand = set(self.fixed)  # with what has been rebuilt
        self.inexact: set[str] = set()
        self.captured: set[str] = set()
        self.found: list[_Replay | Instruction] = []

    def instructions(self) -> list[_Replay | Instruction]:
        plan, steps = self.plan, self.steps
        for node in steps.backwards:
            name = node.name
            decision = plan.decisions.get(name, "keep")
            if decision != "keep" and name not in self.captured and name not in self.silent:
                self._stage(node)
            if name in plan.drops:
                self.at_hand.difference_update(set(plan.drops[name]) - self.fixed)
            if plan.courses[name].backward or not node.cost.courses:
                self.found.append(steps.backward[name])
        return self.found

    def _stage(self, stage: Node) -> None:
        """Lines 1 to 3 of Algorithm 1 for one node, made general: derive what its replay reads, replay it."""
        at_hand, inexact, decisions = self.at_hand, self.inexact, self.plan.decisions
        needs, inputs, maker = self.needs, self.steps.inputs, self.maker
        pending = [("own", stage)]
        while pending:  # a list instead of recursion: a chain of ten thousand is as good as one of ten
            how, node = pending[-1]
            gives: Sequence[str] = node.outputs
            if how == "own":
                decision = decisions[node.name]
                reads = needs[decision][node.name]
                gives = (node.target,) if decision == "invert" and node.target is not None else ()
            elif how == "rewired":
                reads, gives = node.outputs, inputs[node.name]
            else:
                reads = inputs[node.name]
            if not at_hand.issuperset(reads):
                pending += [maker[name] for name in reads if name not in at_hand]
                continue
            pending.pop()
            if not at_hand.isdisjoint(gives):
                gives = [name for name in gives if name not in at_hand]
            if not gives and not (how == "own" and node is stage):
                continue  # two values asked for it, and it ran for the first
            action = self._action(how, node, stage)
            exact = inexact.isdisjoint(node.others if node.kind == "coupling" else reads)
            if action in ("invert", "invert_again") or not inexact.isdisjoint(reads):
                inexact.update(gives)
            else:
                inexact.difference_update(gives)
            at_hand.update(gives)
            self.found.append((action, node.name, stage.name, reads, gives, exact))

    def _action(self, how: str, node: Node, stage: Node) -> Action:
        if how == "rewired":
            return "invert_wiring"
        if how == "wired":
            return "wire"
        captured = node.name in self.captured or node.name in self.silent
        if how == "own":
            if captured:
                return "invert_again"
            self.captured.add(node.name)
            return "invert" if self.plan.decisions[node.name] == "invert" else "recompute"
        if captured or self.plan.holds.get(node.name) != stage.name:
            return "rerun"
        self.captured.add(node.name)
        return "recompute_and_keep"


def _with_lifetimes(
    plan: Plan, forward: list[Instruction], backward: list[_Replay | Instruction]
) -> list[Instruction]:
    """The instructions, each making what is read later and freeing what is not, and a `free` at the turn."""
    live: set[str] = set()
    done: list[Instruction] = []
    for each in reversed(backward):
        if isinstance(each, Instruction):
            done.append(each)
            continue
        action, node, stage, reads, gives, exact = each
        makes = tuple([name for name in gives if name in live])
        frees = () if live.issuperset(reads) else [name for name in reads if name not in live]
        live.difference_update(makes)
        live.update(reads)
        done.append(Instruction(action, node, stage, reads, makes, (), tuple(dict.fromkeys(frees)), exact))
    done.extend(reversed(forward))
    done.reverse()
    if unread := tuple([name for name in _held(plan) if name not in live]):
        turn = next((place for place, each in enumerate(done) if each.action != "run"), len(done))
        done.insert(turn, Instruction("free", "", frees=unread))
    return done

"""The tape: what one forward of a net leaves for its backward passes.

It is held alive by autograd's graph alone, through the handles that stand in for saved tensors, and refers to
none of them, so that everything goes with the graph, without a garbage collector.

What it holds: stored values by number; the evaluation of every node that took the careful path, the facts of
every one that took the lean path; and where a backward pass begins. That is position 0 of the schedule until
a pass has freed the graph. A pass that frees lets stored values go as the schedule does, and moves the
beginning to where it stopped. Stages that it passed over, which autograd may visit another time, are left as
`Region`s with the values that they need.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from revgraph.engine._torch import current_graph_task, frame_callback
from revgraph.engine.contexts import Ambient, uncompiled
from revgraph.engine.observer import Observer
from revgraph.engine.random_state import RandomStream, devices_of, turn
from revgraph.engine.replay import BackwardPass, Lent, Region, current_pass
from revgraph.engine.saved_tensors import stale_parameter
from revgraph.engine.sharding import NO_SHARDS, shards_of
from revgraph.engine.state import version_of
from revgraph.errors import ReplayError
from revgraph.turns import RunningAgain

if TYPE_CHECKING:
    from revgraph.engine.executable import Executable, Replays
    from revgraph.engine.lean import LeanNodes
    from revgraph.engine.node_evaluation import NodeEvaluation
    from revgraph.engine.selective_recompute import KeptCalls
    from revgraph.planning.plans import Plan

Parameter = nn.Parameter


class Tape:
    """What one forward leaves for its backward passes.

    `compares` says whether replays are compared with it by samples. It `is_shielded` where the forward is not
    to leave a mark on buffers.
    """

    __slots__ = (
        "__weakref__",
        "ambient",
        "compares",
        "ends",
        "evaluations",
        "executable",
        "flags",
        "forms",
        "hooks",
        "is_shielded",
        "kept",
        "latest",
        "lean",
        "lean_nodes",
        "lent",
        "lock",
        "net",
        "noted",
        "observer",
        "parameters",
        "passes",
        "position",
        "probed",
        "probes",
        "random",
        "regions",
        "replays",
        "running",
        "shapes",
        "shards",
        "spans_devices",
        "starts",
        "strides",
        "turn",
        "values",
        "versions",
    )

    replays: Replays

    def __init__(
        self,
        net: nn.Module,
        executable: Executable,
        inputs: list[Any],
        observer: Observer | None,
        compares: bool,
        is_shielded: bool = False,
    ) -> None:
        self.net = net
        self.executable = executable
        self.observer = observer
        self.compares = compares
        self.is_shielded = is_shielded
        self.ambient = Ambient()
        self.random = RandomStream(devices_of(inputs))
        self.turn = turn(inputs)
        self.running = RunningAgain()
        self.spans_devices = executable.spans_devices()
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.shards = shards_of(net) if distributed else NO_SHARDS
        self.lock = threading.RLock()
        # Values by number: stored ones with their versions, and what wiring and layouts need of the others.
        self.values: list[Tensor | None] = [None] * executable.size
        self.versions: list[int] = [-1] * executable.size
        self.strides: dict[int, tuple[int, ...]] = {}
        self.shapes: dict[int, tuple[list[torch.Size], dict[int, Any]]] = {}
        self.lent: dict[int, Lent] = {}
        self.probes = executable.probes()
        self.probed = self.probes.read()
        # Nodes by the index of their operation: those on the careful path, and the facts of those on the
        # lean.
        self.evaluations: dict[int, NodeEvaluation] = {}
        self.flags: dict[int, list[bool]] = {}
        self.parameters: dict[int, tuple[list[Tensor], list[int], list[int], list[bool]]] = {}
        self.kept: dict[int, KeptCalls] = {}
        self.forms: list[torch.Size] = []
        self.starts: list[int] = []
        self.ends: dict[int, tuple[int, int]] = {}
        self.lean_nodes: list[int] = []
        self.hooks: list[weakref.ref[Any]] = []
        self.noted: list[Tensor] | None = None
        self.lean: LeanNodes | None = None
        # Backward passes.
        self.position = 0
        self.regions: list[Region] = []
        self.passes: weakref.WeakValueDictionary[int, BackwardPass] = weakref.WeakValueDictionary()
        self.latest: weakref.ref[BackwardPass] | None = None

    def store(self, number: int, value: Tensor) -> None:
        """Hold a value from forward to backward."""
        self.values[number] = value.detach()
        self.versions[number] = version_of(value)

    @property
    def plan(self) -> Plan:
        """The plan that the forward ran under."""
        return self.executable.plan

    def held_for_backward(self) -> Iterator[tuple[str, Tensor]]:
        """What is held for backward passes: stored values, kept results, copies of buffers, with names."""
        names, operations = self.executable.names, self.executable.operations
        for values in (self.values, *(region.values for region in self.regions)):
            yield from ((names[number], each) for number, each in enumerate(values) if each is not None)
        for index, kept in self.kept.items():
            yield from ((f"{operations[index].node} (kept result)", each) for each in kept.tensors())
        for index, evaluation in self.evaluations.items():
            node = operations[index].node
            for kept in (evaluation.kept, evaluation.calls):
                if kept is not None:
                    yield from ((f"{node} (kept result)", each) for each in kept.tensors())
            yield from ((f"{node} ({name})", each) for name, each in evaluation.state.buffers_held())

    # The lean path's hooks. What they pack are numbers, counted over all nodes of the forward.

    def pack(self, tensor: Tensor) -> Any:
        base = tensor._base
        if type(tensor if base is None else base) is Parameter:
            return tensor, tensor._version
        if self.noted is not None:
            self.noted.append(tensor)
        forms = self.forms
        forms.append(tensor.shape)
        return len(forms) - 1

    def unpack(self, packed: Any) -> Tensor:
        if type(packed) is tuple:
            tensor, version = packed
            if tensor._version != version:
                raise ReplayError(stale_parameter(self._owner_of(tensor), tensor._version, version))
            return tensor
        on = None if self.latest is None else self.latest()
        if on is not None and on.task == current_graph_task():
            tensor = on.flat[packed]
            if tensor is not None:
                on.flat[packed] = None
                return tensor
        return self._reach(packed) if frame_callback() is None else uncompiled(self._reach, packed)

    def _reach(self, number: int) -> Tensor:
        """The first saved tensor of a node that is asked for."""
        on = current_pass(self)
        tensor = on.flat[number]
        if tensor is None:
            index = self.lean_nodes[bisect_right(self.starts, number) - 1]
            if index in on.done:
                on.asked_twice(self.executable.operations[index])
            on.reach(index)
            tensor = on.flat[number]
        on.flat[number] = None
        assert tensor is not None
        return tensor

    def _owner_of(self, tensor: Tensor) -> str:
        """The first node that uses a parameter."""
        base = tensor if tensor._base is None else tensor._base
        for index, (parameters, *_) in self.parameters.items():
            if any([each is base for each in parameters]):
                return self.executable.operations[index].node
        return ""

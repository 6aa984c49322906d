"""The tape: stored values, and the replays that give autograd its saved tensors back.

Autograd's saved tensors are virtual: a node that is inverted or recomputed leaves a `Handle` for each. When
autograd asks for the first, the node is replayed (lines 1 to 3 of Algorithm 1, Gomez et al. 2017): its function
runs once more on rebuilt inputs, which gives all its saved tensors, and its target `x = y (-) F(others)`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from revgraph.errors import ReplayError, add_note
from revgraph.program import Law
from revgraph.runtime.context import (
    ModuleState,
    RandomStream,
    autocast_restored,
    autocast_state,
    random_restored,
)
from revgraph.runtime.probe import Probe
from revgraph.runtime.script import Step, modules_of


class Slot:
    """Where a value of one forward is found in backward: stored here, or made by `maker`."""

    __slots__ = ("__weakref__", "maker", "name", "released", "value", "version")

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: Tensor | None = None
        self.version = 0
        self.maker: Replay | None = None
        self.released = False

    def store(self, value: Tensor) -> None:
        self.value = value.detach()
        self.version = value._version

    def release(self) -> None:
        """Let a stored value go: the graph of all that reads it is being freed."""
        self.value = None
        self.released = True

    def stored(self) -> Tensor:
        assert self.value is not None
        if self.value._version != self.version:
            raise ReplayError(
                f"value {self.name!r}, stored for the backward pass, was edited in place after the forward "
                f"(version {self.value._version}, stored at {self.version}). Edit a clone of it instead, or edit it "
                "after backward."
            )
        return self.value


class Replay:
    """What can be done again in backward: `needs` are the slots it reads; `made` those it may give."""

    __slots__ = ("made", "needs")

    needs: tuple[Slot, ...]
    made: dict[str, weakref.ref[Slot]]

    def run(self, on: Pass) -> None:
        raise NotImplementedError


class Tape:
    """What one forward leaves for its backward passes; held alive by autograd's graph alone."""

    __slots__ = ("autocast", "net", "passes", "probe", "random", "uses")

    def __init__(
        self, net: nn.Module, inputs: Sequence[Any], uses: dict[str, int], probe: Probe | None
    ) -> None:
        self.net = net
        self.probe = probe
        self.autocast = autocast_state()
        self.random = RandomStream(inputs)
        self.uses = uses
        self.passes: dict[int, Pass] = {}

    def current_pass(self) -> Pass:
        """The state of the backward pass that is running."""
        task = torch._C._current_graph_task_id()
        if task == -1:  # asked for outside of any backward: nothing to share with
            return Pass(self.uses, frees_graph=False)
        if task not in self.passes:
            frees_graph = not torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore[reportAttributeAccessIssue]
            self.passes[task] = Pass(self.uses, frees_graph)
            torch.autograd.Variable._execution_engine.queue_callback(  # pyright: ignore[reportAttributeAccessIssue]
                lambda: self.passes.pop(task).close()
            )
        return self.passes[task]


class Pass:
    """One backward pass: values rebuilt so far, how often each is still to be read, and captured tensors.

    A pass that keeps the graph starts from the stored values and leaves them. One that frees the graph lets stored
    values go with their last reader, and what it has rebuilt but not used up takes their place.
    """

    __slots__ = ("captured", "frees_graph", "slots", "uses", "values", "wanted")

    def __init__(self, uses: dict[str, int], frees_graph: bool) -> None:
        self.values: dict[str, Tensor] = {}
        self.slots: dict[str, weakref.ref[Slot]] = {}
        self.uses = dict(uses)
        self.captured: dict[int, list[Tensor | None]] = {}
        self.wanted = ""
        self.frees_graph = frees_graph

    def has(self, slot: Slot) -> bool:
        return slot.value is not None or slot.name in self.values

    def get(self, slot: Slot) -> Tensor:
        return slot.stored() if slot.value is not None else self.values[slot.name]

    def put(self, name: str, value: Tensor, replay: Replay) -> None:
        if self.uses.get(name, 0) > 0 or name == self.wanted:
            self.values[name] = value
            if name in replay.made:
                self.slots[name] = replay.made[name]

    def replay(self, replay: Replay) -> None:
        """Run a replay once all it needs is there; rebuilding that takes a list, not recursion."""
        pending = list(replay.needs)
        while pending:
            slot = pending[-1]
            if self.has(slot):
                pending.pop()
                continue
            if slot.maker is None:
                raise _lost(slot)
            missing = [need for need in slot.maker.needs if not self.has(need)]
            if missing:
                pending += missing
                continue
            self._run(slot.maker, slot.name)
        self._run(replay, "")

    def close(self) -> None:
        """At the end of a pass that freed the graph: what later passes may read replaces what was released."""
        if self.frees_graph:
            for name, value in self.values.items():
                slot = self.slots[name]() if name in self.slots else None
                if slot is not None and slot.value is None:
                    slot.store(value)

    def _run(self, replay: Replay, wanted: str) -> None:
        self.wanted = wanted
        replay.run(self)
        for slot in replay.needs:
            left = self.uses.get(slot.name, 0) - 1
            self.uses[slot.name] = left
            if left <= 0:
                self.values.pop(slot.name, None)
                if self.frees_graph and slot.value is not None:
                    slot.release()


def _lost(slot: Slot) -> ReplayError:
    if slot.released:
        return ReplayError(
            f"value {slot.name!r} went with the graph that an earlier backward freed. Call that backward with "
            "retain_graph=True, as several backward passes through one graph need."
        )
    return ReplayError(f"value {slot.name!r} is neither stored nor can it be rebuilt")


class Handle:
    """What autograd holds in place of a saved tensor of a node."""

    __slots__ = ("index", "replay")

    def __init__(self, replay: NodeReplay, index: int) -> None:
        self.replay = replay
        self.index = index


class Borrowed:
    """A parameter (or a view of one) that autograd saved: held as it is, with its version."""

    __slots__ = ("node", "tensor", "version")

    def __init__(self, tensor: Tensor, node: str) -> None:
        self.tensor = tensor.detach() if tensor.grad_fn is not None else tensor
        self.version = tensor._version
        self.node = node


def unpack(packed: Handle | Borrowed) -> Tensor:
    """The saved tensor that a packed one stands for, replaying its node where it was not yet in this pass."""
    if isinstance(packed, Borrowed):
        if packed.tensor._version != packed.version:
            raise ReplayError(
                f"a parameter of node {packed.node!r} was changed in place between forward and backward "
                f"(version {packed.tensor._version}, saved at {packed.version}). Run backward before the change."
            )
        return packed.tensor
    replay, index = packed.replay, packed.index
    on = replay.tape.current_pass()
    captured = on.captured.get(replay.step.index)
    if captured is None or captured[index] is None:
        on.replay(replay)
        captured = on.captured[replay.step.index]
    tensor = captured[index]
    captured[index] = None
    assert tensor is not None
    return tensor


class NodeReplay(Replay):
    """One inverted or recomputed node of one forward."""

    __slots__ = (
        "count", "flags", "metadata", "middle", "random", "state", "step", "tape", "plain", "target_flag",
    )  # fmt: skip

    def __init__(self, tape: Tape, step: Step) -> None:
        self.tape = tape
        self.step = step
        self.count = 0
        self.middle = 0
        self.metadata: list[tuple[torch.Size, torch.dtype]] = []
        self.random: tuple[bytes, ...] | None = None
        self.plain: dict[str, Any] = {}
        self.made = {}

    def forward(self, env: dict[str, Any]) -> tuple[Any, ...]:
        """The node's results, with a handle in place of each tensor that autograd saves."""
        step, net = self.step, self.tape.net
        inputs = [env[name] for name in step.reads]
        target = env[step.target] if step.target is not None else None
        self.flags = [isinstance(value, Tensor) and value.requires_grad for value in inputs]
        self.target_flag = target is not None and target.requires_grad
        self.plain = {
            name: value for name, value in zip(step.reads, inputs, strict=True) if not isinstance(value, Tensor)
        }
        modules = modules_of(net, step)
        self.state = ModuleState(modules)
        versions = [value._version for value in inputs if isinstance(value, Tensor)]
        before = self.tape.random.before()
        try:
            with saved_tensors_hooks(self._pack, unpack):
                results = step.expression.run(net, inputs)
                self.middle = self.count
                if step.law is not None:
                    assert target is not None
                    results = (step.law.couple(net, target, results[0] if results else None),)
        except Exception as error:
            add_note(error, f"in the forward of {step.describe()}")
            raise
        if [value._version for value in inputs if isinstance(value, Tensor)] != versions:
            raise ReplayError(
                f"{step.describe()} edits one of its inputs in place, so a replay would start from changed "
                f"values. Use the out-of-place form, or keep the node: decisions {{{step.node!r}: 'keep'}}."
            )
        if self.tape.random.drawn_since(before):
            self.random = before
        self.state.after_forward(modules)
        return results

    def run(self, on: Pass) -> None:
        step, net = self.step, self.tape.net
        given = {slot.name: on.get(slot) for slot in self.needs}
        inputs = [
            given[name].detach().requires_grad_(flag) if name in given else self.plain[name]
            for name, flag in zip(step.reads, self.flags, strict=True)
        ]
        captured: list[Tensor | None] = []
        modules = modules_of(net, step)
        self.state.check(modules, step.node)
        if self.tape.probe is not None:
            self.tape.probe.evaluated(step.node)

        def pack(tensor: Tensor) -> None:
            if _parameter_of(tensor) is None:
                self._compare(tensor, len(captured))
                captured.append(tensor.detach())

        try:
            with (
                autocast_restored(self.tape.autocast),
                random_restored(self.random, self.tape.random.devices),
                self.state.restored(modules),
                torch.enable_grad(),
                saved_tensors_hooks(pack, unpack),
            ):
                results = step.expression.run(net, inputs)
                if step.law is not None:
                    self._couple_again(step.law, given, results[0] if results else None, on)
        except Exception as error:
            add_note(error, f"while replaying {step.describe()}")
            raise
        if len(captured) != self.count:
            self._differs(f"it saved {self.count} tensors in the forward and {len(captured)} now")
        on.captured[step.index] = captured

    def _couple_again(self, law: Law, given: dict[str, Tensor], term: Any, on: Pass) -> None:
        """The target from the output where the node is inverted, and what joining them saves."""
        step, net = self.step, self.tape.net
        assert step.target is not None
        if step.decision == "invert":
            with torch.no_grad():
                x = law.uncouple(net, given[step.makes[0]], term)
            on.put(step.target, x, self)
            if self.tape.probe is not None:
                self.tape.probe.rebuilt(step.target, x)
        else:
            x = given[step.target]
        if self.count > self.middle:
            law.couple(net, x.detach().requires_grad_(self.target_flag), term)

    def _pack(self, tensor: Tensor) -> Handle | Borrowed:
        if _parameter_of(tensor) is not None:
            return Borrowed(tensor, self.step.node)
        self.metadata.append((tensor.shape, tensor.dtype))
        self.count += 1
        return Handle(self, self.count - 1)

    def _compare(self, tensor: Tensor, index: int) -> None:
        if index >= self.count:
            self._differs(f"it saved {self.count} tensors in the forward and more now")
        if (tensor.shape, tensor.dtype) != self.metadata[index]:
            shape, dtype = self.metadata[index]
            self._differs(
                f"saved tensor {index} was {dtype} {list(shape)} in the forward and is {tensor.dtype} "
                f"{list(tensor.shape)} now"
            )

    def _differs(self, how: str) -> None:
        raise ReplayError(
            f"the replay of {self.step.describe()} differs from its forward: {how}. Its function must do the "
            f"same each time; make it deterministic, or keep the node: decisions {{{self.step.node!r}: 'keep'}}."
        )


class WiringReplay(Replay):
    """One wiring of one forward, run backwards (inputs from outputs) or forwards again.

    `plain` are the numbers that it read besides tensors, `shapes` those of its tensor inputs.
    """

    __slots__ = ("backwards", "plain", "shapes", "step", "tape")

    def __init__(self, tape: Tape, step: Step, backwards: bool, env: dict[str, Any]) -> None:
        self.tape = tape
        self.step = step
        self.backwards = backwards
        self.shapes = [env[name].shape for name in step.tensors]
        self.plain = {name: env[name] for name in step.reads if name not in step.tensors}
        self.made = {}

    def run(self, on: Pass) -> None:
        step = self.step
        given = {slot.name: on.get(slot) for slot in self.needs}
        with torch.no_grad():
            if self.backwards:
                assert step.rearrangement is not None
                made = step.rearrangement.inverse(self.tape.net, list(given.values()), self.shapes)
            else:
                inputs = [given[name] if name in given else self.plain[name] for name in step.reads]
                made = step.expression.run(self.tape.net, inputs)
        for name, value in zip(step.tensors if self.backwards else step.makes, made, strict=True):
            on.put(name, value, self)


def _parameter_of(tensor: Tensor) -> nn.Parameter | None:
    """The parameter that a tensor is, or is a view of."""
    base = tensor if tensor._base is None else tensor._base
    return base if isinstance(base, nn.Parameter) else None

"""Replays: nodes done again in backward, which gives autograd its saved tensors back.

Autograd's saved tensors are virtual: a node that is inverted or recomputed leaves a `Handle` for each. When
autograd asks for the first, the node is replayed (lines 1 to 3 of Algorithm 1, Gomez et al. 2017): its
function runs once more on rebuilt inputs, which gives all its saved tensors, and its target
`x = y (-) F(others)`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from revgraph.errors import GraphError, ReplayError, add_note
from revgraph.program import Law
from revgraph.runtime.context import (
    NO_AUTOCAST,
    ModuleState,
    autocast_restored,
    autocast_state,
    random_restored,
)
from revgraph.runtime.script import Step, modules_of
from revgraph.runtime.tape import Pass, Replay, Tape

NOTHING = nullcontext()


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


def unpack(packed: Handle | Borrowed | None) -> Tensor:
    """The saved tensor that a packed one stands for, replaying its node where it was not yet in this pass."""
    if isinstance(packed, Borrowed):
        if packed.tensor._version != packed.version:
            raise ReplayError(
                f"a parameter of node {packed.node!r} was changed in place between forward and backward "
                f"(version {packed.tensor._version}, saved at {packed.version}). Run backward before the "
                "change."
            )
        return packed.tensor
    if packed is None or not packed.replay.is_ready:
        raise ReplayError(
            "a node that is not kept differentiates inside its own forward. Keep that node"
            + ("" if packed is None else f": decisions {{{packed.replay.step.node!r}: 'keep'}}")
            + "."
        )
    replay, index = packed.replay, packed.index
    on = replay.tape.current_pass()
    captured = on.captured.get(replay.step.index)
    if captured is not None and captured[index] is None and on.frees_graph:
        raise ReplayError(
            f"a saved tensor of {replay.step.describe()} is asked for twice in one backward pass that "
            "frees the graph. Read ctx.saved_tensors once in the backward of an autograd.Function, or keep "
            "the node."
        )
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
        "count",
        "flags",
        "metadata",
        "middle",
        "plain",
        "random",
        "state",
        "step",
        "storages",
        "tape",
        "target_flag",
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
        self.is_ready = False

    def forward(self, env: dict[str, Any]) -> tuple[Any, ...]:
        """The node's results, with a handle in place of each tensor that autograd saves."""
        step, net = self.step, self.tape.net
        inputs = [env[name] for name in step.reads]
        target = env[step.target] if step.target is not None else None
        self.flags = [isinstance(value, Tensor) and value.requires_grad for value in inputs]
        self.target_flag = target is not None and target.requires_grad
        given = inputs if target is None else [*inputs, target]
        self.storages = {
            value.untyped_storage()._cdata
            for value in given
            if type(value) is nn.Parameter or _is_view(value)
        }
        self.plain = {
            name: value
            for name, value in zip(step.reads, inputs, strict=True)
            if not isinstance(value, Tensor)
        }
        self.state = ModuleState(modules_of(net, step))
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
        if step.decision == "invert" and target is not None and results[0].shape != target.shape:
            raise GraphError(
                f"{step.describe()} turned its target {step.target!r} of shape {list(target.shape)} into "
                f"shape {list(results[0].shape)}, which cannot be undone. Expand the target first, or keep "
                "the node: "
                f"decisions {{{step.node!r}: 'keep'}}."
            )
        if self.tape.random.drawn_since(before):
            self.random = before
        self.state.after_forward()
        return results

    def run(self, on: Pass) -> None:
        self._replay(on)
        if self.tape.probe is not None:
            self.tape.probe.replayed(self.step.node)

    def _replay(self, on: Pass) -> None:
        step, net = self.step, self.tape.net
        given = {slot.name: on.get(slot) for slot in self.needs}
        inputs = [
            given[name].detach().requires_grad_(flag) if name in given else self.plain[name]
            for name, flag in zip(step.reads, self.flags, strict=True)
        ]
        captured: list[Tensor | None] = []
        versions: list[int] = []
        self.state.check(step.node)
        if self.tape.probe is not None:
            self.tape.probe.evaluated(step.node)

        def pack(tensor: Tensor) -> None:
            if not self._is_borrowed(tensor):
                self._compare(tensor, len(captured))
                captured.append(tensor.detach())
                versions.append(tensor._version)

        try:
            with self._restored(), torch.enable_grad(), saved_tensors_hooks(pack, unpack):
                results = step.expression.run(net, inputs)
                if step.law is not None:
                    self._couple_again(step.law, given, results[0] if results else None, on)
        except Exception as error:
            add_note(error, f"while replaying {step.describe()}")
            raise
        if len(captured) != self.count:
            self._differs(f"it saved {self.count} tensors in the forward and {len(captured)} now")
        if [tensor._version for tensor in captured if tensor is not None] != versions:
            raise ReplayError(
                f"{step.describe()} edits a tensor in place that its own backward needs. Use the "
                "out-of-place form there; ordinary autograd refuses such an edit too."
            )
        on.captured[step.index] = captured

    def _restored(self) -> AbstractContextManager[Any]:
        """The forward's autocast, random numbers, flags and buffers, as far as they differ from today's."""
        stack = None
        if self.tape.autocast != NO_AUTOCAST or autocast_state() != NO_AUTOCAST:
            stack = ExitStack()
            stack.enter_context(autocast_restored(self.tape.autocast))
        if self.random is not None:
            stack = stack or ExitStack()
            stack.enter_context(random_restored(self.random, self.tape.random.devices))
        if self.state.differs():
            stack = stack or ExitStack()
            stack.enter_context(self.state.restored())
        return stack or NOTHING

    def _couple_again(self, law: Law, given: dict[str, Tensor], term: Any, on: Pass) -> None:
        """The target from the output where the node is inverted, and what joining them saves."""
        step, net = self.step, self.tape.net
        assert step.target is not None
        if step.decision == "invert":
            y = given[step.makes[0]]
            version = y._version
            with torch.no_grad():
                x = law.uncouple(net, y, term)
            if y._version != version:
                raise ReplayError(
                    f"the inverse of {step.describe()} edits the output in place, which others may hold. Use "
                    "the out-of-place form in its `uncouple`."
                )
            on.put(step.target, x, self)
            if self.tape.probe is not None:
                self.tape.probe.rebuilt(step.target, x)
        else:
            x = given[step.target]
        if self.count > self.middle:
            law.couple(net, x.detach().requires_grad_(self.target_flag), term)

    def _pack(self, tensor: Tensor) -> Handle | Borrowed:
        if self._is_borrowed(tensor):
            return Borrowed(tensor, self.step.node)
        self.metadata.append((tensor.shape, tensor.dtype))
        self.count += 1
        return Handle(self, self.count - 1)

    def _is_borrowed(self, tensor: Tensor) -> bool:
        """Whether a saved tensor is a parameter, or a view of one, that is not among the node's inputs."""
        return _is_parameter(tensor) and tensor.untyped_storage()._cdata not in self.storages

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
            "same each time; make it deterministic, or keep the node: "
            f"decisions {{{self.step.node!r}: 'keep'}}."
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


def _is_view(value: Any) -> bool:
    """Whether an input is a view of a parameter."""
    return isinstance(value, Tensor) and type(value._base) is nn.Parameter


def _is_parameter(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter or a view of one. Its type tells quicker than isinstance does."""
    base = tensor if tensor._base is None else tensor._base
    kind = type(base)
    return kind is nn.Parameter or (kind is not Tensor and isinstance(base, nn.Parameter))

"""Capturing: what autograd saves of a node that is not kept, in its forward and again in its replays.

Autograd's saved tensors are virtual: such a node leaves a `Handle` for each. When autograd asks for the
first, the node is replayed (lines 1 to 3 of Algorithm 1, Gomez et al. 2017), which captures them all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from revgraph.errors import ReplayError
from revgraph.expressions import leaves
from revgraph.runtime.deriving import Replay
from revgraph.runtime.sampling import Samples, departs, sample
from revgraph.runtime.script import Step
from revgraph.runtime.uncompiled import compiles, uncompiled


class Handle:
    """What autograd holds in place of a saved tensor of a node."""

    __slots__ = ("__weakref__", "index", "replay")

    def __init__(self, replay: Replay, index: int) -> None:
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
    if compiles():
        return uncompiled(_unpack, packed)
    return _unpack(packed)


def _unpack(packed: Handle | Borrowed | None) -> Tensor:
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


class Saved:
    """The forms of what autograd saved in a node's forward, in order; `middle` of them before its law.

    A saved tensor is borrowed, and not among them, if it is a parameter, or a view of one, that is not
    among the node's inputs. Of storages in `ignored` no samples are taken, and without it of none.
    """

    __slots__ = ("_ignored", "_storages", "forms", "middle", "samples")

    def __init__(self, given: Sequence[Any], ignored: Collection[int] | None) -> None:
        self.forms: list[tuple[torch.Size, torch.dtype]] = []
        self.samples = Samples()
        self.middle = -1
        self._ignored = ignored
        self._storages = {
            value.untyped_storage()._cdata
            for value in given
            if type(value) is nn.Parameter or _is_view(value)
        }

    @property
    def count(self) -> int:
        return len(self.forms)

    def add(self, tensor: Tensor) -> int:
        """Note a saved tensor; returns its index."""
        if self._ignored is not None and self.middle < 0:
            self.samples.saved.append(sample(tensor, self._ignored))
        self.forms.append((tensor.shape, tensor.dtype))
        return len(self.forms) - 1

    def end_function(self, results: Any) -> None:
        """The node's function has returned; what is saved from here on is its law's."""
        self.middle = self.count
        if self._ignored is not None:
            self.samples.take_results(results)

    def is_borrowed(self, tensor: Tensor) -> bool:
        return _is_parameter(tensor) and tensor.untyped_storage()._cdata not in self._storages


class Capture:
    """What autograd saves while a node runs again: captured where `records`, dropped otherwise.

    It `departs` if its samples do from `reference`, those of the forward if nothing else is given.
    """

    __slots__ = (
        "_limit",
        "_reference",
        "_saved",
        "_step",
        "_versions",
        "departs",
        "records",
        "samples",
        "tensors",
    )

    def __init__(self, step: Step, saved: Saved, records: bool, reference: Samples | None = None) -> None:
        self.tensors: list[Tensor | None] = []
        self.records = records
        self.samples = Samples()
        self.departs = False
        self._reference = reference or saved.samples
        self._versions: list[int] = []
        self._step = step
        self._saved = saved
        self._limit: int | None = None

    def until(self, limit: int | None, run: Callable[..., Any], *args: Any) -> Any:
        """What `run` returns; with a limit, it is stopped as that many are captured, and returns None.

        The function that is stopped may handle the exception and go on, or turn it into another one.
        """
        self._limit = limit if self.records else None
        if limit is not None and (not self.records or len(self.tensors) == limit):
            return None
        try:
            return run(*args)
        except Exception:
            if not self._is_enough():
                raise
            return None

    def pack(self, tensor: Tensor) -> None:
        if compiles():
            return uncompiled(self._pack, tensor)
        return self._pack(tensor)

    def _pack(self, tensor: Tensor) -> None:
        if not self.records or self._saved.is_borrowed(tensor) or self._is_enough():
            return
        self._compare(tensor, len(self.tensors))
        self.tensors.append(tensor.detach())
        self._versions.append(tensor._version)
        if self._is_enough():
            raise Enough

    def end_function(self, results: Any) -> None:
        """Compare what the node's function returned; one that was stopped may return anything."""
        if self._is_enough() or not self._reference.results:
            return
        self.samples.take_results(results)
        if self.samples.results != self._reference.results:
            for before, now, result in zip(
                self._reference.results, self.samples.results, leaves(results), strict=False
            ):
                self.departs = self.departs or departs(before, now, result)

    def refuse_values(self) -> None:
        """Refuse a function that gave other values."""
        self._differs("its function gave other values on the same inputs")

    def check(self) -> None:
        """Refuse what a replay captured if it is less than the forward saved, or was edited since."""
        if len(self.tensors) != self._saved.count:
            self._differs(f"it saved {self._saved.count} tensors in the forward and {len(self.tensors)} now")
        if [tensor._version for tensor in self.tensors if tensor is not None] != self._versions:
            raise ReplayError(
                f"{self._step.describe()} edits a tensor in place that its own backward needs. Use the "
                "out-of-place form there; ordinary autograd refuses such an edit too."
            )

    def _is_enough(self) -> bool:
        return len(self.tensors) == self._limit

    def _compare(self, tensor: Tensor, index: int) -> None:
        if index >= self._saved.count:
            self._differs(f"it saved {self._saved.count} tensors in the forward and more now")
        if (tensor.shape, tensor.dtype) != self._saved.forms[index]:
            shape, dtype = self._saved.forms[index]
            self._differs(
                f"saved tensor {index} was {dtype} {list(shape)} in the forward and is {tensor.dtype} "
                f"{list(tensor.shape)} now"
            )
        if index < len(self._reference.saved):
            before, now = self._reference.saved[index], sample(tensor)
            self.samples.saved.append(now)
            self.departs = self.departs or departs(before, now, tensor)

    def _differs(self, how: str) -> None:
        raise ReplayError(
            f"the replay of {self._step.describe()} differs from its forward: {how}. Its function must do "
            "the same each time; make it deterministic, or keep the node: "
            f"decisions {{{self._step.node!r}: 'keep'}}."
        )


class Enough(Exception):
    """Ends a replay once it has captured all that it is for, as torch's checkpoint ends a recomputation."""


def _is_view(value: Any) -> bool:
    """Whether an input is a view of a parameter."""
    return isinstance(value, Tensor) and type(value._base) is nn.Parameter


def _is_parameter(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter or a view of one. Its type tells quicker than isinstance does."""
    base = tensor if tensor._base is None else tensor._base
    kind = type(base)
    return kind is nn.Parameter or (kind is not Tensor and isinstance(base, nn.Parameter))

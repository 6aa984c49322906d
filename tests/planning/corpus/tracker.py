"""A tracker of a training step that shares no code with the package: live activation bytes, and FLOPs.

After every operator it takes up the storages of the results, and lets go of those whose last reference is
gone, which a weak reference to the storage tells. Sizes are added up at these points alone: between two
operators nothing is allocated that counts. Python's garbage collector is off meanwhile, so that nothing is
freed by chance.

Activations are all storages that begin during the step, without those of the parameters, buffers and inputs
and without the gradients of the parameters. What an operator reads before any has returned it was there
before the step (a constant in a closure). The peak is the most of them at once. Held is what is live
between forward and backward, where the caller holds the outputs and the loss.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True, slots=True)
class Tracked:
    """What a step took."""

    peak_bytes: int
    held_bytes: int
    flops: int


@dataclass(slots=True)
class _Life:
    """A storage with the bytes it has and the operators, by number, between which it lived."""

    reference: StorageWeakRef
    nbytes: int
    born: int
    died: int | None = None


class Tracker(TorchDispatchMode):
    """Follows the storages of all that operators return."""

    def __init__(self, ignored: list[Tensor]) -> None:
        super().__init__()
        self.clock = 0
        self.live: dict[int, _Life] = {}
        self.dead: list[_Life] = []
        self.before: list[StorageWeakRef] = []  # which keep other storages from taking their places
        self.ignored = {storage._cdata for tensor in ignored for storage in storages_of(tensor)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.lift_fresh.default:  # `torch.tensor` makes what this reads
            for operand in tree_leaves((args, kwargs)):
                for storage in storages_of(operand):
                    if storage._cdata not in self.live and storage._cdata not in self.ignored:
                        self.ignored.add(storage._cdata)
                        self.before.append(StorageWeakRef(storage))
        results = func(*args, **(kwargs or {}))
        self.clock += 1
        self.bury()
        for result in tree_leaves(results):
            for storage in storages_of(result):
                key = storage._cdata
                if key not in self.ignored and key not in self.live:
                    self.live[key] = _Life(StorageWeakRef(storage), storage.nbytes(), self.clock)
        return results

    def bury(self) -> None:
        """Note of the storages that nothing refers to any more that they died."""
        for key in [key for key, life in self.live.items() if life.reference.expired()]:
            life = self.live.pop(key)
            life.died = self.clock
            self.dead.append(life)

    def lives(self, without: list[Tensor]) -> list[_Life]:
        """All lives, without those of some tensors."""
        out = {storage._cdata for tensor in without for storage in storages_of(tensor)}
        return self.dead + [life for key, life in self.live.items() if key not in out]


def storages_of(thing: Any) -> Iterator[torch.UntypedStorage]:
    """The storages of a tensor, those of its indices and values if it is sparse; none of other things."""
    if not isinstance(thing, Tensor):
        return
    if thing.layout is torch.strided:
        yield thing.untyped_storage()
    elif thing.layout is torch.sparse_coo:
        yield thing._indices().untyped_storage()
        yield thing._values().untyped_storage()
    elif thing.layout is torch.sparse_csr:
        for part in (thing.crow_indices(), thing.col_indices(), thing.values()):
            yield part.untyped_storage()


def loss_of(outputs: Any) -> Tensor:
    """The loss of the step: the mean of squares of every output that has a gradient, added up."""
    losses = [
        each.pow(2).mean() for each in tree_leaves(outputs) if isinstance(each, Tensor) and each.requires_grad
    ]
    return losses[0] if len(losses) == 1 else torch.stack([loss.float() for loss in losses]).sum()


class Flops(TorchDispatchMode):
    """Adds up the FLOPs that torch's formulas give for operators, without its hooks on modules, which hold
    what a module returned for nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=results)
        return results


def track(model: nn.Module, *inputs: Any) -> Tracked:
    """One training step of a model, with its activation bytes and its FLOPs as torch counts them."""
    model.zero_grad(set_to_none=True)
    tracker = Tracker([*model.parameters(), *model.buffers(), *tensors(inputs)])
    counter = Flops()
    collects = gc.isenabled()
    gc.disable()
    try:
        with counter, tracker:
            outputs = model(*inputs)
            loss = loss_of(outputs)
            tracker.bury()
            held_at = tracker.clock
            held = set(map(id, tracker.live.values()))
            loss.backward()
            tracker.bury()
    finally:
        if collects:
            gc.enable()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    lives = tracker.lives(gradients)
    changes: dict[int, int] = {}
    for life in lives:
        changes[life.born] = changes.get(life.born, 0) + life.nbytes
        if life.died is not None:  # found out as this operator ended: gone by the time its results came
            changes[life.died] = changes.get(life.died, 0) - life.nbytes
    total = peak = 0
    for moment in sorted(changes):
        total += changes[moment]
        peak = max(peak, total)
    held_bytes = sum(life.nbytes for life in lives if id(life) in held and life.born <= held_at)
    model.zero_grad(set_to_none=True)
    for tensor in tensors(inputs):
        tensor.grad = None
    return Tracked(peak, held_bytes, counter.total)


def gradients(model: nn.Module, *inputs: Any) -> list[Tensor]:
    """The loss of one training step, and the gradients of all parameters and inputs that get one."""
    model.zero_grad(set_to_none=True)
    loss = loss_of(model(*inputs))
    loss.backward()
    leaves = [*model.parameters(), *tensors(inputs)]
    found = [loss.detach(), *(leaf.grad.clone() for leaf in leaves if leaf.grad is not None)]
    model.zero_grad(set_to_none=True)
    for tensor in tensors(inputs):
        tensor.grad = None
    return found


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested structures."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]

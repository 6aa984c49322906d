"""Recording: every storage that comes and goes while a node runs, turned into the events of its course."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils.flop_counter import flop_registry

from revgraph.costs.forms import Form, form_of, tensors_of
from revgraph.courses import Event, Work
from revgraph.engine.selective_recompute import is_heavy
from revgraph.expressions import leaves, map_leaves
from revgraph.storages import LIFTS, StorageTracker, bytes_of, faked, memory_key, parts_of

ADD = torch.ops.aten.add.Tensor
BATCH_NORM = torch.ops.aten.native_batch_norm.default
# On fake tensors these return other sizes than on the CPU: no workspace, or results that nobody needs.
UNLIKE_FAKE = (
    torch.ops.aten.mkldnn_rnn_layer.default,
    torch.ops.aten._embedding_bag.default,
    torch.ops.aten._embedding_bag_forward_only.default,
)
# Reduced to a number, these return it in the memory that held the losses of all elements.
REDUCED_IN_PLACE = (
    torch.ops.aten.mse_loss.default,
    torch.ops.aten.smooth_l1_loss.default,
    torch.ops.aten.soft_margin_loss.default,
    torch.ops.aten.binary_cross_entropy.default,
)
FOLD = torch.ops.aten.col2im.default
CTC_LOSS = (torch.ops.aten._ctc_loss.default, torch.ops.aten._ctc_loss.Tensor)

# Operators that touch no element, besides those whose schema says that they give a view.
UNTOUCHING = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}

# What a heavy operator is called: the place of a module or parameter among those that its node's expression
# names, and the path from there to the module whose weight is read; or None, and what the operator does.
HeavyName: TypeAlias = tuple[int | None, str]


class Recorder(StorageTracker):
    """A storage tracker that knows storages by labels, sees gradients arrive, and counts work.

    Autograd adds the gradients that reach one tensor as `old + new`; with a known first gradient each of
    these sums is recognized. Sums of gradients are no concern of the node, and are left out. `heavy` lists
    the FLOPs and bytes of the results of heavy operators, in order, and what each is called: the first of
    `weights` that it reads, by memory, or else the operator.
    """

    def __init__(self, ignored: Iterable[Tensor], weights: Mapping[int, HeavyName] | None = None) -> None:
        super().__init__(ignored)
        self.work = Work()
        self.heavy: list[tuple[int, int, HeavyName]] = []
        self._weights = weights or {}
        self.arrivals: dict[int, list[Form]] = defaultdict(list)
        self._labels: dict[int, list[str]] = defaultdict(list)
        self._owned = 0
        self._left_out: set[int] = set()
        self._noted: set[int] = set()
        self._sums: dict[int, int] = {}
        self._marks: list[tuple[int, Event]] = []
        self._fake_mode = detect_fake_mode()

    def _seen(self, func: Any, args: Any, kwargs: Any) -> Any:
        index = self._sums.get(self.birth_of(args[0])) if func is ADD else None
        at = self.now
        run = func
        if func in CTC_LOSS:
            run = partial(ctc_loss, func)
        elif self._fake_mode is not None:
            run = self._as_with_memory(func, args)
            if func.is_view and func not in LIFTS:  # of a constant, perhaps: it is no new memory either
                args, kwargs = map_leaves(self._faked, (args, kwargs))
        result = super()._seen(run, args, kwargs)
        if index is not None:
            self._arrive(index, args[1], result, at)
            return result
        if not _touches(func):
            return result
        count = flop_registry.get(func._overloadpacket)
        flops = 0 if count is None else count(*args, **kwargs, out_val=result)
        moved = _element_bytes((args, kwargs)) + _element_bytes(result)
        self.work = self.work.plus(Work(flops, moved, 1))
        if is_heavy(func):
            nbytes = sum(bytes_of(each) for each in leaves(result) if isinstance(each, Tensor))
            self.heavy.append((flops, nbytes, self._called(func, args)))
        return result

    def _called(self, func: Any, args: Any) -> HeavyName:
        tensors = [each for each in leaves(args) if isinstance(each, Tensor)]
        read = [self._weights[key] for each in tensors if (key := memory_key(each)) in self._weights]
        if read:
            return read[0]
        name = func._schema.name
        return None, "convolution" if "conv" in name else "attention" if "attention" in name else "product"

    def _as_with_memory(self, func: Any, args: Any) -> Any:
        """What to run in an operator's place, so that its results take what they do with memory."""
        if func in REDUCED_IN_PLACE:
            return partial(reduced_in_place, func)
        if func is FOLD:
            return fold
        if func is BATCH_NORM and isinstance(args[0], FakeTensor):
            return batch_norm
        if func in UNLIKE_FAKE and isinstance(args[0], FakeTensor):
            return partial(on_zeros, func)
        return func

    def _faked(self, thing: Any) -> Any:
        if isinstance(thing, Tensor) and not isinstance(thing, FakeTensor):
            return faked(thing, self._fake_mode)  # pyright: ignore[reportArgumentType]
        return thing

    def see(self, tensor: Tensor) -> None:
        """Notice a tensor's memory; that of a sparse one counts as one storage, to bear one label."""
        self._begin([part.untyped_storage() for part in parts_of(tensor)])

    def mark(self, *event: Any) -> None:
        """Put an event at this point."""
        self._marks.append((self.now, event))

    def label(self, tensor: Tensor, label: str, told: bool = True) -> None:
        """Call a tensor's storage by this label; where it has one already, an event tells so."""
        birth = self.birth_of(tensor)
        if birth:
            if told and self._labels[birth]:
                self.mark("same", label, self._labels[birth][0])
            self._labels[birth].append(label)

    def label_of(self, tensor: Tensor) -> str:
        """The first label of a tensor's storage, given now if it has none; "" where it does not count."""
        birth = self.birth_of(tensor)
        if birth and not self._labels[birth]:
            self._labels[birth].append(f"own{self._owned}")
            self._owned += 1
        return self._labels[birth][0] if birth else ""

    def labels_of(self, tensor: Tensor) -> tuple[str, ...]:
        """All labels of a tensor's storage."""
        return tuple(self._labels.get(self.birth_of(tensor), ()))

    def leave_out(self, tensor: Tensor) -> None:
        """Tell nothing of this tensor's storage."""
        self._left_out.add(self.birth_of(tensor))

    def note(self, tensor: Tensor) -> None:
        """Tell of this tensor's storage as what the forward notes for replays."""
        self._noted.add(self.birth_of(tensor))

    def expect_gradients(self, index: int, first: Tensor) -> None:
        """From now on what is added to `first` is a gradient for input `index`."""
        self._sums[self.birth_of(first)] = index
        self.leave_out(first)

    def birth_of(self, tensor: Tensor) -> int:
        """The number of a tensor's storage in the order they came up; 0 where it does not count."""
        return self._alive.get(memory_key(tensor), 0)

    def events(self, since: int, until: int) -> Iterator[Event]:
        """What happened between two points; storages without a label are summed up."""
        own = most = 0
        for event in self._single_events(since, until):
            if isinstance(event, int):
                own += event
                most = max(most, own)
                continue
            if own or most:
                yield "use", most, own
                own = most = 0
            yield event
        if own or most:
            yield "use", most, own

    def _single_events(self, since: int, until: int) -> Iterator[Event | int]:
        first: dict[int, int] = {}
        for position, (birth, _) in enumerate(self._log[:until]):
            first.setdefault(birth, position)
        marks = [mark for mark in self._marks if since <= mark[0] <= until]
        for position in range(since, until):
            while marks and marks[0][0] <= position:
                yield marks.pop(0)[1]
            birth, size = self._log[position]
            if birth in self._left_out:
                continue
            labels = self._labels.get(birth)
            if birth in self._noted:
                if size > 0:  # when it goes is the schedule's matter
                    yield "state", size
            elif not labels:
                yield size
            elif first[birth] == position:
                yield "born", labels[0], size
            else:
                yield from (("drop", label) for label in labels)
        yield from (event for _, event in marks)

    def _arrive(self, index: int, gradient: Tensor, total: Tensor, at: int) -> None:
        """Tell of a gradient, before the sum that autograd made with it, which stands in for both now."""
        label = self.label_of(gradient)
        self._marks.append((at, ("grad", index, label)))
        self.arrivals[index].append(form_of(gradient, label))
        self.leave_out(total)
        self._sums[self.birth_of(total)] = index


@cache
def _touches(func: Any) -> bool:
    """Whether an operator reads or writes elements; `prim` ones ask for a tensor's device and such."""
    name = func._schema.name.removeprefix("aten::")
    return not (func.is_view or func.namespace == "prim" or name in UNTOUCHING)


def _element_bytes(thing: Any) -> int:
    """Bytes of the elements of all tensors in something; of a slice, those of the slice."""
    return sum(
        [
            each.numel() * each.element_size() if each.layout is torch.strided else bytes_of(each)
            for each in leaves(thing)
            if isinstance(each, Tensor)
        ]
    )


def on_zeros(func: Any, *args: Any, **kwargs: Any) -> Any:
    """What an operator returns of zeros in the place of fake tensors, as fake tensors again."""

    def real(thing: Any) -> Any:
        if not isinstance(thing, FakeTensor):
            return thing
        return torch.empty_strided(
            thing.shape, thing.stride(), dtype=thing.dtype, device=thing.device
        ).zero_()

    with unset_fake_temporarily():
        results = func(*map_leaves(real, args), **map_leaves(real, kwargs))
    # A fake one of the same shape would lose memory that a result has beyond its elements.
    forms = [form_of(leaf, memory_key(leaf)) for leaf in leaves(results) if isinstance(leaf, Tensor)]
    made = iter(tensors_of(forms))
    return map_leaves(lambda leaf: next(made) if isinstance(leaf, Tensor) else leaf, results)


def reduced_in_place(func: Any, x: Tensor, y: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
    """What a loss returns of fake tensors, in as much memory as with real ones."""
    result = func(x, y, *rest, **kwargs)
    if result.dim():
        return result
    return result.new_empty(torch.broadcast_shapes(x.shape, y.shape)).resize_(())


def fold(x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
    """What patches folded into images are of fake tensors: in memory that is as large as the patches'."""
    result = FOLD(x, *rest, **kwargs)
    return result.new_empty((max(x.numel(), result.numel()),)).resize_(result.shape)


def ctc_loss(
    func: Any,
    scores: Tensor,
    targets: Tensor,
    lengths: Any,
    target_lengths: Any,
    *rest: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """What the loss of connectionist temporal classification returns: a number and a table for each sample.

    The table is as wide as the longest target. Where targets have no lengths, because there is no memory or
    they are an input, which is zeros here, they are taken to fill their rows.
    """
    if isinstance(target_lengths, (tuple, list)) and any(target_lengths):
        longest = max(target_lengths)
    else:
        longest = targets.shape[1] if targets.dim() == 2 else -(-targets.numel() // max(scores.shape[1], 1))
    time, batch = scores.shape[0], scores.shape[1]
    return scores.new_zeros((batch,)), scores.new_zeros((batch, time, 2 * longest + 1))


def batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What BatchNorm returns of a fake tensor: the output, and mean and deviation (empty in evaluation).

    On fake tensors torch takes BatchNorm apart into some twenty operations, which would be half the time that
    costing a convolutional network takes. Running averages have no content here to be updated.
    """
    training = rest[4]
    if not training and not x.is_cpu:
        return BATCH_NORM(x, *rest)
    saved = x.new_empty((x.shape[1] if training else 0,))
    return torch.empty_like(x), saved, torch.empty_like(saved)

"""Saved tensors: what autograd saves of a node that is not kept, in its forward and again in its replays.

Autograd's saved tensors are virtual (`torch.autograd.graph.saved_tensors_hooks`). In the forward of such a
node every saved tensor is thrown away and a handle left in its place; when autograd asks for the first of
them, the node is replayed (lines 1 to 3 of Algorithm 1, Gomez et al. 2017), which captures them all.
Parameters are handed back as they are, with a look at their version: nobody needs to compute them again.

A handle that is dead will never be asked for: a function may make a mask of its input and throw the product
away that the mask was made of. So every handle is watched, each by itself. Of what is dead nothing is
captured, and a node all of whose handles are dead by the end of the forward is silent.

Replays are compared with their forwards by samples: a few elements of what was saved and returned, as bytes.
A replay on values that inversion gave back differs from its forward by their rounding errors, so that samples
tell a suspicion and no more than that: the node runs once more on the same values, and a function that gives
other values then is not deterministic. On the forward's own values a suspicion is enough.
"""

from __future__ import annotations

import ctypes
import math
import struct
import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from revgraph.engine import _torch
from revgraph.engine.contexts import uncompiled
from revgraph.errors import ReplayError
from revgraph.expressions import leaves
from revgraph.storages import memory_key

if TYPE_CHECKING:
    from revgraph.engine.executable import PlannedOperation
    from revgraph.engine.observer import Observer
    from revgraph.engine.tape import Tape

Parameter = nn.Parameter
# Kernels fill memory that autograd saved before they ran (the noise of RReLU, running statistics). Samples of
# a saved tensor are taken when so many others were saved after it, or at the function's end.
FILLED_LATE = 4
RESULTS = -1


class SavedTensorHandle:
    """What autograd holds in place of a node's saved tensor. It has no `tape` until the forward is over."""

    __slots__ = ("__weakref__", "index", "operation", "tape")

    index: int
    operation: PlannedOperation
    tape: Tape | None


class SavedParameter:
    """A parameter (or a view of one) that autograd saved: held as it is, with its version."""

    __slots__ = ("node", "tensor", "version")

    node: str
    tensor: Tensor
    version: int


def stale_parameter(node: str, now: int, saved: int) -> str:
    return (
        f"a parameter of node {node!r} was changed in place between forward and backward (version {now}, "
        f"saved at {saved}). Run backward before the change."
    )


def jagged(operation: PlannedOperation) -> ReplayError:
    """What to raise where autograd saves a tensor whose shape is a number of its own, another each time."""
    return ReplayError(
        f"autograd saves a nested tensor in the jagged layout in {operation.describe()}, whose replay would "
        "make one of other lengths in torch's eyes. Keep the node: decisions "
        f"{{{operation.node!r}: 'keep'}}, or use padded tensors there."
    )


class SavedRecord:
    """The forms of what autograd saved in a node's forward, in order; `middle` of them before its law.

    A parameter, or a view of one, is not among them, unless it is among the node's inputs: a replay gets
    those as other tensors. Of storages in `ignored` no samples are taken, and without it of none.
    """

    __slots__ = ("_ignored", "_pending", "forms", "given", "handles", "middle", "samples")

    def __init__(self, given: Sequence[Any], ignored: Collection[int] | None) -> None:
        self.forms: list[tuple[torch.Size | None, torch.dtype]] = []
        self.handles: list[weakref.ref[SavedTensorHandle]] = []
        self.samples = Samples()
        self.middle = -1
        self._ignored = ignored
        self._pending: deque[Tensor] = deque()
        self.given: set[int] = set()
        for value in given:
            if isinstance(value, Parameter) or isinstance(getattr(value, "_base", None), Parameter):
                self.given.add(memory_key(value))

    def packing(self, operation: PlannedOperation, tape: Tape) -> Callable[[Tensor], Any]:
        """The hook that packs what the node saves."""
        forms, handles, pending, observer = self.forms, self.handles, self._pending, tape.observer
        samples, ignored = self._ignored is not None, self._ignored or ()

        def pack(tensor: Tensor) -> SavedTensorHandle | SavedParameter:
            base = tensor if tensor._base is None else tensor._base
            kind = type(base)
            if (kind is Parameter or (kind is not Tensor and isinstance(base, Parameter))) and not (
                self.given and memory_key(tensor) in self.given
            ):
                parameter = SavedParameter()
                parameter.tensor = tensor if tensor.grad_fn is None else tensor.detach()
                parameter.version = -1 if tensor.is_inference() else tensor._version
                parameter.node = operation.node
                return parameter
            if tape.noted is not None:
                tape.noted.append(tensor)
            handle = SavedTensorHandle()
            handle.index, handle.operation, handle.tape = len(forms), operation, None
            handles.append(weakref.ref(handle))
            if observer is not None:
                observer.saved(operation.node, handle.index, tensor)
            if samples and self.middle < 0:
                pending.append(tensor)
                if len(pending) > FILLED_LATE:
                    self.samples.saved.append(sample(pending.popleft(), ignored))
            if tensor.layout is torch.jagged:
                raise jagged(operation)
            forms.append((None if tensor.is_nested else tensor.shape, tensor.dtype))
            return handle

        return pack if _torch.frame_callback() is None else (lambda tensor: uncompiled(pack, tensor))

    @property
    def count(self) -> int:
        return len(self.forms)

    @property
    def is_silent(self) -> bool:
        """Whether nothing that was saved can be asked for any more."""
        return not any([handle() is not None for handle in self.handles])

    def end_function(self, results: tuple[Any, ...]) -> None:
        """The node's function has returned; what is saved from here on is its coupling rule's."""
        self.middle = len(self.forms)
        if self._ignored is not None:
            while self._pending:
                self.samples.saved.append(sample(self._pending.popleft(), self._ignored))
            self.samples.take_results(results)

    def end_forward(self, tape: Tape) -> None:
        """The node's forward is over: from here on what it saved may be asked for."""
        for reference in self.handles:
            handle = reference()
            if handle is not None:
                handle.tape = tape


class Captured:
    """What autograd saves while a node runs again: captured where `records`, dropped otherwise.

    `departed` are the saved tensors, by index, of which samples depart from `reference`, those of the forward
    if nothing else is given; RESULTS stands for what the function returned.
    """

    __slots__ = (
        "_limit",
        "_observer",
        "_pending",
        "_reference",
        "_saved",
        "_versions",
        "departed",
        "node",
        "records",
        "samples",
        "tensors",
    )

    def __init__(
        self,
        node: str,
        saved: SavedRecord,
        records: bool,
        observer: Observer | None = None,
        reference: Samples | None = None,
    ) -> None:
        self.node = node
        self.tensors: list[Tensor | None] = []
        self.records = records
        self.samples = Samples()
        self.departed: list[int] = []
        self._reference = reference or saved.samples
        self._versions: list[int] = []
        self._observer = observer
        self._pending: deque[tuple[int, Tensor]] = deque()
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
            if len(self.tensors) != self._limit:
                raise
            return None
        finally:
            while self._pending:
                self._compare(*self._pending.popleft())

    @property
    def hook(self) -> Callable[[Tensor], None]:
        """What is to be called with each tensor that autograd saves."""
        return (
            self.pack if _torch.frame_callback() is None else (lambda tensor: uncompiled(self.pack, tensor))
        )

    def pack(self, tensor: Tensor) -> None:
        saved = self._saved
        index = len(self.tensors)
        if not self.records or index == self._limit:
            return
        base = tensor if tensor._base is None else tensor._base
        kind = type(base)
        if (kind is Parameter or (kind is not Tensor and isinstance(base, Parameter))) and not (
            saved.given and memory_key(tensor) in saved.given
        ):
            return
        form = None if tensor.is_nested else tensor.shape, tensor.dtype
        if index >= len(saved.forms) or form != saved.forms[index]:
            raise SavesOthers(self._how(index, tensor))
        if index < len(self._reference.saved):
            self._pending.append((index, tensor))
            if len(self._pending) > FILLED_LATE:
                self._compare(*self._pending.popleft())
        if self._observer is not None:
            self._observer.captured(self.node, index, tensor)
        asked = saved.handles[index]() is not None
        self.tensors.append(tensor.detach() if asked else None)
        self._versions.append(-1 if tensor.is_inference() else tensor._version)
        if index + 1 == self._limit:
            raise Enough

    def end_function(self, results: Any) -> None:
        """Compare what the node's function returned; one that was stopped may return anything."""
        if len(self.tensors) == self._limit or not self._reference.results:
            return
        self.samples.take_results(results)
        if self.samples.results != self._reference.results:
            for before, now, result in zip(
                self._reference.results, self.samples.results, tensors_of(results), strict=False
            ):
                if departs(before, now, result):
                    self.departed.append(RESULTS)

    def check(self, operation: PlannedOperation) -> None:
        """Refuse what a replay captured if it is less than the forward saved, or was edited since."""
        if len(self.tensors) != self._saved.count:
            raise SavesOthers(self._how(len(self.tensors), None))
        for tensor, version in zip(self.tensors, self._versions, strict=True):
            if tensor is not None and version >= 0 and tensor._version != version:
                raise ReplayError(
                    f"{operation.describe()} edits a tensor in place that its own backward needs. Use the "
                    "out-of-place form there; ordinary autograd refuses such an edit too."
                )

    def _how(self, index: int, tensor: Tensor | None) -> str:
        """In which way this replay differs from its forward, at a saved tensor of this index."""
        count = self._saved.count
        if tensor is None or index >= count:
            now = str(index) if tensor is None else "more"
            return f"it saved {count} tensors in the forward and {now} now"
        (shape, dtype), (shape_now, dtype_now) = self._saved.forms[index], form_of(tensor)
        return (
            f"saved tensor {index} was {dtype} {list(shape or ())} in the forward and is {dtype_now} "
            f"{list(shape_now or ())} now"
        )

    def _compare(self, index: int, tensor: Tensor) -> None:
        before, now = self._reference.saved[index], sample(tensor)
        self.samples.saved.append(now)
        if departs(before, now, tensor):
            self.departed.append(index)


class SavesOthers(ReplayError):
    """A replay saves other tensors than its forward did; the text says in which way."""


class Enough(Exception):
    """Ends a replay once it has captured all that it is for, as torch's checkpoint ends a recomputation."""


def form_of(tensor: Tensor) -> tuple[torch.Size | None, torch.dtype]:
    """What must be the same of a tensor that is saved again; nested tensors have no shape."""
    return None if tensor.is_nested else tensor.shape, tensor.dtype


# Samples

BYTES = 16
# For each type: bytes of an element, the letter by which struct reads its numbers, and the departure that is
# suspicious, relative to the element or to the root mean square of its tensor.
KINDS: dict[torch.dtype, tuple[int, str, float]] = {
    torch.float64: (8, "d", 1e-6),
    torch.complex128: (16, "d", 1e-6),
    torch.float32: (4, "f", 1e-3),
    torch.complex64: (8, "f", 1e-3),
    torch.float16: (2, "e", 1e-2),
    torch.bfloat16: (2, "H", 5e-2),
}


class Samples:
    """Samples of what one evaluation of a node saved before its law, and of what its function returned."""

    __slots__ = ("results", "saved")

    def __init__(self) -> None:
        self.saved: list[bytes] = []
        self.results: list[bytes] = []

    def take_results(self, results: tuple[Any, ...]) -> None:
        self.results = [*map(sample, tensors_of(results))]


def tensors_of(results: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a function returned, without the containers around it."""
    for kind in map(type, results):
        if issubclass(kind, (tuple, list, dict)):
            return tuple(leaves(results))
    return results


def sample(tensor: Any, ignored: Collection[int] = ()) -> bytes:
    """The elements from the middle of a tensor on, as bytes; none where there is nothing to compare.

    From what is not contiguous it is one element. Nothing is taken from what is no plain tensor of
    floating-point numbers on the CPU (indices and masks may flip for a rounding error, and a GPU would have
    to be waited for), or whose storage is `ignored`. The memory is read directly: no operator runs that a
    counter or tracker could see.
    """
    kind = KINDS.get(tensor.dtype) if type(tensor) is Tensor else None
    if kind is None or not tensor.is_cpu or tensor.layout is not torch.strided:
        return b""
    storage = tensor.untyped_storage()
    if ignored and storage._cdata in ignored:
        return b""
    count, size = tensor.numel(), kind[0]
    start: int = tensor.storage_offset()  # pyright: ignore[reportAssignmentType]
    middle, length = count // 2, 1
    if tensor.is_contiguous():
        start += middle
        length = min(BYTES // size, count - middle)
    else:
        for extent, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
            middle, place = divmod(middle, max(extent, 1))
            start += place * stride
    # Zeros that torch does not write out, and what was given back, have no memory to read.
    if not count or (start + length) * size > storage.nbytes() or not tensor.data_ptr():
        return b""
    return ctypes.string_at(storage.data_ptr() + start * size, length * size)


def departs(before: bytes, now: bytes, tensor: Any) -> bool:
    """Whether a sample of `tensor` is another than `before`, by more than rounding explains."""
    if before == now or not before or not now:
        return False
    _, letter, bound = KINDS[tensor.dtype]
    common = min(len(before), len(now))  # the tensor may have lain otherwise in memory before
    if letter == "H":
        numbers = _of_bfloat16(before[:common]), _of_bfloat16(now[:common])
    else:
        form = f"={common // struct.calcsize(letter)}{letter}"
        numbers = struct.unpack(form, before[:common]), struct.unpack(form, now[:common])
    pairs: list[tuple[float, float]] = []
    for one, two in zip(*numbers, strict=True):
        if not (abs(one - two) <= bound * abs(two) or one == two or (math.isnan(one) and math.isnan(two))):
            pairs.append((one, two))
    if not pairs:
        return False
    # Elements near zero may depart by much of themselves; only they cost a look at the whole tensor.
    with _torch.unseen(), torch.no_grad():
        scale = torch.linalg.vector_norm(tensor.detach()).item() / tensor.numel() ** 0.5
    return any(not abs(one - two) <= bound * scale for one, two in pairs)


def _of_bfloat16(given: bytes) -> tuple[float, ...]:
    """The numbers in bytes; a bfloat16 is the upper half of a float32."""
    halves = struct.unpack(f"={len(given) // 2}H", given)
    return struct.unpack(f"={len(halves)}f", struct.pack(f"={len(halves)}I", *(n << 16 for n in halves)))

"""Memory of tensors: where it lies; and live bytes, counted as storages come and references let go."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from revgraph.expressions import leaves

# Of what tensors without a storage of their own are made up.
PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The tensors with storages that a tensor is made up of: itself, or indices and values of a sparse one.

    None of those that torch does not let be looked into (layouts of its MKL-DNN library).
    """
    if tensor.layout is torch.strided:
        return [tensor]
    names = PARTS.get(tensor.layout)
    if names is not None:
        return [getattr(tensor, name)() for name in names]
    return [] if tensor.layout is torch._mkldnn else [tensor]  # pyright: ignore


def memory_key(tensor: Tensor) -> int:
    """A number that tensors share which lie in the same memory: of the values, where a tensor is sparse."""
    if tensor.layout is torch.strided:
        return tensor.untyped_storage()._cdata
    parts = parts_of(tensor)
    return parts[-1].untyped_storage()._cdata if parts else id(tensor)


def bytes_of(tensor: Tensor) -> int:
    """The bytes of the storages that a tensor lies in."""
    storages = [part.untyped_storage() for part in parts_of(tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def faked(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """A tensor of the same form without memory, to be used out of inference mode.

    The mode's own way gives a sparse tensor no entries, so that what is made of indices and values would have
    other shapes and bytes, and makes an inference tensor of another.
    """
    if isinstance(tensor, FakeTensor) and tensor.fake_mode is mode:
        return tensor
    if _is_simple(tensor, mode):
        return _simply_faked(tensor, mode)
    sparse = tensor.layout in PARTS
    plain = tensor.layout is torch.strided and not tensor.is_nested
    if not (sparse or (plain and tensor.is_inference())):
        return mode.from_tensor(tensor, static_shapes=True)
    parts = [torch.empty_like(part.detach(), device="meta") for part in parts_of(tensor)]
    whole = parts[0]
    if sparse:
        is_coalesced = tensor.layout is torch.sparse_coo and tensor.is_coalesced()
        whole = sparse_tensor(parts, tensor.shape, tensor.layout, is_coalesced)
    fake = FakeTensor(mode, whole, tensor.device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, tensor.requires_grad)
    return fake.requires_grad_(tensor.requires_grad)


def blank_like(tensor: Tensor) -> Tensor:
    """A new tensor of another one's shape, type and device, laid out in order: fake where the other is.

    A fake one is made directly, for the mode's own way takes several times as long.
    """
    if not isinstance(tensor, FakeTensor):
        return tensor.new_empty(tensor.shape)
    blank = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return FakeTensor(tensor.fake_mode, blank, tensor.device)


def _is_simple(tensor: Tensor, mode: FakeTensorMode) -> bool:
    """Whether a tensor is a leaf that fills memory of its own, of which the mode knows nothing yet.

    Most parameters are, and the mode's own way, which is made for all tensors, takes several times as long.
    """
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        return False
    if tensor.is_nested or tensor.is_quantized or tensor.is_inference():
        return False
    if tensor.is_conj() or tensor.is_neg() or tensor._base is not None or tensor.storage_offset():
        return False
    if not tensor.is_leaf or tensor.grad is not None:
        return False
    storage, describer = tensor.untyped_storage(), mode.fake_tensor_converter.meta_converter.describer
    is_whole = storage.nbytes() == tensor.nbytes
    return is_whole and tensor not in describer.lookup_tensor and storage not in describer.lookup_storage


def _simply_faked(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    blank = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    fake = FakeTensor(mode, blank, tensor.device)
    fake.requires_grad_(tensor.requires_grad)
    if isinstance(tensor, nn.Parameter):
        fake._is_param = True
    # So that whatever else is this tensor or lies in its memory is made to be, or to lie in, this fake.
    converter = mode.fake_tensor_converter
    converter.set_tensor_memo(tensor, fake)
    memory = converter.meta_converter.describer.get_storage_id(tensor.untyped_storage())
    converter.meta_converter.storage_memo[memory] = fake.untyped_storage()
    return fake


def sparse_tensor(
    parts: Sequence[Tensor], shape: Sequence[int], layout: torch.layout, is_coalesced: bool
) -> Tensor:
    """The sparse tensor that is made up of these parts, in the order of `PARTS`; they are not looked into."""
    if layout is torch.sparse_coo:
        return torch.sparse_coo_tensor(
            parts[0], parts[1], tuple(shape), is_coalesced=is_coalesced, check_invariants=False
        )
    return torch.sparse_compressed_tensor(
        parts[0], parts[1], parts[2], tuple(shape), layout=layout, check_invariants=False
    )


# How `torch.tensor` hands over what it has just made: that is born there.
LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default)


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of storages that come up inside it, until they are freed.

    Storages of the tensors in `ignored` do not count, views count once. Works on real and on fake tensors.
    Every birth and death is logged, so that what turns out to be a parameter's gradient can be left out
    afterwards.

    What an operator reads and none has returned was there before (a constant in a closure, a buffer of
    another module), and does not count either, when a view of it is returned.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._ignored = {part.untyped_storage()._cdata for each in ignored for part in parts_of(each)}
        self._alive: dict[int, int] = {}
        self._log: list[tuple[int, int]] = []
        self._births = 0
        self._left: Counter[int] = Counter()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """That compiled code may run inside, for torch."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._seen(func, args, kwargs or {})

    def _seen(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator and notice the memory of its results."""
        if func not in LIFTS:
            self._leave_out_of_before(args, kwargs)
        result = func(*args, **kwargs)
        for leaf in leaves(result):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return result

    def see(self, tensor: Tensor) -> None:
        """Notice a tensor's memory, where it is new."""
        for part in parts_of(tensor):
            self._begin([part.untyped_storage()])

    @property
    def now(self) -> int:
        """A point in the log, to ask for what was live there or since."""
        return len(self._log)

    def live(self, at: int | None = None, without: Iterable[Tensor] = ()) -> int:
        """Bytes live at a point in the log (by default now), the storages of some tensors left out."""
        left_out = self._births_of(without)
        return sum(size for birth, size in self._log[:at] if birth not in left_out)

    def peak(self, since: int = 0, until: int | None = None, without: Iterable[Tensor] = ()) -> int:
        """The most bytes live at once between two points in the log."""
        left_out = self._births_of(without)
        total = most = sum(size for birth, size in self._log[:since] if birth not in left_out)
        for birth, size in self._log[since:until]:
            if birth not in left_out:
                total += size
                most = max(most, total)
        return most

    def _births_of(self, tensors: Iterable[Tensor]) -> set[int]:
        keys = {part.untyped_storage()._cdata for each in tensors for part in parts_of(each)}
        return {birth for key, birth in self._alive.items() if key in keys}

    def _leave_out_of_before(self, args: Any, kwargs: Any) -> None:
        """Do not count the storages of these operands that are unknown so far."""
        for leaf in leaves((args, kwargs) if kwargs else args):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self._alive and key not in self._ignored:
                    self._ignored.add(key)
                    weakref.finalize(storage, self._ignored.discard, key).atexit = False

    def _begin(self, storages: Sequence[UntypedStorage]) -> None:
        """Log the storages that are new as one birth, which ends when the last of them is gone."""
        new = {each._cdata: each for each in storages}
        new = {key: each for key, each in new.items() if key not in self._alive and key not in self._ignored}
        if not new:
            return
        self._births += 1
        size = sum([each.nbytes() for each in new.values()])
        self._left[self._births] = len(new)
        self._log.append((self._births, size))
        for key, each in new.items():
            self._alive[key] = self._births
            weakref.finalize(each, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        birth = self._alive.pop(key)
        self._left[birth] -= 1
        if not self._left[birth]:
            self._log.append((birth, -size))

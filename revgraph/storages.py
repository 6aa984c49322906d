"""Live bytes, counted by storage as tensor operations make them and references let them go."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from revgraph.expressions import leaves


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of storages that come up inside it, until they are freed.

    Storages of the tensors in `ignored` do not count, views count once. Works on real and on fake tensors.
    Every birth and death is logged, so that what turns out to be a parameter's gradient can be left out
    afterwards.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        self._alive: dict[int, int] = {}
        self._log: list[tuple[int, int]] = []
        self._births = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

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
        keys = {tensor.untyped_storage()._cdata for tensor in tensors}
        return {birth for key, birth in self._alive.items() if key in keys}

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in self._ignored:
            return
        self._births += 1
        self._alive[key] = self._births
        self._log.append((self._births, storage.nbytes()))
        weakref.finalize(storage, self._gone, key, storage.nbytes()).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._log.append((self._alive.pop(key), -size))

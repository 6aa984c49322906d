"""Live bytes where libraries free a tensor's memory under it, by resizing its storage to nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from revgraph.storages import StorageTracker, parts_of


class ResizingTracker(StorageTracker):
    """revgraph's tracker, which besides births and deaths of storages sees them resized.

    Resizing a storage is no tensor operation; while a tracker is in use, it watches
    `torch.UntypedStorage.resize_`, which does it.
    """

    def __enter__(self) -> ResizingTracker:
        self._sizes: dict[int, int] = {}
        self._resize = torch.UntypedStorage.resize_
        torch.UntypedStorage.resize_ = lambda storage, size: self._resized(storage, size)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize
        super().__exit__(*error)

    def see(self, tensor: Tensor) -> None:
        super().see(tensor)
        for part in parts_of(tensor):
            storage = part.untyped_storage()
            if storage._cdata in self._alive:
                self._sizes.setdefault(storage._cdata, storage.nbytes())

    def _resized(self, storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        result = self._resize(storage, size)
        key = storage._cdata
        if key in self._sizes:
            self._log.append((self._alive[key], storage.nbytes() - self._sizes[key]))
            self._sizes[key] = storage.nbytes()
        return result

    def _gone(self, key: int, size: int) -> None:
        super()._gone(key, self._sizes.pop(key))

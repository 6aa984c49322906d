"""Names of modules of user code that are read in other ways than as globals of the code that runs.

A local import (`from config import scale`), a module under another name, `getattr`, `sys.modules`: all of
them ask the module for an attribute. While a model is traced, modules of user code are of classes that see
this. What code reads of its own globals asks no module; that stands in its instructions (`calls.py`).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

Told = Callable[[ModuleType, str, Any, FrameType], None]


class NamespaceWatch:
    """Modules that tell of the attributes that are read of them, by this thread, until they are let go."""

    def __init__(self, told: Told, is_watched: Callable[[str], bool]) -> None:
        self._told = told
        self._is_watched = is_watched
        self._kinds: dict[type[ModuleType], type[ModuleType]] = {}
        self._modules: list[tuple[ModuleType, type[ModuleType]]] = []

    def watch_all(self) -> None:
        """Watch the modules that are there."""
        for name, module in [*sys.modules.items()]:
            if self._is_watched(name):
                self.watch(module)

    def watch(self, module: Any) -> None:
        """Watch one of them, which has come since; what is no module of Python's is left alone."""
        kind = type(module)
        if not issubclass(kind, ModuleType) or kind in self._kinds.values():
            return
        try:
            module.__class__ = self._telling(kind)
        except TypeError:  # a class of an extension's
            return
        self._modules.append((module, kind))

    def let_go(self) -> None:
        """Have all modules be as they were."""
        while self._modules:
            module, kind = self._modules.pop()
            module.__class__ = kind

    def _telling(self, kind: type[ModuleType]) -> type[ModuleType]:
        if kind not in self._kinds:
            told, thread, plain = self._told, threading.get_ident(), kind.__getattribute__

            def read(module: ModuleType, name: str) -> Any:
                value = plain(module, name)
                if threading.get_ident() == thread:
                    told(module, name, value, sys._getframe(1))
                return value

            self._kinds[kind] = type(kind.__name__, (kind,), {"__getattribute__": read})
        return self._kinds[kind]

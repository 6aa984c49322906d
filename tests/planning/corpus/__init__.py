"""Small nets as people write them, of many kinds, that plans are tried on.

Every module but two holds nets of one kind; a class that is decorated with `net` enters `NETS`. `tracker`
counts the bytes and FLOPs of a training step and shares no code with the package.
"""

from __future__ import annotations

import importlib
import pkgutil

from planning.corpus.registry import NETS, Entry

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["NETS", "Entry"]

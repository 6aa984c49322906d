"""What the engine does by itself runs as it is, also where torch.compile is at work around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_frames: Any = torch._C._dynamo.eval_frame  # pyright: ignore[reportAttributeAccessIssue]
_frame_callback: Callable[[], Any] = getattr(_frames, "get_eval_frame_callback", lambda: None)


# What the public torch.compiler.disable does, without its import of the compiler where nothing compiles.
@torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
def uncompiled(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `run` returns. To be called where `compiles()`; elsewhere call `run` itself."""
    return run(*args, **kwargs)


def compiles() -> bool:
    """Whether the compiler reads this code now, or would compile the functions that are called from here."""
    return torch.compiler.is_compiling() or _frame_callback() is not None

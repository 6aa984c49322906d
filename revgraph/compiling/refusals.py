"""Refusals: what torch's compiler cannot compile, told by node, place and reason.

What it cannot read (prints, calls into other libraries, branches on values), what it would compile anew on
every call (a counter), and operators that no backward may run again: such a form of call runs on the eager
engine instead, which runs any Python, and a `CompileWarning` says which node it is and why. What would fail
there as well, and a compiler that is missing, are errors.
"""

from __future__ import annotations

import random
import re
from collections import deque
from typing import Any

from torch import nn

from revgraph.compiling.marking import Marked
from revgraph.errors import PlanError, RevgraphError

NOTE = "This form of call runs on the eager engine instead."


class CannotCompile(PlanError):
    """What a node does is not for a compiled graph; the eager engine can run it."""


def refusal(error: Exception, marked: Marked) -> str:
    """What a user is told of an error that compiling ended in, where the engine is to run instead.

    "" where the user's own code raised it.

    Raises:
        RevgraphError: the engine would refuse it as well, or there is no compiler.
        Exception: `error` itself, where it is none of compiling.
    """
    from torch._dynamo import exc

    if isinstance(error, CannotCompile):
        return f"{error} {NOTE}"
    if isinstance(error, exc.BackendCompilerFailed):
        inner = error.inner_exception
        if isinstance(inner, CannotCompile):
            return f"{inner} {NOTE}"
        if isinstance(inner, RevgraphError):
            raise inner from None
        if type(inner).__name__ == "InvalidCxxCompiler":
            raise PlanError(
                "backend 'inductor' compiles with a C++ compiler, and there is none. Install g++ or clang++, "
                "or name one in the environment variable CXX; backend='aot' needs none."
            ) from error
        text = f"{type(inner).__name__}: {inner}".strip()
        return _told(marked.node_in(text), _reason(text))
    if not isinstance(error, (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)):
        raise error
    if isinstance(error, exc.FailOnRecompileLimitHit):
        return recompiled(marked, "more often than torch allows")
    text = str(error).strip()
    if text.startswith("Observed exception"):  # the user's own, which the engine will raise
        return ""
    return _told(marked.node_in(text), f"{_reason(text)}{_place(text)}")


def misread(model: nn.Module) -> str:
    """What a user is told of attributes that torch's compiler takes for what they are not; "" where none is.

    It draws from a generator of the code's own while it compiles, and never again, and it lets a bounded
    queue grow; both without a word.
    """
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            place = f"{path}.{name}" if path else name
            if isinstance(value, random.Random):
                what = "a generator of Python's, whose numbers torch's compiler takes for constants"
            elif isinstance(value, deque) and value.maxlen is not None:
                what = "a bounded queue, whose bound torch's compiler forgets"
            else:
                continue
            return f"the net cannot be compiled: {place} is {what}. {NOTE}"
    return ""


def recompiled(marked: Marked, how_often: str) -> str:
    """What a user is told of a function that was compiled anew again and again."""
    from torch._dynamo.utils import guard_failures

    reasons: list[Any] = guard_failures.get(marked.run.__code__, [])
    text = str(reasons[-1]) if reasons else ""
    held = re.sub(
        r"^[0-9/]+: |\w+\.__closure__\[[0-9]+\]\.cell_contents\.?", "", text.partition("#")[0]
    ).strip()
    return _told(
        marked.node_in(text),
        f"it was compiled anew {how_often}, for what it reads changes ({held!r} held no longer)",
    )


def _told(node: str, reason: str) -> str:
    where = f"node {node!r}" if node else "the net"
    return (
        f"{where} cannot be compiled: {reason}. {NOTE} What runs beside the tensors (prints, counters, "
        "branches on values) does not go into a graph: take it out of the forward to have it compiled."
    )


def _reason(text: str) -> str:
    """What torch's compiler says of an error, in one line."""
    reason = text.partition("\n")[0].rstrip(". ")
    explained = re.search(r"Explanation: *(.*\S)", text)
    return f"{reason}: {explained[1].rstrip('. ')}" if explained else reason


def _place(text: str) -> str:
    """The line of code that torch's compiler stopped at; none where that only calls a module of torch's."""
    _, _, stack = text.partition("from user code:")
    places = [
        (place.rpartition("site-packages/")[2], line, code)
        for place, line, code in re.findall(r'File "(.+)", line ([0-9]+), in .*\n +(.*)', stack)
        if not place.startswith("<revgraph ")
    ]
    return ' (file "{}", line {}: {})'.format(*places[-1]) if places else ""

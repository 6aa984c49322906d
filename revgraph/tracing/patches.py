"""Patches: how Python's and torch's entry points behave towards proxies while user code is traced."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MethodType
from typing import Any
from unittest.mock import patch

import torch
from torch.autograd.function import Function
from torch.nn import Module
from torch.utils import checkpoint
from torch.utils._device import DeviceContext

from revgraph.expressions import apply_function, leaves
from revgraph.tracing.evaluator import Evaluator
from revgraph.tracing.guards.torch_state import AUTOCAST
from revgraph.tracing.proxies import Untraceable, is_proxy, is_tensor
from revgraph.tracing.user_code import caller, is_users

FACTORIES = (
    *("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "randint", "zeros"),
    *("sparse_coo_tensor", "sparse_compressed_tensor", "sparse_csr_tensor", "sparse_csc_tensor"),
    *("sparse_bsr_tensor", "sparse_bsc_tensor"),
)
# In these a proxy may stand where C++ expects a number or a tuple; older releases of torch refuse that.
STRICT = ("add", "sub", "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack")
# The two methods that a reversible Function is given.
REVERSIBLE = (("forward", "inverse"), ("_forward", "_inverse"))
# What these say of a number type may be asked of a proxy's.
LIMITS = ("finfo", "iinfo")


@contextmanager
def patched(
    evaluator: Evaluator,
    checkpointed: Callable[[str], None],
    gradient_mode: Callable[[bool], bool],
    autocast: Callable[[str, tuple[Any, ...]], Any],
) -> Iterator[None]:
    """While user code is traced:

    - `isinstance` of a proxy answers as for the tensor it stands for (torch's C++ checks still see a proxy);
    - factories like `torch.zeros`, `torch.as_tensor`, and `autograd.Function`s, are recorded
      when they are given a proxy;
    - `gradient_mode` hears of it where the code asks for the gradient mode, which may be another one later;
    - `autocast` answers where the code asks for autocast, or is about to change it;
    - `torch.utils.checkpoint` calls its function and no more, and so do Functions that are told how to
      undo theirs, for the plan takes their place. The name of `checkpoint` may have been imported anywhere,
      so what it calls is patched: `checkpointed` hears the places.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.object(builtins, "isinstance", _is_instance(builtins.isinstance)))
        for name in (*FACTORIES, *STRICT, *LIMITS):
            stack.enter_context(patch.object(torch, name, _recording(getattr(torch, name))))
        stack.enter_context(patch.object(torch, "as_tensor", _converting(torch.as_tensor)))
        apply: Any = Function.__dict__["apply"]
        stack.enter_context(
            patch.object(Function, "apply", classmethod(_recording_apply(apply, checkpointed)))
        )
        passing = _passing(checkpoint._checkpoint_without_reentrant_generator, evaluator, checkpointed)
        stack.enter_context(patch.object(checkpoint, "_checkpoint_without_reentrant_generator", passing))
        asked = torch.is_grad_enabled
        tell: Any = lambda: gradient_mode(asked())  # noqa: E731
        stack.enter_context(patch.object(torch, "is_grad_enabled", _telling(asked, evaluator, tell)))
        for name in AUTOCAST:
            asked_of = getattr(torch, name)
            telling = _telling(asked_of, evaluator, partial(_answer, autocast, name))
            stack.enter_context(patch.object(torch, name, telling))
        enter = _entering(torch.autocast.__enter__, evaluator, autocast)
        stack.enter_context(patch.object(torch.autocast, "__enter__", enter))
        device = _changing_device(DeviceContext.__init__, evaluator)
        stack.enter_context(patch.object(DeviceContext, "__init__", device))
        stack.enter_context(patch.object(torch._dynamo.config, "error_on_nested_fx_trace", False))
        yield


def _changing_device(original: Any, evaluator: Evaluator) -> Any:
    """The start of a block with a default device, or of the program's new one, which no graph has inside."""

    def begin(context: Any, device: Any) -> None:
        if not evaluator.running and torch.device(device) != torch.get_default_device():
            raise Untraceable(
                f"it changes the default device to {device}; give the device where a tensor is made "
                "(device=...)"
            )
        original(context, device)

    return begin


def _is_instance(original: Callable[..., bool]) -> Callable[..., bool]:
    sample = torch.empty(0)

    def answer(thing: Any, kinds: Any) -> bool:
        if original(thing, kinds):
            return True
        if not is_proxy(thing):
            return False
        fake = thing.fake
        if is_tensor(fake):
            return original(sample, kinds)
        found = original(fake, kinds)
        if thing.node.op == "placeholder" and is_users(sys._getframe(1).f_globals.get("__name__", "")):
            thing.guarded_type()  # a number, which may be another kind of number later
        return found

    return answer


def _recording(factory: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Any:
        proxies = [leaf for leaf in leaves((args, kwargs)) if is_proxy(leaf)]
        if not proxies:
            return factory(*args, **kwargs)
        return proxies[0].tracer.create_proxy("call_function", factory, args, kwargs)

    return make


def _converting(convert: Any) -> Any:
    """`as_tensor`, which gives back a tensor as it is, but for the dtype and device asked for."""
    record = _recording(convert)

    def make(data: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_proxy(data) or not is_tensor(data.fake) or args or set(kwargs) - {"dtype", "device"}:
            return record(data, *args, **kwargs)
        asked = {name: value for name, value in kwargs.items() if value is not None}
        return data.to(**asked) if asked else data

    return make


def _passing(original: Any, evaluator: Evaluator, checkpointed: Callable[[str], None]) -> Any:
    """What `checkpoint` starts around a call of its function; while code is traced, nothing."""

    def around(*args: Any, **kwargs: Any) -> Iterator[None]:
        if evaluator.running:
            yield from original(*args, **kwargs)
            return
        checkpointed(caller())
        yield

    return around


def _recording_apply(original: Any, checkpointed: Callable[[str], None]) -> Any:
    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        proxies = [leaf for leaf in leaves((args, kwargs)) if is_proxy(leaf)]
        if not proxies:
            return original.__get__(None, cls)(*args, **kwargs)
        if (passed := passed_through(cls, args, checkpointed)) is not None:
            return passed()
        if cls.__module__.startswith("torch."):
            raise Untraceable(f"torch's own {cls.__name__} runs code that a graph cannot record")
        return proxies[0].tracer.create_proxy("call_function", apply_function, (cls, *args), kwargs)

    return apply


def passed_through(
    cls: type[Function], args: tuple[Any, ...], checkpointed: Callable[[str], None]
) -> Callable[[], Any] | None:
    """The call in a checkpoint, or in a Function that is told how to undo its function; None for others.

    `checkpointed` hears of the place.
    """
    if cls is checkpoint.CheckpointFunction:
        checkpointed(caller())
        function, _preserve, *inputs = args
        return partial(function, *inputs)
    if (given := _inputs_of_reversible(args)) is None:
        return None
    checkpointed(caller())

    def call() -> Any:
        results = args[0](*given)
        return results if isinstance(results, tuple) else (results,)

    return call


def _inputs_of_reversible(args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The inputs in a call of a reversible Function; None if it is none.

    Such a one frees what it is given and rebuilds it in the backward pass, as those of memcnn and PyTorch
    Geometric do: `apply(module.forward, module.inverse, ..., count, *inputs, *parameters)`.
    """
    methods = args[:2]
    if not all(type(each) is MethodType for each in methods) or len(methods) < 2:
        return None
    names = tuple(each.__func__.__name__ for each in methods)
    owner = methods[0].__self__
    if owner is not methods[1].__self__ or names not in REVERSIBLE or not issubclass(type(owner), Module):
        return None
    place = next((place for place in range(2, len(args)) if type(args[place]) not in (bool, int)), len(args))
    count = args[place - 1]
    return args[place : place + count] if type(count) is int and 0 < count <= len(args) - place else None


def _telling(
    original: Callable[..., Any], evaluator: Evaluator, tell: Callable[..., Any]
) -> Callable[..., Any]:
    """A question about torch's state that `tell` answers where user code asks."""

    def ask(*args: Any, **kwargs: Any) -> Any:
        asking = sys._getframe(1).f_globals.get("__name__", "")
        if evaluator.running or f"{asking}.".startswith(("torch.", "revgraph.")):
            return original(*args, **kwargs)
        return tell(*args, **kwargs)

    return ask


def _answer(autocast: Callable[[str, tuple[Any, ...]], Any], name: str, *args: Any, **kwargs: Any) -> Any:
    return autocast(name, (*args, *kwargs.values()))  # of which there is one, the device's type


def _entering(original: Any, evaluator: Evaluator, autocast: Callable[[str, tuple[Any, ...]], Any]) -> Any:
    """The start of an autocast block, which is another one where autocast is on around it."""

    def enter(block: Any) -> Any:
        asking = sys._getframe(1).f_globals.get("__name__", "")
        # Those of torch's own are decorators and older names of the same.
        inside = asking.startswith("torch.") and "amp" not in asking
        if evaluator.running or inside or asking.startswith("revgraph."):
            return original(block)
        device = block.device
        if autocast("is_autocast_enabled", (device,)) and not torch.is_autocast_enabled(device):
            raise Untraceable("it changes autocast, which is on around the call")
        return original(block)

    return enter

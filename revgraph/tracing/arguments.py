"""The arguments of a model's forward as a form: which are tensors, and what the others were."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from revgraph.errors import TraceError
from revgraph.program import Named


def form_of(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The form of a call: parameter names to trees of `Named` leaves and constants; and the named things.

    Tensors and plain numbers are named; None, flags, strings and other objects are part of the form.

    Raises:
        TraceError: the forward does not take these arguments.
    """
    named: dict[str, Any] = {}
    form = {
        name: _form(value, name, named)
        for name, value in bind(inspect.signature(model.forward), args, kwargs).items()
    }
    return form, named


def signature_of(model: type[nn.Module]) -> inspect.Signature:
    """How the model's forward is called, without annotations and default values."""
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    plain = [
        inspect.Parameter(
            each.name, each.kind, default=None if each.default is not each.empty else each.empty
        )
        for each in parameters
    ]
    return inspect.Signature(plain)


def bind(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by the names of the forward's parameters; `*args` and `**kwargs` come as one each.

    Raises:
        TraceError: the forward does not take these arguments.
    """
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise TraceError(f"the model's forward does not take these arguments: {error}") from None


def call_with(forward: Any, arguments: dict[str, Any], like: Any = None) -> Any:
    """The forward called with arguments that `bind` named, for the signature of `like` or its own."""
    bound = inspect.signature(like or forward).bind_partial()
    bound.arguments.update(arguments)
    return forward(*bound.args, **bound.kwargs)


def fill_form(form: Any, named: dict[str, Any]) -> Any:
    """The tree of a form with its `Named` leaves replaced by what they name."""
    if isinstance(form, Named):
        return named[form.name]
    if isinstance(form, dict):
        return {key: fill_form(item, named) for key, item in form.items()}
    if isinstance(form, (tuple, list)):
        items = [fill_form(item, named) for item in form]
        return type(form)(*items) if hasattr(form, "_fields") else type(form)(items)
    return form


def read_form(form: Any, given: Any, place: str, found: dict[str, Any]) -> None:
    """Read the things that a form names out of a call's arguments into `found`.

    Raises:
        TraceError: the arguments have another form; the text names the place.
    """
    if isinstance(form, Named):
        if isinstance(given, Tensor) or (isinstance(given, (int, float)) and not isinstance(given, bool)):
            found[form.name] = given
            return
        raise TraceError(
            f"argument {place} was a tensor or number in the trace and is {_text(given)} now; {AGAIN}"
        )
    if isinstance(form, dict):
        if not isinstance(given, dict) or set(given) != set(form):
            extra = sorted(_differences(form, given)) if isinstance(given, dict) else []
            where = f"differs in {', '.join(extra)}" if extra else f"is {_text(given)}"
            raise TraceError(f"{place} {where} from what was traced; {AGAIN}")
        for key, item in form.items():
            read_form(item, given[key], f"{key!r}" if place == "the call" else f"{place}[{key!r}]", found)
        return
    if isinstance(form, (tuple, list)):
        if not isinstance(given, (tuple, list)) or len(given) != len(form):
            raise TraceError(
                f"argument {place} had {len(form)} items in the trace and is {_text(given)} now; {AGAIN}"
            )
        for index, item in enumerate(form):
            read_form(item, given[index], f"{place}[{index}]", found)
        return
    if isinstance(given, Tensor) or not (given is form or given == form):
        raise TraceError(
            f"argument {place} was {_text(form)} in the trace and is {_text(given)} now; {AGAIN}"
        )


def _differences(form: dict[Any, Any], given: dict[Any, Any]) -> set[str]:
    """The keys that only one of two has; for `**kwargs`, which is a dictionary in itself, the keys in it."""
    names: set[str] = set()
    for key in set(form) ^ set(given):
        inner = form.get(key, given.get(key))
        names |= set(map(str, inner)) if isinstance(inner, dict) and inner else {str(key)}
    return names


AGAIN = "trace the model again with such arguments"


def _form(value: Any, name: str, named: dict[str, Any]) -> Any:
    if isinstance(value, Tensor) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        named[name] = value
        return Named(name)
    if isinstance(value, dict):
        return {key: _form(item, f"{name}.{key}", named) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_form(item, f"{name}.{index}", named) for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return (
        repr(value) if isinstance(value, (bool, int, float, str, type(None))) else f"a {type(value).__name__}"
    )

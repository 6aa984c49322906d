"""The arguments of a model's forward as a form: which are tensors, and what the others were."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

from torch import Tensor, nn
from torch.fx import Proxy

from revgraph.errors import TraceError
from revgraph.expressions import ObjectForm, leaves, with_pairs
from revgraph.isolation import HEAP_TYPE
from revgraph.program import Named
from revgraph.tracing.guards.random_sources import is_random_source


@dataclass(frozen=True, slots=True)
class Backward:
    """Stands for a weak reference from a part of an object to the object."""


def form_of(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The form of a call: parameter names to trees of `Named` leaves and constants; and the named things.

    Tensors and plain numbers are named, in attributes of objects that hold tensors, too; None, flags, strings
    and other things are part of the form.

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


class Lookup(Protocol):
    """What gives things by their names: a dictionary, or a forward that has run."""

    def __getitem__(self, name: str, /) -> Any: ...


def fill_form(form: Any, named: Lookup) -> Any:
    """The tree of a form with its `Named` leaves replaced by what they name, and new objects."""
    return _Filling(named).fill(form, None)


@dataclass(slots=True)
class _Filling:
    named: Lookup
    objects: dict[int, Any] = field(default_factory=dict)

    def fill(self, form: Any, whole: Any) -> Any:
        """`whole` is the object around."""
        if isinstance(form, ObjectForm):
            return self._object(form, whole)
        if isinstance(form, Backward):
            return weakref.ref(whole)
        if isinstance(form, Named):
            return self.named[form.name]
        if isinstance(form, dict):
            pairs = [(key, self.fill(item, whole)) for key, item in form.items()]
            return dict(pairs) if type(form) is dict else with_pairs(form, pairs)
        if isinstance(form, (tuple, list)):
            items = [self.fill(item, whole) for item in form]
            return type(form)(*items) if hasattr(form, "_fields") else type(form)(items)
        return form

    def _object(self, form: ObjectForm, whole: Any) -> Any:
        if form.number in self.objects:
            return self.objects[form.number]
        made: Any = new_object(form.kind)
        if form.number:
            self.objects[form.number] = made
        for name, item in form.fields.items():
            object.__setattr__(made, name, self.fill(item, made if whole is None else whole))
        return made


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
    if isinstance(form, ObjectForm):
        if type(given) is not form.kind:
            raise TraceError(
                f"argument {place} was a {form.kind.__name__} in the trace and is {_text(given)} now; {AGAIN}"
            )
        fields = fields_of(given)
        if fields.keys() != form.fields.keys():
            names = ", ".join(sorted(fields.keys() ^ form.fields.keys()))
            raise TraceError(f"argument {place} differs in {names} from what was traced; {AGAIN}")
        for name, item in form.fields.items():
            read_form(item, fields[name], f"{place}.{name}", found)
        return
    if isinstance(form, Backward):
        return
    if isinstance(form, dict):
        if not isinstance(given, dict) or set(given) != set(form):
            extra = sorted(_differences(form, given)) if isinstance(given, dict) else []
            where = f"differs in {', '.join(extra)}" if extra else f"is {_text(given)}"
            raise TraceError(f"{place} {where} from what was traced; {AGAIN}")
        if place != "the call" and [*form] != [*given]:  # code may go through them
            raise TraceError(f"{place} has its keys in another order than in the trace; {AGAIN}")
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
    if isinstance(given, Tensor) or not _is_equal(form, given):
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


def check_unchanged(arguments: dict[str, Any], named: dict[str, Any]) -> None:
    """Hold a forward to its arguments as they were: a graph would not put a result into them.

    Raises:
        TraceError: something traced has been put into an argument.
    """
    known = {id(each) for each in named.values()}
    for name, tree in arguments.items():
        for place, leaf in _walk(tree, name, set()):
            if id(leaf) not in known:
                raise TraceError(
                    f"the forward puts a result into its argument {place}, where a graph cannot put it. "
                    "Return it instead, or let a submodule do so, which then becomes one node."
                    + _advice(name)
                )


def _advice(argument: str) -> str:
    """What to do where the argument is a cache, which decoding fills."""
    if "past" not in argument and "cache" not in argument:
        return ""
    return (
        " For decoding with a cache, call the model itself, as net.generate does; for training, give none "
        "(use_cache=False)."
    )


def _walk(tree: Any, place: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The traced values in an argument with their places."""
    if issubclass(type(tree), Proxy):
        yield place, tree
    elif id(tree) in seen:
        return
    elif issubclass(type(tree), dict):
        seen.add(id(tree))
        for key, item in tree.items():
            yield from _walk(item, f"{place}[{key!r}]", seen)
    elif issubclass(type(tree), (tuple, list)):
        seen.add(id(tree))
        for index, item in enumerate(tree):
            yield from _walk(item, f"{place}[{index}]", seen)
    elif is_structured(tree):
        seen.add(id(tree))
        for name, item in fields_of(tree).items():
            yield from _walk(item, f"{place}.{name}", seen)


def _is_equal(form: Any, given: Any) -> bool:
    try:
        if given is form or type(given) is not type(form):  # True is no 1, and a string enum no string
            return given is form
        return repr(given) == repr(form) if isinstance(form, float) else bool(given == form)
    except Exception:  # arrays, and what cannot be compared
        return False


def is_structured(value: Any) -> bool:
    """Whether a value is an object of user code whose attributes can be gone through."""
    kind = type(value)
    return (
        (bool(kind.__flags__ & HEAP_TYPE) or kind is SimpleNamespace)
        and (hasattr(value, "__dict__") or dataclasses.is_dataclass(value))
        and not isinstance(value, (type, enum.Enum, nn.Module, Tensor, Proxy, weakref.ref))
        and not is_random_source(value)
        and kind.__module__.partition(".")[0] not in ("torch", "revgraph", "builtins", "functools")
    )


def new_object(kind: type) -> Any:
    """An object of this class without attributes; nothing of the class's own runs."""
    return (SimpleNamespace if issubclass(kind, SimpleNamespace) else object).__new__(kind)


def fields_of(value: Any) -> dict[str, Any]:
    """An object's attributes."""
    if dataclasses.is_dataclass(value):
        names = (each.name for each in dataclasses.fields(value))
        slots = {name: getattr(value, name) for name in names if hasattr(value, name)}
        return {**slots, **getattr(value, "__dict__", {})}
    return dict(vars(value))


def holds_objects(tree: Any) -> bool:
    """Whether there are objects of user code among the leaves of a tree."""
    return any(not issubclass(type(leaf), Proxy) and is_structured(leaf) for leaf in leaves(tree))


def objects_in(tree: Any) -> set[int]:
    """The identities of the objects of user code in a tree, and in the attributes of such."""
    found: set[int] = set()
    pending = [tree]
    while pending:
        for leaf in leaves(pending.pop()):
            if not issubclass(type(leaf), Proxy) and is_structured(leaf) and id(leaf) not in found:
                found.add(id(leaf))
                pending.append(fields_of(leaf))
    return found


def _holds_tensors(value: Any, seen: frozenset[int] = frozenset()) -> bool:
    if isinstance(value, Tensor):
        return True
    if id(value) in seen:
        raise TraceError(
            f"an argument of class {type(value).__name__} holds itself: give its tensors instead"
        )
    seen |= {id(value)}
    if isinstance(value, dict):
        return any(_holds_tensors(each, seen) for each in value.values())
    if isinstance(value, (tuple, list)):
        return any(_holds_tensors(each, seen) for each in value)
    return is_structured(value) and any(_holds_tensors(each, seen) for each in fields_of(value).values())


def _settled(value: Any) -> Any:
    """The form of a thing without tensors, whose numbers are constants."""
    if is_structured(value):
        return ObjectForm(type(value), {key: _settled(item) for key, item in fields_of(value).items()})
    if isinstance(value, dict):
        return {key: _settled(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_settled(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _form(value: Any, name: str, named: dict[str, Any], inside: bool = False) -> Any:
    if isinstance(value, Tensor) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        named[name] = value
        return Named(name)
    if isinstance(value, dict):
        return {key: _form(item, f"{name}.{key}", named, inside) for key, item in value.items()}
    if isinstance(value, weakref.ref) and inside:
        return Backward()
    if is_structured(value):
        # Settings without tensors are no inputs: a call with other ones is of another form.
        if not _holds_tensors(value):
            return ObjectForm(type(value), {key: _settled(item) for key, item in fields_of(value).items()})
        items = {key: _form(item, f"{name}.{key}", named, True) for key, item in fields_of(value).items()}
        return ObjectForm(type(value), items)
    if isinstance(value, (tuple, list)):
        items = [_form(item, f"{name}.{index}", named, inside) for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return (
        repr(value) if isinstance(value, (bool, int, float, str, type(None))) else f"a {type(value).__name__}"
    )

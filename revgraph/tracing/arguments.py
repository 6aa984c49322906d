"""The arguments of a model's forward as a form: which are tensors, and what the others were."""

from __future__ import annotations

import copy
import dataclasses
import enum
import inspect
import sys
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache
from types import MemberDescriptorType, SimpleNamespace
from typing import Any, Protocol

from torch import Tensor, nn
from torch.fx import Proxy

from revgraph.errors import TraceError
from revgraph.expressions import ObjectForm, leaves, with_pairs
from revgraph.isolation import HEAP_TYPE
from revgraph.program import Named
from revgraph.tracing.guards.fixed_values import PLAIN, Snapshot, same, snapshot
from revgraph.tracing.guards.random_sources import is_random_source
from revgraph.tracing.proxies import OtherForm


@dataclass(frozen=True, slots=True)
class Backward:
    """Stands for a weak reference from a part of an object to the object."""


@dataclass(frozen=True, slots=True)
class Held:
    """Something whose content may change, and what it was: a set, a deque, an array, a partial function."""

    value: Any
    content: Snapshot


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
        if isinstance(form, Held):
            return copy.copy(form.value)  # which the code may change
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
        if is_input(given):
            found[form.name] = given
            return
        raise _other(
            place, f"argument {place} was a tensor or number in the trace and is {_text(given)} now", given
        )
    if isinstance(form, ObjectForm):
        if type(given) is not form.kind:
            was = form.kind.__name__
            raise _other(place, f"argument {place} was a {was} in the trace and is {_text(given)} now", given)
        fields = fields_of(given)
        if fields.keys() != form.fields.keys():
            names = ", ".join(sorted(fields.keys() ^ form.fields.keys()))
            raise _other(place, f"argument {place} differs in {names} from what was traced")
        for name, item in form.fields.items():
            read_form(item, fields[name], f"{place}.{name}", found)
        return
    if isinstance(form, Backward):
        return
    if isinstance(form, dict):
        if type(given) is not type(form) or form.keys() != given.keys():
            extra = sorted(_differences(form, given)) if isinstance(given, dict) else []
            where = f"differs in {', '.join(extra)}" if extra else f"is {_text(given)}"
            raise _other(place, f"{place} {where} from what was traced", given)
        if place != "the call" and [*map(_key, form)] != [*map(_key, given)]:  # code may go through them
            raise _other(place, f"{place} has other keys, or in another order, than in the trace")
        for key, item in form.items():
            read_form(item, given[key], f"{key!r}" if place == "the call" else f"{place}[{key!r}]", found)
        return
    if isinstance(form, (tuple, list)) and not isinstance(form, PLAIN):
        if type(given) is not type(form) or len(given) != len(form):
            what = f"a {type(form).__name__} of {len(form)} items"
            raise _other(place, f"argument {place} was {what} in the trace and is {_text(given)} now", given)
        for index, item in enumerate(form):
            read_form(item, given[index], f"{place}[{index}]", found)
        return
    if isinstance(form, Held):
        if not same(snapshot(given), form.content):
            raise _other(place, f"argument {place}, a {form.content.kind.__name__}, has other content now")
        return
    if isinstance(given, Tensor) or not _is_equal(form, given):
        text = f"argument {place} was {_text(form)} in the trace and is {_text(given)} now"
        raise _other(place, text, form, given)


def is_input(value: Any) -> bool:
    """Whether an argument is an input of the graph: a tensor, or a number that is no flag and no enum."""
    return isinstance(value, Tensor) or (
        isinstance(value, (int, float)) and not isinstance(value, (bool, enum.Enum))
    )


def _other(place: str, text: str, *forms: Any) -> OtherForm:
    """The error of a call in another form. Flags, and what is given or not, have few of them."""
    few = any(each is None or isinstance(each, (bool, Named)) for each in forms)
    return OtherForm(f"{text}; {AGAIN}", "" if few else f"the argument {place}")


def _key(key: Any) -> tuple[type, Any]:
    return type(key), key  # for 1, 1.0 and True are one key


def _differences(form: dict[Any, Any], given: dict[Any, Any]) -> set[str]:
    """The keys that only one of two has; for `**kwargs`, which is a dictionary in itself, the keys in it."""
    names: set[str] = set()
    for key in set(form) ^ set(given):
        inner = form.get(key, given.get(key))
        names |= set(map(str, inner)) if isinstance(inner, dict) and inner else {str(key)}
    return names


PLAIN_BASES = (object, SimpleNamespace)
AGAIN = "trace the model again with such arguments"


def held_in(form: dict[str, Any], model: nn.Module) -> list[str]:
    """The names of the inputs that are tensors of a container or object, and no arguments themselves."""
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found: list[str] = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        tree = form.get(name)
        if parameter.kind in many and tree is not None:
            trees = [*(tree.values() if isinstance(tree, dict) else tree)]
        else:
            trees = [tree]
        held = [leaf for each in trees if type(each) is not Named for leaf in leaves(each)]
        found += [leaf.name for leaf in held if type(leaf) is Named]
    return found


def look_into(
    tree: Any,
    path: str,
    thing: Callable[[Any, str], None],
    argument: Callable[[Any, Collection[str], str], None],
) -> None:
    """Tell of what is held in arguments: `argument` of objects that a form takes apart, `thing` of others."""
    for leaf in leaves(tree):
        if issubclass(type(leaf), Proxy):
            continue
        if is_structured(leaf):
            fields = fields_of(leaf)
            argument(leaf, fields, path)
            look_into(fields, path, thing, argument)
        else:
            thing(leaf, path)


def check_unchanged(form: Any, arguments: dict[str, Any], named: dict[str, Any]) -> None:
    """Hold a forward to its arguments as they were: a graph would not change them.

    Raises:
        TraceError: something has been put into an argument, taken out of it, or changed in it.
    """
    before = fill_form(form, named)
    for name, tree in arguments.items():
        if place := _change(before[name], tree, name, set()):
            raise TraceError(
                f"the forward puts a result into its argument {place}, or changes it, which a graph would "
                "not do. Return the result instead, and change the argument outside of the net."
                + _advice(name)
            )


def _change(before: Any, now: Any, place: str, seen: set[int]) -> str:
    """The first place in which an argument differs from what it was; "" if there is none."""
    kind = type(now)
    if now is before or id(now) in seen:
        return ""
    if kind is not type(before) or issubclass(kind, Proxy):
        return place
    seen.add(id(now))
    if is_structured(now):
        return _change(fields_of(before), fields_of(now), place, seen)
    if issubclass(kind, dict):
        if [*map(_key, before)] != [*map(_key, now)]:
            return place
        pairs = [(before[key], now[key], f"{place}[{key!r}]") for key in now]
    elif issubclass(kind, (tuple, list)):
        if len(before) != len(now):
            return place
        pairs = [(before[index], each, f"{place}[{index}]") for index, each in enumerate(now)]
    elif isinstance(content := snapshot(before), Snapshot):
        return "" if same(snapshot(now), content) else place
    else:
        return "" if issubclass(kind, weakref.ref) or _is_equal(before, now) else place
    return next(filter(None, (_change(*each, seen) for each in pairs)), "")


def _advice(argument: str) -> str:
    """What to do where the argument is a cache, which decoding fills."""
    if "past" not in argument and "cache" not in argument:
        return ""
    return (
        " For decoding with a cache, call the model itself, as net.generate does; for training, give none "
        "(use_cache=False)."
    )


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
    package = kind.__module__.partition(".")[0]
    return (
        all(base in PLAIN_BASES or base.__flags__ & HEAP_TYPE for base in kind.__mro__)
        and kind is not object
        and (
            hasattr(value, "__dict__")
            or dataclasses.is_dataclass(value)
            or (bool(_slots_of(kind)) and package not in sys.stdlib_module_names)
        )
        and not isinstance(value, (type, enum.Enum, nn.Module, Tensor, Proxy, weakref.ref))
        and not is_random_source(value)
        and (kind is SimpleNamespace or package not in ("torch", "revgraph", "builtins", "functools"))
    )


@lru_cache(maxsize=1024)
def _slots_of(kind: type) -> tuple[str, ...]:
    """The names of the attributes that objects of a class have in slots."""
    return tuple(
        name
        for base in kind.__mro__
        if base not in PLAIN_BASES
        for name, each in vars(base).items()
        if isinstance(each, MemberDescriptorType)
    )


def new_object(kind: type) -> Any:
    """An object of this class without attributes; nothing of the class's own runs."""
    return (SimpleNamespace if issubclass(kind, SimpleNamespace) else object).__new__(kind)


def fields_of(value: Any) -> dict[str, Any]:
    """An object's attributes."""
    names: Any = _slots_of(type(value))
    if dataclasses.is_dataclass(value):
        names = dict.fromkeys((*(each.name for each in dataclasses.fields(value)), *names))
    slots = {name: getattr(value, name) for name in names if hasattr(value, name)}
    return {**slots, **getattr(value, "__dict__", {})}


def holds_objects(tree: Any) -> bool:
    """Whether there are objects of user code among the leaves of a tree."""
    return any(not issubclass(type(leaf), Proxy) and is_structured(leaf) for leaf in leaves(tree))


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """A list or dictionary, and what was in it."""

    container: Any
    items: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Content) or self.container is not other.container:
            return False
        pairs = zip(leaves(self.items), leaves(other.items), strict=False)
        return len(self.items) == len(other.items) and all(one is two for one, two in pairs)

    def put_back(self) -> None:
        self.container.clear()
        (self.container.extend if type(self.container) is list else self.container.update)(self.items)


def contents(tree: Any) -> list[Content]:
    """The lists and dictionaries in a tree, from the outermost in."""
    kind, found = type(tree), list[Content]()
    if kind in (list, dict):
        found.append(Content(tree, copy.copy(tree)))
    if kind in (tuple, list, dict):
        for item in tree.values() if kind is dict else tree:
            found += contents(item)
    return found


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
    return _parts(value, lambda item, _: _settled(item))


def _form(value: Any, name: str, named: dict[str, Any], inside: bool = False) -> Any:
    if is_input(value):
        named[name] = value
        return Named(name)
    if isinstance(value, weakref.ref) and inside:
        return Backward()
    if is_structured(value):
        # Settings without tensors are no inputs: a call with other ones is of another form.
        if not _holds_tensors(value):
            return _settled(value)
        items = {key: _form(item, f"{name}.{key}", named, True) for key, item in fields_of(value).items()}
        return ObjectForm(type(value), items)
    return _parts(value, lambda item, place: _form(item, f"{name}.{place}", named, inside))


def _parts(value: Any, form: Callable[[Any, Any], Any]) -> Any:
    """The form of a container, given that of its items; and of what is none, that it is the same."""
    kind = type(value)
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, dict):
        pairs = [(key, form(item, key)) for key, item in value.items()]
        return dict(pairs) if kind is dict else with_pairs(value, pairs)
    if isinstance(value, (tuple, list)):
        items = [form(item, index) for index, item in enumerate(value)]
        return kind(*items) if hasattr(value, "_fields") else kind(items)
    content = snapshot(value)
    return Held(copy.copy(value), content) if isinstance(content, Snapshot) else value


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return (
        repr(value) if isinstance(value, (bool, int, float, str, type(None))) else f"a {type(value).__name__}"
    )

"""The registry: the only modules that a specification can name, and how they are made from arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from revgraph import bijections, blocks, couplings, wiring
from revgraph.couplings import Coupling, function_names
from revgraph.dynamics import DualResidual, Leapfrog, Midpoint, Momentum
from revgraph.errors import RevgraphError, SpecError
from revgraph.joint_bijections import Bijection
from revgraph.specs.hints import listed, meant, shortened
from revgraph.specs.vocabulary import TORCH
from revgraph.wiring import Wiring

Factory = Callable[..., nn.Module]

# Keys of a layer besides its module's name: no module can have such a name.
LAYER_KEYS = ("in", "with", "out", "target", "others", "repeat", "layers", "inputs", "outputs", "use")
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
PLACEMENT = ("device", "dtype")
FUNCTION_NAMES = ("f", "g", "f1")
KINDS: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}


def _concrete(module: object, base: type[nn.Module]) -> dict[str, Factory]:
    """The subclasses of `base` that a module of revgraph defines and that can be instantiated."""
    return {
        name: kind
        for name, kind in vars(module).items()
        if inspect.isclass(kind)
        and issubclass(kind, base)
        and not inspect.isabstract(kind)
        and not name.startswith("_")
    }


BUILT_IN: Mapping[str, Factory] = {
    **TORCH,
    **_concrete(couplings, Coupling),
    **_concrete(bijections, Coupling),
    "Bijection": Bijection,
    **{kind.__name__: kind for kind in (Momentum, Midpoint, Leapfrog, DualResidual)},
    **_concrete(wiring, Wiring),
    **{name: getattr(blocks, name) for name in blocks.__all__},
}
_registered: dict[str, Factory] = {}


def register(name: str, factory: Factory) -> None:
    """Let specifications name a module of your own: `{name: arguments}` calls `factory(arguments)`.

    The factory is a module class or a function that returns a module. It may be called more than once for a
    layer: first on the meta device, to know the module's size. A module whose forward returns several tensors
    says how many in an attribute `outputs`. Registering a name again replaces what it stood for.

    Raises:
        SpecError: the name is no word, or is revgraph's or torch's own.

    Example:
        >>> import torch
        >>> from revgraph import specs
        >>> specs.register("Doubled", lambda size: torch.nn.Linear(size, 2 * size))
        >>> net = specs.build({"inputs": {"x": [3]}, "layers": [{"wide": {"Doubled": 3}}]}).module
        >>> net(torch.zeros(1, 3)).shape
        torch.Size([1, 6])
    """
    if not isinstance(name, str) or not WORD.fullmatch(name) or name in LAYER_KEYS:
        raise SpecError(
            f"{name!r} cannot name a module: use letters, digits and underscores, and no layer's key"
        )
    if name in BUILT_IN:
        raise SpecError(
            f"{name!r} names a module of revgraph or torch already: register yours under another name"
        )
    if not callable(factory):
        raise SpecError(
            f"{name!r} must be registered with a module class or a function, not {type(factory).__name__}"
        )
    _registered[name] = factory


def is_module(name: str) -> bool:
    """Whether a specification can name this module."""
    return name in _registered or name in BUILT_IN


def require(name: str, where: str) -> None:
    """Raises SpecError where no such module is registered."""
    if not is_module(name):
        hint = meant(name, [*_registered, *BUILT_IN]) or (
            " A specification names modules of torch.nn, revgraph's own, and those that you register with "
            "rg.register(name, factory)."
        )
        raise SpecError(f"{where}: there is no module {shortened(name)}.{hint}")


def is_users(name: str) -> bool:
    """Whether the module was registered by the user."""
    return name in _registered


def create(name: str, positional: Sequence[Any], keywords: Mapping[str, Any], where: str) -> nn.Module:
    """The module that the named factory makes from these arguments.

    A coupling's functions, given as f, g or f1, f2 and so on, are handed to a coupling class in this order.

    Raises:
        SpecError: the factory refuses the arguments, for whatever reason.
    """
    factory = _registered[name] if name in _registered else BUILT_IN[name]
    if inspect.isclass(factory) and issubclass(factory, Coupling) and _takes_functions(factory):
        if positional:
            raise SpecError(
                f"{where}: {name} takes its arguments by name, as in {{{name}: {{f: ..., g: ...}}}}"
            )
        positional, keywords = _with_functions(name, keywords, where)
    signature = _signature(factory)
    if signature is not None:
        _check(name, signature, positional, keywords, where)
    try:
        module = factory(*positional, **keywords)
    except RevgraphError:
        raise
    except Exception as error:  # whatever a constructor raises: the place in the specification is what helps
        raise SpecError(f"{where}: {name} cannot be made from these arguments: {error}") from error
    if not isinstance(module, nn.Module):
        raise SpecError(
            f"{where}: what is registered as {name!r} made {type(module).__name__}, which is no module"
        )
    return module


def _takes_functions(kind: type[Coupling]) -> bool:
    """Whether a coupling is made with functions, rather than as a bijection of one stream."""
    signature = _signature(kind)
    return signature is None or any(
        each.kind is each.VAR_POSITIONAL or each.name in FUNCTION_NAMES
        for each in signature.parameters.values()
    )


def _with_functions(
    name: str, keywords: Mapping[str, Any], where: str
) -> tuple[list[nn.Module], dict[str, Any]]:
    functions = {key: value for key, value in keywords.items() if isinstance(value, nn.Module)}
    expected = function_names(len(functions))
    if set(functions) != set(expected):
        raise SpecError(
            f"{where}: {name} has {len(functions)} functions, which are called {listed(expected)}, "
            f"not {listed(functions)}"
        )
    options = {key: value for key, value in keywords.items() if key not in functions}
    return [functions[key] for key in expected], options


def _signature(factory: Factory) -> inspect.Signature | None:
    try:
        return inspect.signature(factory)
    except (ValueError, TypeError):
        return None


def _check(
    name: str,
    signature: inspect.Signature,
    positional: Sequence[Any],
    keywords: Mapping[str, Any],
    where: str,
) -> None:
    """Raises SpecError where the arguments do not fit the factory's parameters."""
    takes = [key for key in signature.parameters if key not in PLACEMENT]
    variadic = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
    for key in keywords:
        if key not in signature.parameters and not variadic:
            raise SpecError(
                f"{where}: {name} has no argument {key!r}.{meant(key, takes)} It takes {listed(takes)}."
            )
    try:
        bound = signature.bind(*positional, **keywords)
    except TypeError as error:
        raise SpecError(f"{where}: {name}: {error}. It takes {listed(takes) or 'no arguments'}.") from None
    for key, value in bound.arguments.items():
        if key in PLACEMENT and name in BUILT_IN:
            raise SpecError(
                f"{where}: a specification says nothing about {key}: use .to() on the loaded network"
            )
        parameter = signature.parameters[key]
        kinds = KINDS.get(getattr(parameter.annotation, "__name__", str(parameter.annotation)))
        if kinds is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue  # an annotation less simple than one of these is left to the factory
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise SpecError(
                f"{where}: {name}'s {key} must be of type {kinds[-1].__name__}, not {shortened(repr(value))}"
            )

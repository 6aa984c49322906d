"""Traced calls as expressions: the form in which a program runs them, and in which a graph shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, Literal

from torch import fx

from revgraph.expressions import Call, Expression, Register, expression, leaves, map_leaves
from revgraph.tracing.structures import STRUCTURE, check_structure

KINDS: dict[str, Literal["module", "function", "method", "attribute"]] = {
    "call_module": "module",
    "call_function": "function",
    "call_method": "method",
    "get_attr": "attribute",
}


def expression_of(
    region: Iterable[fx.Node],
    inputs: tuple[fx.Node, ...],
    outputs: tuple[fx.Node, ...],
    where: Mapping[fx.Node, str],
) -> Expression:
    """The calls of a region, in order, as an expression of its inputs. Attributes are read inside.

    Calls whose results the code took apart are held to their structure.
    """
    places: dict[Any, int] = {node: index for index, node in enumerate(inputs)}
    calls: list[Call] = []
    read = [node for node in outputs if node.op == "get_attr"]
    for node in (*region, *read):
        for other in (*(each for each in node.all_input_nodes if each.op == "get_attr"), node):
            if other not in places:
                places[other] = len(places)
                calls.append(as_call(other, places, where))
                if STRUCTURE in other.meta:
                    place = places[STRUCTURE, other] = len(places)
                    calls.append(_check_of(other, places[other], place, where))
    return expression(calls, len(inputs), tuple(places[node] for node in outputs))


def _check_of(node: fx.Node, place: int, result: int, where: Mapping[fx.Node, str]) -> Call:
    """The check that a call gives what the code around it was traced to go through."""
    args = (Register(place), node.meta[STRUCTURE])
    return Call("function", check_structure, args, {}, result, (), where.get(node, ""))


def expression_of_terms(
    region: Iterable[fx.Node],
    inputs: tuple[fx.Node, ...],
    terms: tuple[fx.Node, ...],
    extra_results: tuple[fx.Node, ...],
    where: Mapping[fx.Node, str],
) -> Expression:
    """As `expression_of`, with the terms as the first output, several of them as a tuple."""
    found = expression_of(region, inputs, (*terms, *extra_results), where)
    if len(terms) == 1:
        return found
    terms_at = tuple(Register(index) for index in found.outputs[: len(terms)])
    packed = Call("function", _tuple_of, terms_at, {}, found.size, ())
    outputs = (found.size, *found.outputs[len(terms) :])
    return expression((*found.calls, packed), found.inputs, outputs)


def _tuple_of(*terms: Any) -> tuple[Any, ...]:
    return terms


def expression_of_function(
    path: str, others: int, node: fx.Node, where: Mapping[fx.Node, str]
) -> tuple[Expression, tuple[fx.Node, ...]]:
    """A coupling's function, called on `others` values and the keyword arguments that `node` was given.

    Returned with the traced values among the latter, which are inputs after the others.
    """
    args = tuple(Register(index) for index in range(others))
    return _expression_of_call("module", path, others, args, dict(node.kwargs), where.get(node, ""), where)


def expression_of_conditions(
    args: Iterable[Any], kwargs: dict[str, Any], place: str, where: Mapping[fx.Node, str]
) -> tuple[Expression, tuple[fx.Node, ...]]:
    """These arguments as one result; and the traced values in them."""
    return _expression_of_call("function", conditions, 0, tuple(args), kwargs, place, where)


def conditions(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a call is given, for another call."""
    return args, kwargs


def _expression_of_call(
    kind: Literal["module", "function"],
    target: Any,
    others: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    place: str,
    where: Mapping[fx.Node, str],
) -> tuple[Expression, tuple[fx.Node, ...]]:
    """A call as an expression whose inputs are the `others` registers and the traced values in it."""
    extras = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, fx.Node)]
    given = tuple(dict.fromkeys(leaf for leaf in extras if leaf.op != "get_attr"))
    places = {leaf: others + index for index, leaf in enumerate(given)}
    count = others + len(given)
    calls: list[Call] = []
    for leaf in extras:
        if leaf not in places:
            places[leaf] = count + len(calls)
            calls.append(as_call(leaf, places, where))
    result = count + len(calls)
    args, kwargs = _with_registers(args, places), _with_registers(kwargs, places)
    calls.append(Call(kind, target, args, kwargs, result, (), place))
    return expression(calls, count, (result,)), given


def as_call(node: fx.Node, places: Mapping[fx.Node, int], where: Mapping[fx.Node, str]) -> Call:
    """A traced call with its operands' places."""
    args, kwargs = _with_registers(tuple(node.args), places), _with_registers(dict(node.kwargs), places)
    return Call(KINDS[node.op], node.target, args, kwargs, places[node], (), where.get(node, ""))


def text_of(term: fx.Node, region: Set[fx.Node], names: Callable[[fx.Node], str]) -> str:
    """A region's term as a person would write it; "F(...)" of what it reads where that gets long."""
    longest = 60

    def text(node: fx.Node) -> str:
        if node not in region:
            return str(node.target) if node.op == "get_attr" else names(node)
        operands = ", ".join(text(other) for other in node.all_input_nodes)
        return f"{node.target if node.op == 'call_module' else verb(node)}({operands})"

    written = text(term) if len(region) < longest else ""
    return written if 0 < len(written) <= longest else "F"


def verb(node: fx.Node) -> str:
    """What a traced call is called in short."""
    if isinstance(node.target, str):
        return node.target
    return getattr(node.target, "__name__", str(node.target)).strip("_")


def _with_registers(tree: Any, places: Mapping[fx.Node, int]) -> Any:
    return map_leaves(lambda leaf: Register(places[leaf]) if isinstance(leaf, fx.Node) else leaf, tree)

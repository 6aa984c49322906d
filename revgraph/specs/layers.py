"""The grammar of layers and modules.

A layer is `- name: module` or `- name: [layers]`; a module is `Name` or `{Name: arguments}`, or, where a
function is expected, a list of layers. With more to say it is `- name: {Name: arguments, in: ..., out: ...}`.
"""

from __future__ import annotations

import re
from typing import Any

from revgraph.errors import SpecError
from revgraph.specs import expect
from revgraph.specs.hints import listed, meant, shortened
from revgraph.specs.registry import LAYER_KEYS, is_module, require
from revgraph.specs.syntax import Body, Group, Layer, ModuleCall, Use
from revgraph.specs.trees import Listing, Scalar, Table, Tree, described

REPEATS = 10**6
VALUES = "the name of a value, or a list of such"
MODULE = "a module: a name, {Name: arguments}, or a list of layers"
# The arguments that are functions, in every coupling: f and g, or f1, f2 and so on.
FUNCTION = re.compile(r"f|g|f[1-9][0-9]?")
# What a function calls its only input where it names none.
ALONE = ("x",)


def layers(tree: Tree) -> tuple[Layer, ...]:
    """The layers of a list; every item is a mapping of one name to one layer.

    Raises:
        SpecError: what does not follow the grammar, with its place.
    """
    items = expect.a_listing(tree, "a list of layers, each `- name: module`").items
    if not items:
        raise SpecError(f"{tree.where}: here stands an empty list, but there must be at least one layer")
    return tuple(_item(item) for item in items)


def _item(tree: Tree) -> Layer:
    example = "each item is `- name: module`, as in `- head: {Linear: [64, 10]}`"
    if isinstance(tree, Scalar) and isinstance(tree.value, str) and is_module(tree.value):
        raise SpecError(
            f"{tree.where}: this layer has no name: write `- {tree.value.lower()}: {tree.value}` "
            "(its parameters and its outputs go by that name)"
        )
    if not isinstance(tree, Table) or not tree.items:
        raise SpecError(f"{tree.where}: here stands {described(tree)}, but {example}")
    if len(tree.items) > 1:
        stray = next((key for key in tree.keys if key in LAYER_KEYS), tree.keys[1])
        raise SpecError(
            f"{tree.where}: this item has {len(tree.items)} keys ({listed(tree.keys[:4])}), but {example}. "
            f"What belongs to the layer goes inside its braces, {shortened(stray)} too, or deeper by one "
            "indent."
        )
    name, what = next(iter(tree.items))
    if is_module(name) and not _like_layer(what):
        raise SpecError(
            f"{what.where}: this layer has no name: write `- {name.lower()}: {{{name}: ...}}` "
            "(its parameters and its outputs go by that name)"
        )
    return _layer(expect.name(name, what.where), what)


def _like_layer(tree: Tree) -> bool:
    """Whether this could be a layer, and not the arguments of a module that stands without a name."""
    if isinstance(tree, Scalar):
        return isinstance(tree.value, str) and is_module(tree.value)
    if isinstance(tree, Listing):
        return all(isinstance(item, Table) for item in tree.items)
    return any(key in LAYER_KEYS or is_module(key) for key in tree.keys)


def _layer(name: str, tree: Tree) -> Layer:
    if isinstance(tree, Listing):
        return Layer(name, Group(layers(tree)), None, (), None, None, None, tree.where)
    if not isinstance(tree, Table):
        return Layer(name, module(tree), None, (), None, None, None, tree.where)
    what = _what(tree)
    allowed = ("layers", "in", "out", "repeat") if isinstance(what, Group) else LAYER_KEYS
    for key, item in tree.items:
        if key in LAYER_KEYS and (key not in allowed or key in ("inputs", "outputs")):
            raise SpecError(
                f"{item.where}: a {'group of layers' if isinstance(what, Group) else 'layer'} has no "
                f"{key!r}: that is for networks and functions. A layer reads `in`, and names what it makes "
                "with `out`."
            )
    reads, target = tree.get("in"), tree.get("target")
    others = tree.get("others")
    if target is None and others is not None:
        raise SpecError(f"{others.where}: `others` goes with `target`, the stream that the half-step changes")
    if target is not None and (clash := tree.get("in") or tree.get("out")) is not None:
        raise SpecError(
            f"{clash.where}: a layer with a `target` reads that and its `others`, and makes the target's new "
            "state: `in` and `out` do not go with it"
        )
    names = others if target is not None else reads
    repeat, makes = tree.get("repeat"), tree.get("out")
    return Layer(
        name,
        what,
        reads=None if names is None else expect.words(names, VALUES),
        extras=_extras(tree.get("with")),
        makes=None if makes is None else expect.words(makes, VALUES),
        target=None if target is None else expect.a_word(target, "the name of one value"),
        repeat=None if repeat is None else expect.an_integer(repeat, "a number of repetitions", 0, REPEATS),
        where=tree.where,
    )


def _what(tree: Table) -> ModuleCall | Group | Use:
    """What the layer runs: the one key of the mapping that is none of `LAYER_KEYS`, or `layers`, or `use`."""
    others = [key for key in tree.keys if key not in LAYER_KEYS or key in ("layers", "use")]
    if len(others) == 1:
        (key,) = others
        item = tree.get(key)
        assert item is not None
        if key == "layers":
            return Group(layers(item))
        if key == "use":
            return Use(expect.a_word(item, "the name of an earlier layer"))
        return call(key, item)
    keys = [key for key in LAYER_KEYS if key not in ("inputs", "outputs")]
    unknown = [key for key in others if not is_module(key) and key not in keys]
    if not others:
        raise SpecError(f"{tree.where}: this layer names no module, as {{Linear: [64, 10]}} does")
    if unknown and len(unknown) < len(others):
        raise SpecError(
            f"{tree.where}: {shortened(unknown[0])} is neither a module nor a key of a layer."
            f"{meant(unknown[0], keys)} The keys are {listed(keys)}."
        )
    raise SpecError(
        f"{tree.where}: a layer is one module, but here stand {listed(map(repr, others[:4]))}. Give each its "
        "own name."
    )


def _extras(tree: Tree | None) -> tuple[tuple[str, str], ...]:
    if tree is None:
        return ()
    what = "a mapping from the module's keywords to value names, as {mask: mask}"
    return tuple(
        (expect.name(key, item.where), expect.a_word(item, "the name of a value"))
        for key, item in expect.a_table(tree, what).items
    )


def module(tree: Tree) -> ModuleCall:
    """The module that a tree names, with no arguments or with some.

    Raises:
        SpecError: it names none, or one that is not registered.
    """
    if isinstance(tree, Table) and len(tree.items) == 1:
        return call(*next(iter(tree.items)))
    return call(expect.a_text(tree, MODULE), Scalar(None, tree.where))


def call(name: str, arguments: Tree) -> ModuleCall:
    """The module of this name with the arguments that the tree gives.

    A mapping gives them by name, a list in order; anything else is the only one.
    """
    require(name, arguments.where)
    if isinstance(arguments, Table):
        keywords = tuple(
            (expect.name(key, item.where), _argument(item, key)) for key, item in arguments.items
        )
        return ModuleCall(name, (), keywords, arguments.where)
    if isinstance(arguments, Listing):
        return ModuleCall(name, tuple(_argument(item) for item in arguments.items), (), arguments.where)
    alone = () if arguments.value is None else (arguments.value,)
    return ModuleCall(name, alone, (), arguments.where)


def function(tree: Tree) -> ModuleCall | Body:
    """A module where a function is expected: also a list of layers, or one with named inputs and outputs."""
    if isinstance(tree, Listing):
        return body(ALONE, tree, None, tree.where)
    if isinstance(tree, Table) and any(key in LAYER_KEYS for key in tree.keys):
        expect.only(tree, ("inputs", "layers", "outputs"), "a function made of layers")
        inside, inputs, outputs = tree.get("layers"), tree.get("inputs"), tree.get("outputs")
        if inside is None:
            raise SpecError(f"{tree.where}: this function has no `layers`")
        names = ALONE if inputs is None else expect.words(inputs, "a name for each of the function's inputs")
        return body(names, inside, outputs, tree.where)
    return module(tree)


def body(inputs: tuple[str, ...], inside: Tree, outputs: Tree | None, where: str) -> Body:
    """Layers with inputs, and the outputs that a tree names."""
    written = layers(inside)
    if outputs is None:
        return Body(inputs, written, None, where, written[-1].where)
    return Body(inputs, written, expect.words(outputs, VALUES), where, outputs.where)


def _argument(tree: Tree, key: str = "") -> Any:
    if isinstance(tree, Table) or FUNCTION.fullmatch(key):
        return function(tree)
    if isinstance(tree, Listing):
        return tuple(_argument(item) for item in tree.items)
    return tree.value

"""Collapsing: module calls that hold no coupling become single calls again."""

from __future__ import annotations

import operator
from collections.abc import Set
from typing import Any

from torch import fx, nn

from revgraph.expressions import leaves, map_leaves
from revgraph.tracing.shadows import holds_tensors, is_tensor
from revgraph.tracing.tracer import Scope, Tracer
from revgraph.tracing.wirings import is_wiring


def collapse(tracer: Tracer, graph: fx.Graph, kept_open: Set[fx.Node]) -> None:
    """Replace every module call without any of the nodes `kept_open` by one opaque call, outermost first.

    Its hooks, wrapping and compilation then stay its own. A module that only rearranges tensors stays
    open, and so does an `nn.Sequential` of composite modules, which is a list more than a unit.
    """
    gone: set[fx.Node] = set()
    for scope in reversed(tracer.scopes):
        nodes = set(scope.nodes)
        if nodes & gone or nodes & kept_open or not _worth_it(tracer, scope):
            continue
        if _leaks(scope, nodes):
            continue
        _replace(tracer, graph, scope)
        gone |= nodes


def _worth_it(tracer: Tracer, scope: Scope) -> bool:
    module = tracer.root.get_submodule(scope.path)
    if isinstance(module, nn.Sequential) and any(_is_composite(tracer, child) for child in module):
        return False
    computing = [
        node
        for node in scope.nodes
        if node.op.startswith("call_") and not is_wiring(node, tracer.root) and _makes_tensors(tracer, node)
    ]
    return bool(computing)


def _is_composite(tracer: Tracer, module: nn.Module) -> bool:
    return any(True for _ in module.children()) and not tracer.is_leaf_module(module, "")


def _makes_tensors(tracer: Tracer, node: fx.Node) -> bool:
    shadow = tracer.shadows.get(node)
    return is_tensor(shadow) or holds_tensors(shadow)


def _leaks(scope: Scope, nodes: set[fx.Node]) -> bool:
    """Whether something made inside is read outside in another way than as the result."""
    results = {leaf for leaf in leaves(scope.result) if isinstance(leaf, fx.Node)}
    return any(node not in results and any(user not in nodes for user in node.users) for node in scope.nodes)


def _replace(tracer: Tracer, graph: fx.Graph, scope: Scope) -> None:
    last = scope.nodes[-1]
    nodes = set(scope.nodes)
    shadow = map_leaves(
        lambda leaf: tracer.shadows[leaf] if isinstance(leaf, fx.Node) else leaf, scope.result
    )
    with graph.inserting_after(last):
        call = graph.call_module(scope.path, scope.args, scope.kwargs)
    _describe(tracer, call, shadow, scope.nodes[0])
    point = call

    def items(tree: Any, source: fx.Node) -> None:
        nonlocal point
        if isinstance(tree, fx.Node):
            if tree in nodes:
                tree.replace_all_uses_with(source, delete_user_cb=lambda user: user not in nodes)
            return
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, branch in pairs:
            if any(isinstance(leaf, fx.Node) for leaf in leaves(branch)):
                with graph.inserting_after(point):
                    item = graph.call_function(operator.getitem, (source, key))
                point = item
                _describe(tracer, item, source_shadow(source)[key], scope.nodes[0])
                items(branch, item)

    def source_shadow(node: fx.Node) -> Any:
        return tracer.shadows[node]

    items(scope.result, call)
    for node in reversed(scope.nodes):
        graph.erase_node(node)
    for other in tracer.scopes:
        if other is not scope and nodes & set(other.nodes):
            other.nodes = [node for node in other.nodes if node not in nodes]
            if scope.path.startswith(f"{other.path}."):
                other.nodes.append(call)


def _describe(tracer: Tracer, node: fx.Node, shadow: Any, like: fx.Node) -> None:
    tracer.shadows[node] = shadow
    tracer.where[node] = tracer.where[like]
    tracer.scope_of[node] = ""

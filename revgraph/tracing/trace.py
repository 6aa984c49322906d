"""`trace`: the steps from a model and an example call to its program, and what is tried where one fails."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from revgraph.couplings import Boundary, Coupling
from revgraph.errors import RevgraphError, TraceError, TraceWarning, warn
from revgraph.isolation import untouched
from revgraph.joint_bijections import Bijection
from revgraph.program import Program
from revgraph.storages import faked
from revgraph.tracing.arguments import call_with, check_unchanged, fill_form, form_of, held_in, look_into
from revgraph.tracing.export.selection import NOTHING, Exports, reason_of, trace_with_exports
from revgraph.tracing.find_couplings.check_inverses import CouplingExample, check_inverses
from revgraph.tracing.find_couplings.find import find_half_steps, refine_half_steps
from revgraph.tracing.find_couplings.report import CouplingReport, explain_sums
from revgraph.tracing.fold import fold_modules
from revgraph.tracing.guards.settings import Settings, calls_of, forms_of
from revgraph.tracing.hooks import call_hooks, call_pre_hooks
from revgraph.tracing.lower.lowering import lower
from revgraph.tracing.proxies import ReadPastAttributes, Untraceable, guard
from revgraph.tracing.structures import STRUCTURE
from revgraph.tracing.tracer import Tracer
from revgraph.tracing.user_code import place_of
from revgraph.tracing.wiring.slices import gather_slices
from revgraph.wiring import Wiring

__all__ = ["trace"]

# What the errors of runs without memory have in common: the result depends on values.
FAKE_FAILED = re.compile(
    "fake ?tensor|data.?dependent|dynamic ?output|unsupported ?operator|unsupported device type ?meta",
    re.IGNORECASE,
)
# Changes a traced graph before couplings are looked for, and tells the nodes that it put on streams.
Rewrite: TypeAlias = Callable[[Tracer, fx.Graph], set[fx.Node]]


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str = "",
    rewrite: Rewrite | None = None,
    opened: tuple[type[Boundary], ...] = (),
    sums_only: bool = False,
    gradients: bool = True,
) -> Program:
    """The program of a model's forward, found with an example call.

    Shapes come from a run without memory or arithmetic; where the model cannot do that (a result's shape
    depends on values), from a real one. The model, its buffers and the random state are left as they were.
    Couplings of the user's own are tried; what becomes of a coupling module otherwise than meant is a
    `TraceWarning`.
    Where torch.fx stops at the model's own code, or most of the model would be opaque, `torch.export` reads
    it.
    Boundaries of the types `opened` are traced into, for `rewrite` to see what they do. With `sums_only`,
    couplings found in plain code are sums and differences, without any factor. Without `gradients`, code that
    asks for the gradient mode is told that they are off, and the program is for such calls.

    Raises:
        TraceError: the model fails on the example, or its own forward cannot be traced.
        CouplingError: a coupling of the user's is not undone by its inverse.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"only a torch.nn.Module can be traced, and this is a {type(model).__name__}. Put a function "
            "into the "
            "forward of a module."
        )
    scripted = [path for path, each in model.named_modules() if isinstance(each, torch.jit.ScriptModule)]
    if scripted:
        raise TraceError(
            f"{scripted[0] or 'the model'} is a scripted module, which has no Python code to trace and keeps "
            "its tensors to itself. Put the module that it was made of in its place."
        )
    form, named = form_of(model, args, kwargs)
    if not any(isinstance(thing, Tensor) for thing in named.values()):
        raise TraceError("tracing needs an example input with at least one tensor, and none was given")
    name = name or type(model).__name__

    def traced(fake_mode: FakeTensorMode | None, exports: Exports = NOTHING) -> _TraceResult:
        run = partial(
            _trace_later_calls,
            partial(_trace_once, model, form, named, name, rewrite, opened, sums_only, fake_mode, exports),
        )
        # With gradients, as the net will mostly run: without, `no_grad` inside the forward goes unnoticed,
        # which is right only as long as they are off.
        found = run(True)
        return found if gradients or not found.tracer.reads.asked_gradient_mode else run(False)

    # A rewrite is of what fx sees.
    found_by = trace_with_exports if rewrite is None else lambda run: run(NOTHING)
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with _silent():
            found = found_by(partial(traced, fake_mode))
    except RevgraphError:
        raise
    except ReadPastAttributes as error:  # with memory the numbers would be frozen, and nothing tell so
        raise _cannot_be_traced(name, error) from error
    except Exception:
        pass
    else:
        if not any(FAKE_FAILED.search(reason) for reason in found.tracer.opaque.values()):
            return _checked(found, model)
    if _is_known(model):
        # What fails without memory would fail with it too, but perhaps after taking a great deal.
        with _silent():
            _run_once(model, form, named, name, fake_mode)
    try:
        found = found_by(partial(traced, None))
    except RevgraphError:
        raise
    except Exception as error:
        _run_once(model, form, named, name, None)
        raise _cannot_be_traced(name, error) from error
    return _checked(found, model)


@dataclass(frozen=True)
class _TraceResult:
    """A trace's results. Where the forward or the trace settled something, `calls` are to compare with."""

    program: Program
    examples: list[CouplingExample]
    findings: CouplingReport
    tracer: Tracer
    calls: list[Any]
    settings: Settings


def _trace_later_calls(run: Callable[[bool, Settings | None], _TraceResult], gradients: bool) -> _TraceResult:
    """A trace of calls after the first one, which may settle attributes that are None until then.

    The first one has to compute the same besides; otherwise a change of what the code also reads is refused.
    """
    first = run(gradients, None)
    if not first.settings.settings:
        return first
    try:
        later = run(gradients, first.settings)
    except Untraceable:
        later = None
    if later is not None and later.calls == first.calls:
        return later
    return run(gradients, Settings())


def _checked(traced: _TraceResult, model: nn.Module) -> Program:
    """The program, once its couplings were tried, and said what became of them that was not meant.

    Raises:
        CouplingError: a coupling of the user's is not undone by its inverse.
    """
    check_inverses(model, traced.examples)
    texts = list(traced.findings.warnings())
    if traced.tracer.checkpointed:
        texts.append(
            f"{traced.program.graph.name} saves memory by itself ({', '.join(traced.tracer.checkpointed)}). "
            "The trace went through as if it did not: the net's plan says what is rebuilt."
        )
    for text in texts:
        warn(text, TraceWarning)
    return traced.program


def _cannot_be_traced(name: str, error: Exception) -> TraceError:
    besides = "".join(f"{note}. " for note in getattr(error, "__notes__", ()))
    return TraceError(
        f"the forward of {name} cannot be traced{place_of(error)}: {reason_of(error)}. {besides}"
        "Move what cannot be "
        "traced (branches on values, changes of gradient mode or autocast, side effects) into a "
        "submodule, which then becomes one node by itself."
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Keep torch from logging the traceback of what fails on tensors without memory: it is raised as well."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _is_known(model: nn.Module) -> bool:
    """Whether all of the model's modules are torch's and revgraph's own."""
    return all(type(module).__module__.startswith(("torch.nn.", "revgraph.")) for module in model.modules())


def _run_once(
    model: nn.Module,
    form: dict[str, Any],
    named: dict[str, Any],
    name: str,
    fake_mode: FakeTensorMode | None,
) -> None:
    """Run the model as it is.

    Raises:
        TraceError: it fails, and not for want of real tensors: the fault is not the trace's.
    """
    try:
        with untouched(model, fake_mode), torch.enable_grad(), fake_mode or nullcontext():
            given = {label: _fake(thing, fake_mode) for label, thing in named.items()}
            call_with(model.forward, fill_form(form, given))
    except Exception as error:
        if fake_mode is not None and FAKE_FAILED.search(f"{type(error).__name__}: {error}"):
            return
        raise TraceError(
            f"{name} fails on the example input{place_of(error)}: {type(error).__name__}: {error}. Give an "
            "example that the "
            "model accepts, or mend the model."
        ) from error


def _trace_once(
    model: nn.Module,
    form: dict[str, Any],
    named: dict[str, Any],
    name: str,
    rewrite: Rewrite | None,
    opened: tuple[type[Boundary], ...],
    sums_only: bool,
    fake_mode: FakeTensorMode | None,
    exports: Exports,
    gradients: bool,
    settled: Settings | None,
) -> _TraceResult:
    names = {id(parameter): path for path, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers(remove_duplicate=False))
    buffers |= {path: each for path, each in model.named_parameters() if not each.is_floating_point()}

    def call(proxies: list[Any]) -> Any:
        given = dict(zip(named, proxies, strict=True))
        is_network = isinstance(model, Bijection) and model.is_network
        if isinstance(model, (Boundary, Coupling, Wiring)) and not is_network:
            arguments = fill_form(form, given)
            return call_with(lambda *args, **kwargs: tracer.call_root(args, kwargs), arguments, model.forward)
        tracer.given = arguments = fill_form(form, given)
        for each, thing in arguments.items():
            look_into(thing, f"the argument {each}", tracer.reads.look_into, tracer.reads.look_into_argument)
        if "" in exports:
            forward = lambda *args, **kwargs: tracer.export_call(model, "", args, kwargs)  # noqa: E731
            results = call_with(forward, arguments, model.forward)
        else:
            results = call_with(model.forward, arguments)
        check_unchanged(form, arguments, given)
        fakes = dict(inputs)
        held = [label for label in held_in(form, model) if isinstance(fakes[label], Tensor)]
        edited = [label for label in held if tracer.overwritten.has(fakes[label])]
        if edited:
            raise TraceError(
                f"the forward edits {edited[0]} in place, a tensor that an argument holds, as caches do: a "
                "graph leaves its inputs as they are. Return the new tensor instead."
            )
        return results

    with untouched(model, fake_mode), torch.set_grad_enabled(gradients):
        tracer = Tracer(model, fake_mode, names, opened, buffers, exports)
        if not gradients:
            tracer.reads.gradient_mode(False)
        tracer.reads.settled = settled
        tracer.origins = {label: id(thing) for label, thing in named.items() if isinstance(thing, Tensor)}
        for each in settled.settings if settled is not None else ():
            each.settle()
        inputs = [(label, _fake(thing, fake_mode)) for label, thing in named.items()]
        graph = tracer.run(model, inputs, call)
        _drop_unused(graph)
        settings = tracer.reads.settings(forms_of(named))
        settles = bool(settings.settings or (settled is not None and settled.settings))
        calls = calls_of(graph, tracer.fakes, tracer.results) if settles else []
        gather_slices(tracer, graph)
        added = rewrite(tracer, graph) if rewrite is not None else set()
        modules = dict(model.named_modules(remove_duplicate=False))
        couplings = {
            node
            for node in graph.nodes
            if node.op == "call_module"
            and (isinstance(modules[str(node.target)], (Bijection, Coupling)) or node.target in tracer.steps)
        }
        streams = couplings | added | {user for node in couplings for user in node.users}
        steps = [node for node in couplings if node.target in tracer.steps]
        streams |= {item for node in steps for made in node.users for item in made.users}
        for scope in tracer.scopes:
            scope.nodes = [node for node in scope.nodes if node.graph is graph and not node._erased]
            scope.is_empty = not scope.nodes
        found = find_half_steps(graph, model, tracer.fakes, streams, tracer.scopes, sums_only)
        findings = explain_sums(graph, tracer.fakes, tracer.where, found, streams)
        fold_modules(tracer, graph, found.keys() | couplings, found)
        half_steps = refine_half_steps(graph, model, tracer.fakes, streams, found)
        for node in [each for each in found if each not in half_steps]:
            findings.give_up(tracer.where.get(node, "") or node.name)
        program, examples = lower(tracer, graph, half_steps, form, named, name, findings)
        return _TraceResult(program, examples, findings, tracer, calls, settings)


# Calls that nothing reads, and that do something.
KEPT = (guard, call_hooks, call_pre_hooks)


def _drop_unused(graph: fx.Graph) -> None:
    """Remove what nothing reads; calls of modules stay, for they may count or log."""
    for node in reversed(list(graph.nodes)):
        silent = node.op in ("get_attr", "call_method") or (
            node.op == "call_function" and node.target not in KEPT
        )
        if silent and not node.users and STRUCTURE not in node.meta:
            graph.erase_node(node)


def _fake(thing: Any, fake_mode: FakeTensorMode | None) -> Any:
    if not isinstance(thing, Tensor):
        return thing
    if fake_mode is not None:
        return faked(thing.detach(), fake_mode)
    return thing.detach().clone()

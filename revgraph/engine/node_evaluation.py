"""Node evaluation: one node's evaluation in a forward that records, and the same again in backward.

This is the careful path, right for any function: it notes the state that the forward found, puts it back for
the replay, watches what autograd saves, and compares. `lean.py` is the other path, for functions that need
none of that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from revgraph.engine._torch import pop_hooks, push_hooks, set_grad_enabled
from revgraph.engine.contexts import NO_AUTOCAST, NOTHING, widened
from revgraph.engine.executable import PlannedOperation, draws, not_undone
from revgraph.engine.inlining import Inlined, Via
from revgraph.engine.log_det import LogDets, join
from revgraph.engine.random_state import random_restored
from revgraph.engine.replay import unpack
from revgraph.engine.saved_tensors import Captured, SavedRecord, form_of, sample
from revgraph.engine.selective_recompute import (
    CacheOutputs,
    HandingOut,
    Keeping,
    KeptCalls,
    KeptResults,
    ReplayOutputs,
)
from revgraph.engine.state import ModuleState, version_of, versions_of
from revgraph.errors import ReplayError, add_note
from revgraph.planning.plans import TERM
from revgraph.program import Law
from revgraph.storages import memory_key

if TYPE_CHECKING:
    from revgraph.engine.tape import Tape


class NodeEvaluation:
    """One evaluation of a node that is not kept: what it was like, and how to repeat it."""

    __slots__ = (
        "calls",
        "devices",
        "fills_late",
        "flags",
        "inlined",
        "kept",
        "log_dets",
        "operation",
        "plain",
        "random",
        "saved",
        "state",
        "target_flag",
    )

    def __init__(self, operation: PlannedOperation, inlined: Inlined | None = None) -> None:
        """With its `inlined` function, where that keeps results of its calls."""
        self.operation = operation
        self.inlined = inlined
        self.calls: KeptCalls | None = None
        self.kept: KeptResults | None = None
        self.random: tuple[bytes, ...] | None = None
        self.fills_late = False

    def forward(self, tape: Tape, values: list[Any], log_dets: LogDets | None) -> tuple[Any, ...]:
        """The node's results, with a handle in place of each tensor that autograd saves."""
        operation = self.operation
        self.log_dets = log_dets is not None and operation.node in log_dets.nodes
        inputs = [values[number] for number in operation.reads]
        target = values[operation.target] if operation.target is not None else None
        self.flags = [isinstance(value, Tensor) and value.requires_grad for value in inputs]
        self.target_flag = target is not None and target.requires_grad
        self.plain = {
            number: value
            for number, value in zip(operation.reads, inputs, strict=True)
            if not isinstance(value, Tensor)
        }
        has_buffers = self.inlined is None
        self.state = ModuleState(operation.modules, tape.is_shielded, tape.shards, has_buffers)
        given = inputs if target is None else [*inputs, target]
        saved = self.saved = SavedRecord(given, self._unread_storages() if tape.compares else None)
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        versions = versions_of(tensors)
        samples = [*map(sample, tensors)] if tape.compares else []
        before = tape.random.before()
        pack = saved.packing(operation, tape)
        shield = self.state.restored() if tape.is_shielded else NOTHING
        push_hooks(pack, unpack)
        try:
            with shield:
                results = self._first(tape, inputs)
                saved.end_function(results)
                if target is None:
                    pass  # a boundary
                elif operation.joint is not None and log_dets is None:
                    results = (operation.joint[0](target, results[0]), *results[1:])
                elif operation.law is not None:
                    term = results[0] if results else None
                    results = (join(tape.net, operation, target, term, log_dets), *results[1:])
        except Exception as error:
            add_note(error, f"in the forward of {operation.describe()}")
            raise
        finally:
            pop_hooks()
        saved.end_forward(tape)
        if versions_of(tensors) != versions or (samples and [*map(sample, tensors)] != samples):
            raise ReplayError(
                f"{operation.describe()} edits one of its inputs in place, so a replay would start from "
                "changed values. Use the out-of-place form, or keep the node: "
                f"decisions {{{operation.node!r}: 'keep'}}."
            )
        self._check_joint(target, results)
        if tape.random.drawn_since(before):
            if tape.is_shielded:
                raise draws(operation)
            if (
                operation.decision == "invert"
                and operation.law is not None
                and operation.law.evaluates_modules
            ):
                raise ReplayError(
                    f"the module of bijection {operation.describe()} draws random numbers, which its inverse "
                    "would have to draw in another order. Take the dropout out of it, call net.eval(), or "
                    f"recompute the node: decisions {{{operation.node!r}: 'recompute'}}."
                )
            self.random, self.devices = before, tape.random.devices
        if self.random is not None or any([isinstance(each, FakeTensor) for each in results]):
            self.fills_late = _fills_late(given, results)
        self.state.after_forward()
        return results

    def again(
        self,
        tape: Tape,
        given: dict[int, Tensor],
        capture: Captured,
        wanted: Collection[int],
        uses_up: bool = False,
    ) -> dict[int, Tensor]:
        """Repeat the evaluation on these values, and return the wanted ones that it gives.

        It gives the target where the output is given in its place, and the outputs otherwise. It ends as soon
        as all is there that is wanted or to be captured. What captures is handed what the forward kept; if it
        `uses_up` that, it goes. A run for values alone computes all of it anew.
        """
        operation, saved = self.operation, self.saved
        self.state.check(operation.node)
        if tape.observer is not None:
            tape.observer.evaluated(operation.node)
        inputs = [
            given[number].detach().requires_grad_(flag) if number in given else self.plain[number]
            for number, flag in zip(operation.reads, self.flags, strict=True)
        ]
        kept = self.kept if capture.records else None
        gives_outputs = any([number in wanted for number in operation.makes])
        joins = gives_outputs or (capture.records and saved.count > saved.middle)
        needs_results = joins or bool(wanted)
        limit = None if needs_results and not (kept is not None and kept.has_term) else saved.middle
        if self.fills_late:  # what was captured last has no numbers before the function has ended
            limit = None
        begins = () if tape.ambient.autocast == NO_AUTOCAST else tape.executable.begins
        made: dict[int, Tensor] = {}
        enabled = torch.is_grad_enabled()
        try:
            with self._restored():
                set_grad_enabled(True)
                push_hooks(capture.hook, unpack)
                try:
                    results = capture.until(limit, self._results, inputs, capture, kept, uses_up)
                    if operation.law is not None and needs_results:
                        if results is None:
                            assert kept is not None
                            term, besides = kept.term(), ()
                        else:
                            term, besides = results[0] if results else None, results[1:]
                        joined = self._join(tape, operation.law, given, term, wanted, made, capture, joins)
                        results = (*joined, *besides)
                finally:
                    pop_hooks()
                    set_grad_enabled(enabled)
                if gives_outputs:
                    for number, value in zip(operation.makes, results, strict=True):
                        if number in wanted:
                            value = value.detach()
                            made[number] = widened(value) if number in begins else value
        except Exception as error:
            add_note(error, f"while replaying {operation.describe()}")
            raise
        if uses_up and kept is not None:
            kept.clear()
        return made

    def forget_results(self) -> None:
        """Let go of kept results, which nothing will be captured from."""
        self.kept = self.calls = None

    def saves_again(self, tape: Tape, given: dict[int, Tensor]) -> list[Any]:
        """The forms of what the function saves on these values now: for finding out why it differs."""
        forms: list[Any] = []
        inputs = [
            given[number].detach().requires_grad_(flag) if number in given else self.plain[number]
            for number, flag in zip(self.operation.reads, self.flags, strict=True)
        ]
        with self._restored(), torch.enable_grad():
            push_hooks(lambda tensor: forms.append(form_of(tensor)), unpack)
            try:
                self.operation.function.run(*inputs)
            finally:
                pop_hooks()
        return forms

    def _unread_storages(self) -> set[int]:
        """Memory that the function writes without reading it, of which no samples are taken."""
        if self.inlined is None:
            return self.state.unread_storages()
        buffers = [each for norm in self.inlined.norms for each in norm._buffers.values()]
        return {memory_key(each) for each in buffers if each is not None}

    def _first(self, tape: Tape, inputs: list[Any]) -> tuple[Any, ...]:
        """What the node's function returns, with the results kept that the plan asks for."""
        operation = self.operation
        if self.inlined is not None:
            self.calls = KeptCalls()
            return self._inlined(inputs, Keeping(tape, self.calls, operation.keeps_statistics))
        if not operation.results:
            return operation.function.run(*inputs)
        kept = self.kept = KeptResults(operation.node, operation.results)
        if operation.results == (TERM,):
            results = operation.function.run(*inputs)
        else:
            with CacheOutputs(kept):
                results = operation.function.run(*inputs)
        kept.keep_term(results[0] if results else None, inputs)
        return results

    def _results(
        self, inputs: list[Any], capture: Captured, kept: KeptResults | None, uses_up: bool
    ) -> tuple[Any, ...]:
        """What the node's function returns, with kept results handed out."""
        if self.inlined is not None:
            kept_calls = self.calls if capture.records else None
            results = self._inlined(inputs, HandingOut(kept_calls, capture.hook, uses_up))
        elif kept is not None and kept.has_results:
            with ReplayOutputs(kept, uses_up):
                results = self.operation.function.run(*inputs)
        else:
            results = self.operation.function.run(*inputs)
        capture.end_function(results)
        return results

    def _inlined(self, inputs: list[Any], via: Via) -> tuple[Any, ...]:
        """What the inlined function returns, with the parameters that are there now."""
        inlined = self.inlined
        assert inlined is not None
        parameters = [table[name] for table, name in inlined.parameters]
        results = inlined.run(*inputs, *parameters, *((via,) if inlined.needs_via else ()))
        return (results,) if inlined.is_single else results

    def _join(
        self,
        tape: Tape,
        law: Law,
        given: dict[int, Tensor],
        term: Any,
        wanted: Collection[int],
        made: dict[int, Tensor],
        capture: Captured,
        joins: bool,
    ) -> tuple[Any, ...]:
        """The target from the output where that is given, and the output from the target, as far as asked."""
        operation, net = self.operation, tape.net
        assert operation.target is not None
        x = given.get(operation.target)
        if x is None:
            x = self._uncouple(tape, law, given[operation.makes[0]], term)
            if operation.target in wanted:
                made[operation.target] = x
        if not joins:
            return ()
        limit = None if any([number in wanted for number in operation.makes]) else self.saved.count
        x = x.detach().requires_grad_(self.target_flag)
        if not self.log_dets:
            return (capture.until(limit, law.couple, net, x, term),)
        joined = capture.until(limit, law.couple_with_log_det, net, x, term)
        return (None,) if joined is None else joined[:1]

    def _uncouple(self, tape: Tape, law: Law, y: Tensor, term: Any) -> Tensor:
        version = version_of(y)
        set_grad_enabled(False)
        try:
            joint = self.operation.joint
            x = law.uncouple(tape.net, y, term) if joint is None else joint[1](y, term)
        finally:
            set_grad_enabled(True)
        if version_of(y) != version:
            raise ReplayError(
                f"the inverse of {self.operation.describe()} edits the output in place, which others may "
                "hold. Use the out-of-place form in its `uncouple`."
            )
        return x

    def _restored(self) -> AbstractContextManager[Any]:
        """The forward's random numbers, flags and buffers, as far as they differ from today's."""
        differs = self.inlined is None and self.state.differs()
        if self.random is None and not differs:
            return NOTHING
        stack = ExitStack()
        if self.random is not None:
            stack.enter_context(random_restored(self.random, self.devices))
        if differs:
            stack.enter_context(self.state.restored())
        return stack

    def _check_joint(self, target: Tensor | None, results: tuple[Any, ...]) -> None:
        """Refuse what a replay of this forward could not undo or repeat."""
        operation = self.operation
        if operation.decision == "invert" and target is not None and results[0].shape != target.shape:
            raise not_undone(operation, target, results[0])
        if operation.lacks_target and self.saved.count > self.saved.middle:
            raise ReplayError(
                f"{operation.describe()} only adds, and yet autograd saved tensors when it joined target and"
                " term. Its replay, which does not read the target, cannot give them again. Keep or invert "
                f"the node: decisions {{{operation.node!r}: 'keep'}}."
            )
        if self.kept is not None:
            self.kept.check()
        if self.calls is not None:
            self.calls.check(operation.node)


def _fills_late(inputs: Sequence[Any], results: Sequence[Any]) -> bool:
    """Whether a kernel on the way from inputs to results fills in what autograd packed before it ran."""
    seen = {each.grad_fn for each in inputs if isinstance(each, Tensor)}
    pending = [each.grad_fn for each in results if isinstance(each, Tensor)]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith("RreluWithNoise"):
            return True
        pending += [each for each, _ in node.next_functions]
    return False

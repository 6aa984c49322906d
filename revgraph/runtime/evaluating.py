"""Evaluating: one node's evaluation in a forward that records, and the same again in backward."""

from __future__ import annotations

import weakref
from collections.abc import Set
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from revgraph.errors import GraphError, ReplayError, add_note
from revgraph.planning.plans import TERM
from revgraph.program import Law
from revgraph.runtime.capturing import Borrowed, Capture, Handle, Saved, unpack
from revgraph.runtime.context import (
    NO_AUTOCAST,
    ModuleState,
    autocast_restored,
    autocast_state,
    random_restored,
    widened,
)
from revgraph.runtime.deriving import Replay
from revgraph.runtime.heavy import HandingOut, Keeping, Kept
from revgraph.runtime.log_dets import LogDets, join
from revgraph.runtime.script import Step, modules_of
from revgraph.runtime.tape import Tape
from revgraph.runtime.uncompiled import compiles, uncompiled

NOTHING = nullcontext()


class Evaluation:
    """One evaluation of a node that is not kept: what it was like, and how to repeat it."""

    __slots__ = (
        "flags",
        "handle",
        "kept",
        "log_dets",
        "plain",
        "random",
        "saved",
        "state",
        "step",
        "tape",
        "target_flag",
    )

    def __init__(self, tape: Tape, step: Step) -> None:
        self.tape = tape
        self.step = step
        self.kept = Kept(step)
        self.handle: weakref.ref[Handle] | None = None
        self.random: tuple[bytes, ...] | None = None

    def forward(self, env: dict[str, Any], replay: Replay, log_dets: LogDets | None) -> tuple[Any, ...]:
        """The node's results, with a handle in place of each tensor that autograd saves."""
        step, net = self.step, self.tape.net
        self.log_dets = log_dets is not None and step.node in log_dets.nodes
        inputs = [env[name] for name in step.reads]
        target = env[step.target] if step.target is not None else None
        self.flags = [isinstance(value, Tensor) and value.requires_grad for value in inputs]
        self.target_flag = target is not None and target.requires_grad
        self.plain = {
            name: value
            for name, value in zip(step.reads, inputs, strict=True)
            if not isinstance(value, Tensor)
        }
        self.state = ModuleState(modules_of(net, step), shards=self.tape.shards)
        given = inputs if target is None else [*inputs, target]
        saved = self.saved = Saved(given, self.state.unread_storages() if self.tape.compares else None)
        versions = [value._version for value in inputs if isinstance(value, Tensor)]
        before = self.tape.random.before()

        def pack(tensor: Tensor) -> Handle | Borrowed:
            return uncompiled(note, tensor) if compiles() else note(tensor)

        def note(tensor: Tensor) -> Handle | Borrowed:
            if saved.is_borrowed(tensor):
                return Borrowed(tensor, step.node)
            handle = Handle(replay, saved.add(tensor))
            if self.handle is None:
                self.handle = weakref.ref(handle)
            return handle

        try:
            with saved_tensors_hooks(pack, unpack):
                results = self._first(inputs) if step.results else step.expression.run(net, inputs)
                saved.end_function(results)
                if step.law is not None:
                    assert target is not None
                    term = results[0] if results else None
                    results = (join(net, step, target, term, log_dets),)
        except Exception as error:
            add_note(error, f"in the forward of {step.describe()}")
            raise
        if [value._version for value in inputs if isinstance(value, Tensor)] != versions:
            raise ReplayError(
                f"{step.describe()} edits one of its inputs in place, so a replay would start from changed "
                f"values. Use the out-of-place form, or keep the node: decisions {{{step.node!r}: 'keep'}}."
            )
        self._check_joint(target, results)
        if self.tape.random.drawn_since(before):
            self.random = before
        self.state.after_forward()
        return results

    def again(
        self, given: dict[str, Tensor], capture: Capture, wanted: Set[str], uses_up: bool
    ) -> dict[str, Tensor]:
        """Repeat the evaluation on these values, and return the wanted ones that it gives.

        It gives the target where the output is given in its place, and the outputs otherwise. It ends as soon
        as all is there that is wanted or to be captured. If it `uses_up` what the forward kept, that goes.
        """
        step = self.step
        self.state.check(step.node)
        if self.tape.probe is not None:
            self.tape.probe.evaluated(step.node)
        inputs = [
            given[name].detach().requires_grad_(flag) if name in given else self.plain[name]
            for name, flag in zip(step.reads, self.flags, strict=True)
        ]
        gives_outputs = not wanted.isdisjoint(step.makes)
        joins = gives_outputs or (capture.records and self.saved.count > self.saved.middle)
        needs_results = joins or bool(wanted)
        limit = None if needs_results and not self.kept.has_term else self.saved.middle
        made: dict[str, Tensor] = {}
        try:
            with self._restored(), torch.enable_grad(), saved_tensors_hooks(capture.pack, unpack):
                results = capture.until(limit, self._results, inputs, capture, uses_up)
                if step.law is not None and needs_results:
                    term = self.kept.term() if results is None else results[0] if results else None
                    results = self._join(step.law, given, term, wanted, made, capture, joins)
                if gives_outputs:
                    made.update(
                        (name, widened(value.detach()) if name in step.begins else value.detach())
                        for name, value in zip(step.makes, results, strict=True)
                        if name in wanted
                    )
        except Exception as error:
            add_note(error, f"while replaying {step.describe()}")
            raise
        if uses_up:
            self.kept.clear()
        return made

    def _first(self, inputs: list[Any]) -> tuple[Any, ...]:
        """What the node's function returns, with the results kept that the plan asks for."""
        if self.step.results == (TERM,):
            results = self.step.expression.run(self.tape.net, inputs)
        else:
            with Keeping(self.kept):
                results = self.step.expression.run(self.tape.net, inputs)
        self.kept.keep_term(results[0] if results else None, inputs)
        return results

    def _results(self, inputs: list[Any], capture: Capture, uses_up: bool) -> tuple[Any, ...]:
        """What the node's function returns, with kept results handed out."""
        with HandingOut(self.kept, uses_up) if self.kept.has_results else NOTHING:
            results = self.step.expression.run(self.tape.net, inputs)
        capture.end_function(results)
        return results

    def _join(
        self,
        law: Law,
        given: dict[str, Tensor],
        term: Any,
        wanted: Set[str],
        made: dict[str, Tensor],
        capture: Capture,
        joins: bool,
    ) -> tuple[Any, ...]:
        """The target from the output where that is given, and the output from the target, as far as asked."""
        step, net = self.step, self.tape.net
        assert step.target is not None
        x = given.get(step.target)
        if x is None:
            x = self._uncouple(law, given[step.makes[0]], term)
            if step.target in wanted:
                made[step.target] = x
        if not joins:
            return ()
        limit = None if not wanted.isdisjoint(step.makes) else self.saved.count
        x = x.detach().requires_grad_(self.target_flag)
        if not self.log_dets:
            return (capture.until(limit, law.couple, net, x, term),)
        joined = capture.until(limit, law.couple_with_log_det, net, x, term)
        return (None,) if joined is None else joined[:1]

    def _uncouple(self, law: Law, y: Tensor, term: Any) -> Tensor:
        version = y._version
        with torch.no_grad():
            x = law.uncouple(self.tape.net, y, term)
        if y._version != version:
            raise ReplayError(
                f"the inverse of {self.step.describe()} edits the output in place, which others may hold. "
                "Use the out-of-place form in its `uncouple`."
            )
        return x

    def _restored(self) -> AbstractContextManager[Any]:
        """The forward's autocast, random numbers, flags and buffers, as far as they differ from today's."""
        stack = None
        if self.tape.autocast != NO_AUTOCAST or autocast_state() != NO_AUTOCAST:
            stack = ExitStack()
            stack.enter_context(autocast_restored(self.tape.autocast))
        if self.random is not None:
            stack = stack or ExitStack()
            stack.enter_context(random_restored(self.random, self.tape.random.devices))
        if self.state.differs():
            stack = stack or ExitStack()
            stack.enter_context(self.state.restored())
        return stack or NOTHING

    def _check_joint(self, target: Tensor | None, results: tuple[Any, ...]) -> None:
        """Refuse what a replay of this forward could not undo or repeat."""
        step = self.step
        if step.decision == "invert" and target is not None and results[0].shape != target.shape:
            raise GraphError(
                f"{step.describe()} turned its target {step.target!r} of shape {list(target.shape)} into "
                f"shape {list(results[0].shape)}, which cannot be undone. Expand the target first, or keep "
                "the node: "
                f"decisions {{{step.node!r}: 'keep'}}."
            )
        lacks_target = step.decision == "recompute" and step.target not in (None, *step.needs)
        if lacks_target and self.saved.count > self.saved.middle:
            raise ReplayError(
                f"{step.describe()} only adds, and yet autograd saved tensors when it joined target and"
                " term. Its replay, which does not read the target, cannot give them again. Keep or invert "
                f"the node: decisions {{{step.node!r}: 'keep'}}."
            )
        if step.results:
            self.kept.check()

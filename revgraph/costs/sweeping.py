"""Sweeping: through the net forward for the forms of all values, and back for those of all gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from revgraph import looks
from revgraph.costs import known
from revgraph.costs.alone import Situation
from revgraph.costs.forms import Form, dense, form_of, numbered, tensors_of
from revgraph.costs.isolating import Recorded, Way, record, record_again, record_wiring
from revgraph.errors import RevgraphError
from revgraph.expressions import Call, Register, attribute_at, expression, leaves, map_leaves, module_at
from revgraph.graph import Cost, Node
from revgraph.losses import mean_squares
from revgraph.planning.plans import Decision
from revgraph.program import Named, Operation, Program
from revgraph.tracing.hooks import call_hooks, call_pre_hooks

LOSS = "the loss"
PACKAGE = Path(__file__).parent.parent
# Where errors are faults of revgraph's; all other folders hold functions that nets are made of.
MACHINERY = ("costs", "engine", "planning", "storages.py", "expressions.py")


Reads: TypeAlias = tuple[looks.Place, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """What an operation looks like, but for its inputs; its modules, and the values of their attributes.

    The `signature` is a number that operations of one sweep share which run alike. `content` is what it is
    made of, if that is known from one trace to the next.
    """

    signature: int
    modules: Sequence[nn.Module]
    values: Mapping[looks.Place, str]
    content: Hashable | None = None

    def read(self, places: Reads) -> tuple[str | None, ...]:
        """The values at these places."""
        return tuple([self.values.get(place) for place in places])


NO_MODULES = Look(-1, (), {})


@dataclass
class Sweep:
    """Finds the situation of every node; what is recorded of one node holds for all that look alike.

    Inputs are contiguous, but for those that are `sparse`. In the same global `state`, what is recorded of
    torch's own layers holds in other sweeps, too; None where it cannot be told.
    """

    program: Program
    model: nn.Module
    sparse: Mapping[str, Form] = field(default_factory=dict)
    state: Hashable | None = None
    situations: dict[str, Situation] = field(default_factory=dict)
    forms: dict[str, Form | Any] = field(default_factory=dict)
    _same: dict[str, str] = field(default_factory=dict)
    _gradients: dict[str, Form] = field(default_factory=dict)
    _recorded: dict[Hashable, dict[Reads, dict[tuple[str | None, ...], Recorded | None]]] = field(
        default_factory=dict
    )
    _looks: dict[str, Look] = field(default_factory=dict)
    _variants: dict[int, set[tuple[str, ...]]] = field(default_factory=dict)
    _surroundings: dict[Hashable, int] = field(default_factory=dict)
    _sums: dict[Hashable, Form] = field(default_factory=dict)
    _last_asked: Situation | None = None
    _last_surroundings: tuple[Hashable, int] = (None, 0)

    def __post_init__(self) -> None:
        told: looks.Memo = {}
        structures: looks.Structures = {}
        signatures: dict[Hashable, int] = {}
        own: dict[int, bool] = {}
        for operation in self.program.operations:
            if operation.node:
                modules = looks.family(_modules(self.model, operation))
                values = looks.attributes_of(modules, told)
                signature, content = _signature(self.model, operation, structures), None
                if self.state is not None:
                    law = operation.law.modules(self.model) if operation.law is not None else ()
                    every = [*modules, *looks.family(law)]
                    content = known.content_of(operation, every, [*values.values()], own)
                    content = content and (signature, content)
                number = signatures.setdefault(signature, len(signatures))
                look = Look(number, modules, values, content)
                self._looks[operation.node] = look
                self._variants.setdefault(look.signature, set()).add(tuple(values.values()))

    def forward(self) -> None:
        """Find the forms of all values."""
        self.forms.update(self.program.numbers)
        for name in self.program.graph.inputs:
            sparse = self.sparse.get(name)
            self.forms[name] = sparse or self._dense(name, name in self.program.differentiable)
        for operation in self.program.operations:
            inputs = {name: self.forms.get(name) for name in _reads(operation)}
            if not operation.node:
                self._plain(operation, inputs, operation.makes)
                continue
            node = self.program.graph.node[operation.node]
            tensors = _tensors(self.model, operation)
            at = Situation(operation, node, inputs, (), (), tensors)
            self.situations[node.name] = at
            recorded = self.record(at, "keep")
            self.forms.update(dict.fromkeys(operation.makes))
            for event in recorded.course.forward if recorded is not None else ():
                if event[0] == "identity":
                    source: str = node.inputs[event[2]]
                    self._same[node.outputs[event[1]]] = self._same.get(source, source)
            for index, name in enumerate(node.outputs):
                form = recorded.outputs[index] if recorded is not None else None
                self.forms[name] = self._dense(name, False) if form is None else _placed(form, name, at)
            if plain := tuple([name for name in operation.makes if name not in node.outputs]):
                self._plain(operation, inputs, plain)

    def backward(self) -> Node | None:
        """Find the forms of all gradients, from the loss back. Returns the loss as a node, or None."""
        loss = self._loss()
        recorded = self._arrive(loss) if loss is not None else None
        for operation in reversed(self.program.operations):
            if operation.node:
                at = self.situations[operation.node]
                at = replace(at, gradients=tuple(self._gradients.pop(name, None) for name in at.node.outputs))
                self.situations[operation.node] = at
                if any(at.gradients):
                    self._arrive(at)
        self._share_parameters()
        if loss is None or recorded is None:
            return None
        return replace(loss.node, cost=Cost(courses={"keep": recorded.course}))

    def record(self, at: Situation, decision: Decision, results: tuple[int, ...] = ()) -> Recorded | None:
        """The course of a node under a decision; None where it cannot run without values."""
        graph = self.program.graph
        return self._once(at, (decision, results), lambda: record(self.model, at, graph, decision, results))

    def record_again(self, at: Situation, way: Way) -> Recorded | None:
        """The course of a node that is run again by itself."""
        return self._once(at, way, lambda: record_again(self.model, at, self.program.graph, way))

    def record_wiring(self, at: Situation, backwards: bool) -> Recorded | None:
        """The course of a wiring that the backward pass runs again."""
        outputs = [self.forms[name] for name in at.node.outputs]
        key = (numbered(outputs), backwards)
        return self._once(at, key, lambda: record_wiring(self.model, at, outputs, backwards))

    def alike(self, at: Situation) -> Hashable:
        """Equal for nodes of which the same is recorded under every decision and in every way."""
        node, look = at.node, self._looks.get(at.node.name, NO_MODULES)
        outputs = numbered(
            [each if isinstance(each := self.forms[name], Form) else None for name in node.outputs]
        )
        read = tuple(look.values.values())
        return look.signature, read, self._surroundings_of(at)[1], node.kind, node.additive, outputs

    def _once(self, at: Situation, key: Hashable, make: Callable[[], Recorded]) -> Recorded | None:
        """What is recorded of a node, or was of one that looks alike in all that the recording read.

        Which attributes a recording reads is only looked at where look-alikes differ in some.
        """
        look = self._looks.get(at.node.name, NO_MODULES)
        surroundings, number = self._surroundings_of(at)
        alike = self._recorded.setdefault((look.signature, number, key), {})
        for places, found in alike.items():
            if (read := look.read(places)) in found:
                return found[read]
        content = _loss_content(at) if look is NO_MODULES and self.state is not None else look.content
        whole = None if content is None else (self.state, content, surroundings, key)
        if whole is not None and (before := known.find(whole)) is not None:
            recorded, places = before, tuple(look.values)
        elif len(self._variants.get(look.signature, ())) > 1:
            with looks.reads_of(look.modules) as seen:
                recorded = self._made(make)
            places = looks.places_of(seen, look.modules, look.values)
        else:
            recorded, places = self._made(make), tuple(look.values)
        if whole is not None and recorded is not None:
            known.remember(whole, recorded)
        alike.setdefault(places, {})[look.read(places)] = recorded
        return recorded

    def _made(self, make: Callable[[], Recorded]) -> Recorded | None:
        try:
            return make()
        except RevgraphError:
            return None  # the engine refuses this for the node
        except Exception as error:
            if is_own(error):
                raise
            return None

    def _surroundings_of(self, at: Situation) -> tuple[Hashable, int]:
        """Equal for nodes whose courses are equal, if they look alike; with a number that stands for it."""
        if self._last_asked is not at:  # which is asked of a node for one way after another
            found = self._found_around(at)
            number = self._surroundings.setdefault(found, len(self._surroundings))
            self._last_asked, self._last_surroundings = at, (found, number)
        return self._last_surroundings

    def _found_around(self, at: Situation) -> Hashable:
        names = list(at.inputs)
        forms = [at.inputs[name] for name in at.node.inputs]
        plain = tuple(repr(thing) for thing in at.inputs.values() if not isinstance(thing, Form))
        read = tuple(names.index(name) for name in _reads(at.operation))
        shared = {id(each) for each in at.shared}
        positions = tuple([index for index, each in enumerate(at.tensors) if id(each) in shared])
        return plain, read, numbered(forms), numbered(at.gradients), positions

    def _arrive(self, at: Situation) -> Recorded | None:
        """Put the gradients that a node gives its inputs, added to those that are there."""
        recorded = self.record(at, "keep")
        for index, forms in (recorded.arrivals if recorded is not None else {}).items():
            if index >= len(at.node.inputs):  # of a parameter
                continue
            name = at.node.inputs[index]
            name = self._same.get(name, name)
            for form in forms:
                own = ("gradient", at.node.name, form.storage)
                place = own
                if isinstance(form.storage, str) and form.storage.startswith("go"):
                    place = _some(at.gradients[int(form.storage[2:])]).storage
                placed = replace(form, storage=place)
                before = self._gradients.get(name)
                self._gradients[name] = placed if before is None else self._sum(before, placed, (*own, name))
        return recorded

    def _sum(self, one: Form, two: Form, storage: Hashable) -> Form:
        """The form of the sum of two tensors."""
        key = numbered([one]), numbered([two])
        if key not in self._sums:
            with torch.no_grad():
                self._sums[key] = form_of(tensors_of([one])[0] + tensors_of([two])[0], None)
        return replace(self._sums[key], storage=storage)

    def _loss(self) -> Situation | None:
        """The mean of squares of the outputs that require a gradient."""
        names = [leaf.name for leaf in leaves(self.program.results) if isinstance(leaf, Named)]
        every = {name: self.forms.get(name) for name in names}
        forms = {name: form for name, form in every.items() if isinstance(form, Form) and form.requires_grad}
        live = [name for name in names if name in forms]
        if not live:
            return None
        inputs = tuple(dict.fromkeys(live))
        call = Call(
            "function", mean_squares, ([Register(inputs.index(name)) for name in live],), {}, len(inputs), ()
        )
        run = expression((call,), len(inputs), (len(inputs),))
        operation = Operation(LOSS, run, inputs, (LOSS,))
        node = Node(LOSS, "boundary", inputs, (LOSS,))
        dtype = forms[live[0]].dtype if len(live) == 1 else torch.float32
        gradient = Form((), (), 0, dtype, forms[live[0]].device, LOSS, dtype.itemsize)
        return Situation(operation, node, {name: forms[name] for name in inputs}, (gradient,))

    def _dense(self, name: str, requires_grad: bool) -> Form:
        value = self.program.graph.value[name]
        dtype = getattr(torch, value.dtype)
        form = Form(value.shape, (), 0, dtype, torch.device(value.device), name, 0, requires_grad)
        return dense(form, name)

    def _plain(self, operation: Operation, inputs: dict[str, Any], names: tuple[str, ...]) -> None:
        """Put an operation's results of these names, no tensors; None where they depend on values."""
        if any([call.target in (call_hooks, call_pre_hooks) for call in operation.expression.calls]):
            return  # the user's hooks are not to be called now
        given = [tensors_of([each])[0] if isinstance(each, Form) else each for each in inputs.values()]
        try:
            made = operation.expression.run(self.model, given)
        except Exception:
            made = (None,) * len(operation.makes)
        self.forms.update(
            (name, each) for name, each in zip(operation.makes, made, strict=True) if name in names
        )

    def _share_parameters(self) -> None:
        """Tell nodes which of their parameters get gradients from other nodes too."""
        live = [at for at in self.situations.values() if any(at.gradients)]
        uses = Counter(id(tensor) for at in live for tensor in at.tensors)
        for at in live:
            shared = tuple(each for each in at.tensors if uses[id(each)] > 1 and each.requires_grad)
            if shared:
                self.situations[at.node.name] = replace(at, shared=shared)


def is_own(error: Exception) -> bool:
    """Whether an error comes of revgraph's own code, and not of a function that it ran."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return True
    place = Path(trace.tb_frame.f_code.co_filename)
    return PACKAGE in place.parents and place.relative_to(PACKAGE).parts[0] in MACHINERY


def _loss_content(at: Situation) -> Hashable:
    """What the loss is made of: which of its inputs count how often."""
    return LOSS, tuple([repr(call.args) for call in at.operation.expression.calls])


def _placed(form: Form, name: str, at: Situation) -> Form:
    """An output's form with its storage named for the net: its own, or that of the input it is a view of."""
    label = form.storage
    if isinstance(label, str) and label.startswith("in"):
        return replace(form, storage=at.inputs[at.node.inputs[int(label[2:])]].storage)
    if isinstance(label, str) and label.startswith("out"):
        return replace(form, storage=at.node.outputs[int(label[3:])])
    return replace(form, storage=("fixed", name))


def _some(form: Form | None) -> Form:
    assert form is not None
    return form


def _reads(operation: Operation) -> tuple[str, ...]:
    return operation.reads if operation.target is None else (*operation.reads, operation.target)


def _tensors(model: nn.Module, operation: Operation) -> tuple[Tensor, ...]:
    """The parameters, buffers and other tensors of the model that an operation uses."""
    found: list[Any] = []
    for module in _modules(model, operation):
        found += [*module.parameters(), *module.buffers()]
    for own in operation.law.modules(model) if operation.law is not None else ():
        found += [*own.parameters(recurse=False), *own.buffers(recurse=False)]
    for path in operation.expression.attribute_paths:
        value = attribute_at(model, path)
        if isinstance(value, Tensor):
            found.append(value)
    return tuple({id(tensor): tensor for tensor in found}.values())


def _modules(model: nn.Module, operation: Operation) -> list[nn.Module]:
    paths = operation.expression.module_paths
    if operation.law is not None and not paths:
        return list(operation.law.modules(model)[:1])
    return [module_at(model, path) for path in paths]


def _signature(model: nn.Module, operation: Operation, told: looks.Structures) -> Hashable:
    """Equal for operations that run alike on equal inputs. `told` remembers modules.

    Parameters that are read by themselves, and constants among the operands, count by their forms. Attributes
    of the user's modules are left out.
    """
    calls = tuple(
        (
            call.kind,
            _read(model, call.target) if call.kind == "attribute" else call.kind != "module" and call.target,
            repr(map_leaves(_look_of_operand, (call.args, call.kwargs))),
        )
        for call in operation.expression.calls
    )
    # A difference costs more than a sum, for its term's gradient is another tensor.
    joined = operation.law and operation.law.look(model, told)
    return calls, joined, tuple(looks.structure_of(module, told) for module in _modules(model, operation))


def _read(model: nn.Module, path: str) -> str:
    """What an attribute that is read looks like."""
    return repr(map_leaves(_look_of_operand, attribute_at(model, path)))


def _look_of_operand(thing: Any) -> Any:
    return looks.form_of(thing) if isinstance(thing, Tensor) else thing

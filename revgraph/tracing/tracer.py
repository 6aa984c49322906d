"""The tracer: a model's forward run on proxies, into its modules, as an fx.Graph.

What differs from `fx.Tracer`, by the methods that it overrides:

- `create_proxy` computes each call's value on fakes at once, and records calls in place as out-of-place ones.
- `call_module` goes into every module but units (couplings, wiring, boundaries), layers of torch's own, and
  modules whose hooks forbid it. It is an attempt: what cannot be traced becomes one call (`scopes`). With a
  path in `exports`, `torch.export` reads the module's code instead.
- `create_arg` refuses values that a graph would freeze or misread: tensors computed of parameters that were
  read past their attributes, and tensors whose memory has been overwritten since.
- `getattr` and `is_leaf_module` as fx means them.

Three watches run meanwhile, and are rolled back with the graph: reads of attributes (`reads`), functions
entered (`calls`), generators of random numbers (`random`). What the trace knows of each node (`fakes`,
`where`, `scope_of`) is kept beside the graph, and the later steps of `trace` keep it up to date.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, cast

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.parameter import is_lazy

from revgraph.couplings import Boundary, Coupling
from revgraph.errors import RevgraphError, TraceError
from revgraph.expressions import leaves, map_leaves
from revgraph.joint_bijections import Bijection, takes_flags
from revgraph.storages import memory_key, parts_of
from revgraph.tracing.arguments import contents, holds_objects
from revgraph.tracing.evaluator import Evaluator
from revgraph.tracing.export.capture import export_call
from revgraph.tracing.guards.attribute_reads import AttributeReads
from revgraph.tracing.guards.calls import CallWatch
from revgraph.tracing.guards.fixed_values import PLAIN
from revgraph.tracing.guards.random_sources import RandomSources, is_random_source
from revgraph.tracing.guards.substitutions import OwnState
from revgraph.tracing.hooks import call_hooks, call_pre_hooks, stays_open
from revgraph.tracing.in_place import (
    OverwrittenMemory,
    initialized,
    is_same,
    out_of_place,
    replaced,
    stands_for_tensor,
)
from revgraph.tracing.modes import modes
from revgraph.tracing.patches import patched
from revgraph.tracing.proxies import (
    AsksIdentity,
    CollectingHooks,
    FakeProxy,
    NeedsAutograd,
    ReadPastAttributes,
    Untraceable,
    guard,
    holds_tensors,
    is_proxy,
    is_tensor,
)
from revgraph.tracing.results import ResultForms
from revgraph.tracing.scopes import Attempt, ModuleScope
from revgraph.tracing.structures import STRUCTURE, TENSOR, outer_structure
from revgraph.tracing.user_code import OwnCode, caller
from revgraph.wiring import Wiring


def _is_list_like(module: nn.Module) -> bool:
    """Whether a module of torch's is more of a list than of a unit: its layers are what to plan."""
    is_wrapper = type(module).__module__.endswith("checkpoint_wrapper")
    return (isinstance(module, nn.Sequential) or is_wrapper) or any(
        isinstance(child, nn.ModuleList) and len(child) > 1 for child in module.children()
    )


def _is_item(args: tuple[Any, ...]) -> bool:
    """Whether items are taken of one of Python's own containers, which runs no code and draws nothing."""
    of, key = args
    return is_proxy(of) and type(of.fake) in (tuple, list, dict) and type(key) in (int, str)


class Tracer(fx.Tracer):
    """fx's tracer with `FakeProxy`; a module whose forward cannot be traced becomes one opaque call.

    Torch's own modules, couplings, wiring and boundaries (but for those `opened`) are single calls. In-place
    arithmetic on traced values becomes out-of-place, with later reads of the same value redirected. Of the
    model's own `parameters`, in whose place there may be fake ones, it knows the paths by identity: user code
    may hold them in other ways, too. `buffers` are the model's own, and its parameters that are
    whole numbers, by path. The code of the modules at the paths in `exports` is read by `torch.export`, for
    these reasons.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        model: nn.Module,
        fake_mode: FakeTensorMode | None,
        parameters: Mapping[int, str],
        opened: tuple[type[Boundary], ...] = (),
        buffers: Mapping[str, Tensor] | None = None,
        exports: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.fake_mode = fake_mode
        self.buffers = buffers or {}
        self.opened = opened
        self.fakes: dict[fx.Node, Any] = {}
        self.where: dict[fx.Node, str] = {}
        self.scope_of: dict[fx.Node, str] = {}
        self.scopes: list[ModuleScope] = []
        self.kept: list[Tensor] = []
        self.opaque: dict[str, str] = {}
        self.checkpointed: dict[str, None] = {}
        self.steps: set[str] = set()
        # Copies on which modules are called that edit their input in place: each belongs to that call.
        self.copies: set[fx.Node] = set()
        self.open_scopes: list[ModuleScope] = []
        self.overwritten = OverwrittenMemory()
        self.exports = exports or {}
        self.exported: dict[str, str] = {}
        self.not_exported: dict[str, str] = {}
        self.is_exporting = False
        self._place: str | None = None  # of the code that an exported graph is made of
        self.mode = modes()
        self.random = RandomSources()
        self._context = copy_context()
        modules = dict(model.named_modules(remove_duplicate=False))
        own = {
            f"{path}.{name}" if path else name: tensor
            for path, module in modules.items()
            for table in (module._parameters, module._buffers)
            for name, tensor in table.items()
            if tensor is not None
        }
        self.evaluator = Evaluator(model, fake_mode, modules)
        self.reads = AttributeReads(
            modules,
            lambda: self.evaluator.running,
            lambda: self.open_scopes[-1] if self.open_scopes else None,
            self._watch_generator,
        )
        self.calls = CallWatch(self.reads, self._hold_distinct)
        self.own_state = OwnState(modules.values())
        self._parameters = parameters
        self.parameter_paths = frozenset(parameters.values())
        self.own_names = own.keys()
        self._memory = {
            memory_key(part) for each in own.values() if not is_lazy(each) for part in parts_of(each)
        }
        self.origins: dict[str, int] = {}  # the identities of the inputs' own tensors, by name
        self.results: Any = None
        self.given: Any = ()  # the arguments of the model's forward, for what it returns of them

    def run(
        self,
        model: nn.Module,
        inputs: list[tuple[str, Tensor]],
        call: Callable[[list[Any]], Any],
    ) -> fx.Graph:
        """The graph of `call`, which is given a proxy for each of the named inputs."""

        def arguments(
            root_fn: Any, is_module: bool, concrete_args: Any = None
        ) -> tuple[Callable[..., Any], list[Any]]:
            proxies = []
            for name, fake in inputs:
                proxy = self.create_proxy("placeholder", name, (), {}, name=name)
                self.fakes[proxy.node] = proxy.fake = fake
                proxies.append(proxy)

            def forward(_root: nn.Module) -> Any:
                self._context = copy_context()
                self.reads.open(model)
                with (
                    self.reads.watching(),
                    self._training_as_value(model, ""),
                    self.calls.watching(),
                ):
                    results = self.unpacked(call(proxies))
                    self.random.check()
                    self.calls.check_unchanged(0)
                    self.calls.settle()
                self.reads.check_unchanged((0, 0, 0))
                forms = ResultForms(self, self.given)
                self.results = map_leaves(forms.form_of, results)
                self.given = ()  # or what knows the tracer would hold on to the proxies
                return tuple(self._proxy_of(node) for node in forms.nodes)

            forward.__annotations__ = {}
            return forward, [model]

        self.create_args_for_root = arguments
        with patched(self.evaluator, self.pass_checkpoint, self.reads.gradient_mode, self.reads.autocast):
            return self.trace(model)

    def _proxy_of(self, node: fx.Node) -> FakeProxy:
        proxy = self.proxy(node)
        proxy.fake = self.fakes.get(node)
        return proxy

    def keep(self, fake: Tensor) -> Tensor:
        """A fake that lives as long as the trace, so that its memory tells it from others."""
        self.kept.append(fake)
        return fake

    def _hold_distinct(self, tensors: list[FakeProxy]) -> None:
        """Hold tensors of which code may ask by `is` whether they are one to be several."""
        given = [each for each in tensors if each.node.op == "placeholder"]
        origins = {self.origins.get(str(each.node.target), id(each)) for each in given}
        if len({id(each.fake) for each in tensors}) < len(tensors) or len(origins) < len(given):
            raise AsksIdentity
        if len(given) > 1:
            self.create_proxy("call_function", guard, (given, "distinct", True, caller()), {})

    def _variable_set(self) -> str:
        """The name of a context variable that the code has set to something; "" for none.

        Variables of torch's own, which `torch.export` sets, are none of the code's.
        """
        now = [each for each in copy_context().items() if not each[0].name.startswith("torch.")]
        changed = (each for each, value in now if self._context.get(each) is not value)
        return next((each.name for each in changed if not isinstance(each.get(), PLAIN)), "")

    def _watch_generator(self, name: str, source: Any) -> None:
        self.random.check()
        self.random.add(name, source)

    def proxy(self, node: fx.Node) -> FakeProxy:
        return FakeProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            self._is_unit(m, module_qualified_name)
            or (type(m).__module__.startswith("torch.") and not _is_list_like(m))
            or type(m).__module__.startswith("revgraph.engine")
            or not stays_open(m)
        )

    def _is_unit(self, m: nn.Module, path: str) -> bool:
        """Whether a module is a node by what it is, and not by what it does."""
        if isinstance(m, Bijection):
            return not m.is_network
        if isinstance(m, (Coupling, Wiring, Boundary)):
            return not isinstance(m, self.opened)
        if takes_flags(m) and self.is_in_network and not Bijection(m).is_network:
            self.steps.add(path)
            return True
        return False

    @property
    def is_in_network(self) -> bool:
        """Whether the trace is inside a network of bijections."""
        callers = [self.root, *(self.root.get_submodule(scope.path) for scope in self.open_scopes)]
        return any(isinstance(each, Bijection) for each in callers)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.evaluator.running or self.is_exporting:
            return forward(*args, **kwargs)
        path = self.reads.paths.get(id(m))
        if path is None:  # made in the forward, or held in a plain list: its code is the code around it
            return forward(*self.unpacked(args), **self.unpacked(kwargs))
        with OwnCode():
            variable = self._variable_set()
            if variable and any(each._forward_hooks or each._forward_pre_hooks for each in m.modules()):
                raise CollectingHooks(
                    f"it sets the context variable {variable!r}, which hooks in {path} may put things into: "
                    "a graph would call them when it is not set"
                )
            is_leaf = self.is_leaf_module(m, path)
            if place := self.own_state.substituted(m, path, tensors_only=not is_leaf):
                raise Untraceable(
                    f"it calls {path} with something else in place of {place}, which is not its own"
                )
            if is_leaf:
                return self._called(m, path, args, kwargs)
        self.random.check()  # here, or a draw of the code around it would be taken for the module's
        args, kwargs = self.unpacked(args), self.unpacked(kwargs)
        before = contents((args, kwargs))
        objects = holds_objects((args, kwargs))
        given = ((), {}) if objects else (self.create_arg(args), self.create_arg(kwargs))
        scope = ModuleScope(path, *given, self.open_scopes[-1] if self.open_scopes else None, objects=objects)
        attempt = Attempt.begin(self, m)
        self.open_scopes.append(scope)
        try:
            self.reads.open(m)
            if m._forward_hooks or m._forward_pre_hooks:
                forward = m.forward  # without the hooks, which are calls of their own
            if m._forward_pre_hooks:
                self._call_hooks(call_pre_hooks, path, m, args, kwargs)
            if path in self.exports:
                result = self.export_call(m, path, args, kwargs)
            elif type(m).__module__.startswith("torch."):  # a container, which asks for no flag
                result = forward(*args, **kwargs)
            else:
                with self._training_as_value(m, path):
                    result = forward(*args, **kwargs)
            if m._forward_hooks:
                self._call_hooks(call_hooks, path, m, args, kwargs, self.unpacked(result))
            self.random.check()
            attempt.check_unchanged()
            changed = contents((args, kwargs)) != before  # what is put into them is no result of a call
            scope.objects = objects or changed or holds_objects(result)
            scope.result = None if scope.objects else map_leaves(self.create_arg, self.unpacked(result))
        except RevgraphError:
            raise
        except Exception as error:
            attempt.roll_back()
            for held in before:
                held.put_back()
            self.opaque[path] = self.exports.get(path, f"{type(error).__name__}: {error}")
            if variable and isinstance(error, CollectingHooks):
                raise  # what has set it is farther out
            if isinstance(error, NeedsAutograd):
                raise  # as a call of its own it would fail where it runs without
            if objects:  # as a call of its own it would put results into them that nothing tells of
                raise
            return self._called(m, path, args, kwargs)
        finally:
            self.open_scopes.pop()
        self.scopes.append(scope)
        return result

    def export_call(self, m: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call of a module whose code `torch.export` reads."""
        try:
            result = export_call(self, m, path, args, kwargs)
        except RevgraphError:
            raise
        except Exception as error:
            self.not_exported[path] = " ".join(str(error).split())
            raise
        self.exported[path] = self.exports[path]
        return result

    def open_exports(self) -> dict[str, str]:
        """The modules that `torch.export` read and that did not become one call, with the reasons."""
        paths = {"", *(scope.path for scope in self.scopes if not scope.is_gone())}
        return {path: reason for path, reason in self.exported.items() if path in paths}

    @contextmanager
    def exporting(self) -> Iterator[None]:
        """While `torch.export` runs code: nothing is recorded, and reads of attributes are seen."""
        self.is_exporting = True
        try:
            with self.reads.through_proxies():
                yield
        finally:
            self.is_exporting = False

    @contextmanager
    def placed(self, place: str | None, paths: Sequence[str] = ()) -> Iterator[None]:
        """A block whose nodes come from this line of the user's code (None: the one that runs), which is that
        of the modules at these paths, from the outermost in."""
        before, self._place, opened = self._place, place, list[ModuleScope]()
        for path in paths:
            scope = ModuleScope(
                path, (), {}, self.open_scopes[-1] if self.open_scopes else None, objects=True
            )
            opened.append(scope)
            self.open_scopes.append(scope)
        try:
            yield
        finally:
            self._place = before
            for scope in reversed(opened):
                self.open_scopes.remove(scope)
                self.scopes.append(scope)

    def _called(self, m: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a module as one call; None where it gave None, which code asks for with `is`."""
        proxy = self.create_proxy("call_module", path, args, kwargs)
        if is_tensor(proxy.fake) and not self.gives_as_many_always(proxy.node):
            proxy.node.meta[STRUCTURE] = TENSOR
        if self.evaluator.ran or path in self.opaque:  # or it is as it was compared before the call
            self.own_state.renew(m)
        if path in self.steps:
            proxy.items[1] = 0.0  # nothing is to read the log-determinant, which the net adds up itself
        return proxy if proxy.fake is not None else proxy.guarded_none()

    def pass_checkpoint(self, place: str) -> None:
        self.checkpointed[place] = None
        for scope in self.open_scopes:
            scope.checkpoints = True

    def _call_hooks(self, call: Any, path: str, module: nn.Module, *given: Any) -> None:
        """Record the call of an opened module's hooks, which does not run now."""
        owner = self._record("get_attr", path, (), {}, None, module)
        self._record("call_function", call, (owner, *given), {}, None, None)

    def call_root(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model itself as one call, where it is a coupling, a wiring or a boundary."""
        return self.create_proxy("call_module", "", args, kwargs)

    @contextmanager
    def _training_as_value(self, m: nn.Module, path: str) -> Iterator[None]:
        """While `m.training` is read it is a traced value: it may change after the trace."""
        training = m.training
        name = f"{path}.training" if path else "training"
        m.__dict__["training"] = self._record("get_attr", name, (), {}, None, training)
        try:
            yield
        finally:
            m.__dict__["training"] = training

    def hold_to_structure(self, node: fx.Node) -> None:
        """Hold other inputs to as many tensors in the container that a node gives, and to its keys."""
        fake = self.fakes[node]
        if isinstance(fake, (tuple, list, dict)) and not self.gives_as_many_always(node):
            node.meta.setdefault(STRUCTURE, outer_structure(fake))

    def gives_as_many_always(self, node: fx.Node) -> bool:
        """Whether a node gives the same number of tensors for all inputs, as is known of some modules."""
        while node.target is operator.getitem:
            node = cast("fx.Node", node.args[0])
        if node.op != "call_module":
            return False
        module = self.root.get_submodule(str(node.target))
        return isinstance(module, (Bijection, Coupling, Wiring)) or all(
            type(each).__module__.startswith("torch.nn.") for each in module.modules()
        )

    def unpacked(self, tree: Any) -> Any:
        """The tree with proxies for containers of tensors replaced by containers of proxies."""

        def unpack(leaf: Any) -> Any:
            if type(leaf) is not FakeProxy or not holds_tensors(leaf.fake):
                return leaf
            leaf.hold_count()
            if isinstance(leaf.fake, dict):
                return {key: unpack(leaf[key]) for key in leaf.fake}
            return type(leaf.fake)(unpack(leaf[index]) for index in range(len(leaf.fake)))

        packed = any(type(leaf) is FakeProxy and holds_tensors(leaf.fake) for leaf in leaves(tree))
        return map_leaves(unpack, tree) if packed else tree  # itself, for code may put something into it

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.evaluator.running or self.is_exporting:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        if is_proxy(a):
            self.overwritten.check_read(a.fake)
            return a.node
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            self.random.check()
            if all(a is not buffer for buffer in self.root.buffers()):
                if self._follows_from_own(a):
                    raise ReadPastAttributes(self._read_past())
                return a
        if id(a) in self._parameters:
            return self.create_node("get_attr", self._parameters[id(a)], (), {})
        if callable(a) and not isinstance(a, (fx.Proxy, nn.Module)):
            return a
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(a, numpy.generic):
            return cast("Any", a).item()
        return super().create_arg(a)

    def _read_past(self) -> str:
        """Where a tensor comes from that was computed of the model's own, and is no proxy."""
        if left := self.evaluator.left:
            return (
                f"modules that are nodes have put tensors into attributes ({', '.join([*left][:3])}"
                f"{' and others' if len(left) > 3 else ''}), and the code around reads them in the same "
                "call. A graph knows what a node returns, and gives gradients to that alone: return them "
                "from the modules' forward"
            )
        return (
            "a tensor is computed of parameters or buffers that are read past their attributes (by "
            "parameters(), buffers() or state_dict(), or once in the constructor), so a graph would hold "
            "today's numbers. Read them as attributes of their modules, in the forward"
        )

    def _follows_from_own(self, tensor: Tensor) -> bool:
        """Whether a tensor that is no proxy was computed of the model's own: then it has a past, or, while
        the model's tensors have no memory, none itself."""
        mode = self.evaluator.fake_mode
        is_fake = mode is not None and isinstance(tensor, FakeTensor) and tensor.fake_mode is mode
        is_left = any(tensor is each for each in self.evaluator.left.values())
        return is_fake or is_left or tensor.grad_fn is not None

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> FakeProxy:
        with OwnCode():
            return self._created(kind, target, args, kwargs, name)

    def _created(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None
    ) -> FakeProxy:
        if modes() != self.mode:
            raise Untraceable(
                "the gradient mode, autocast or the default dtype is changed inside the forward"
            )
        if kind == "placeholder":
            return self._record(kind, target, args, kwargs, name, None)
        if target is operator.getitem and _is_item(args):
            return self._record(kind, target, args, kwargs, name, args[0].fake[args[1]])
        if target == "as_subclass" and args[1] is not Tensor:
            raise Untraceable(f"it makes a tensor a {args[1].__name__}, which a graph would not keep")
        if target is operator.setitem and stands_for_tensor(args[0]):
            self.overwritten.renew(self.evaluate("call_function", operator.getitem, args[:2], {}))
        if target is not operator.getitem and target is not getattr:
            args, kwargs = self.unpacked(args), self.unpacked(kwargs)
        target = initialized(target, kwargs)
        target, args, kwargs, changed = out_of_place(kind, target, args, kwargs)
        if changed is not None and memory_key(changed.fake) in self._memory:
            what = getattr(target, "__name__", target)
            raise Untraceable(f"{what} edits a parameter or buffer in place")
        given = leaves((args, kwargs))
        if any(is_random_source(leaf) for leaf in given):
            raise Untraceable("a call draws from a generator of its own, which a replay would not wind back")
        tensors = [leaf for leaf in given if stands_for_tensor(leaf)]
        versions = [proxy.fake._version for proxy in tensors]
        self.random.check()
        fake = self.evaluate(kind, target, args, kwargs)
        if any(fake is each.fake for each in tensors) and self.calls.compares_tensors():
            raise AsksIdentity
        pairs = zip(tensors, versions, strict=True)
        edited = [proxy for proxy, version in pairs if proxy.fake._version != version]
        if edited:
            copy = self._copy_of(kind, target, edited)
            args, kwargs = replaced((args, kwargs), edited[0], copy)
            fake = self.evaluate(kind, target, args, kwargs)
            if not is_tensor(fake) or not is_same(fake, copy.fake):
                raise Untraceable(f"{target} edits its input in place and returns something else")
            changed = edited[0]
        proxy = self._record(kind, target, args, kwargs, name, fake)
        if changed is not None:
            self.overwritten.add(changed.fake)
            changed.node, changed.fake = proxy.node, fake
        return proxy

    def evaluate(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self.evaluator.evaluate(kind, target, args, kwargs)
        finally:
            if self.evaluator.ran:
                self.random.settle()

    def _record(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None,
        fake: Any,
    ) -> FakeProxy:
        proxy: Any = super().create_proxy(kind, target, args, kwargs, name)
        proxy.fake = fake
        self.fakes[proxy.node] = fake
        self.where[proxy.node] = caller() if self._place is None else self._place
        self.scope_of[proxy.node] = self.open_scopes[-1].path if self.open_scopes else ""
        for scope in self.open_scopes:
            scope.nodes.append(proxy.node)
        return proxy

    def _copy_of(self, kind: str, target: Any, edited: list[FakeProxy]) -> FakeProxy:
        """A copy of the tensor that a module edits in place, for it to be called on."""
        if kind != "call_module":
            raise Untraceable(f"{getattr(target, '__name__', target)} edits a tensor in place")
        if len(edited) > 1 or isinstance(self.root.get_submodule(target), Coupling):
            raise TraceError(
                f"module {target!r} edits its input in place. A function of a coupling must leave its inputs "
                "as they are, or reconstruction would start from edited values: use the out-of-place form "
                "(nn.ReLU() for nn.ReLU(inplace=True))."
            )
        copy = self.create_proxy("call_method", "clone", (edited[0],), {})
        self.copies.add(copy.node)
        return copy

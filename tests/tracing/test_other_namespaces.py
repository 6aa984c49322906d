"""Names of other modules are followed, by whatever way code comes to them: local imports, other names."""

from __future__ import annotations

import importlib
import operator
import pickle
import sys
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from tracing import other_names
from tracing.agreement import Net, equal_runs, linear, randn

import revgraph as rg

NAME = other_names.__name__


def local_import(net: Any, x: Tensor) -> Tensor:
    import tracing.other_names

    return net.f(x) * tracing.other_names.scale


def local_import_of_a_name(net: Any, x: Tensor) -> Tensor:
    from tracing.other_names import scale

    return net.f(x) * scale


def local_import_of_a_class(net: Any, x: Tensor) -> Tensor:
    from tracing.other_names import Kind

    return net.f(x) * Kind.scale


def another_name(net: Any, x: Tensor) -> Tensor:
    names = other_names
    return net.f(x) * names.scale * names.Kind.scale


def another_name_of_a_class(net: Any, x: Tensor) -> Tensor:
    kind = other_names.Kind
    one = two = kind
    return net.f(x) * one.scale * two.scale


def class_of_the_model(net: Any, x: Tensor) -> Tensor:
    kind = type(net)
    return net.f(x) * kind.gain


WAYS = {
    "local import": local_import,
    "local import of a name": local_import_of_a_name,
    "local import of a class": local_import_of_a_class,
    "another name": another_name,
    "another name of a class": another_name_of_a_class,
    "class of the model": class_of_the_model,
    "import module": lambda net, x: net.f(x) * importlib.import_module(NAME).scale,
    "import by function": lambda net, x: net.f(x) * __import__(NAME, fromlist=["scale"]).scale,
    "modules of the system": lambda net, x: net.f(x) * sys.modules[NAME].scale,
    "getter": lambda net, x: net.f(x) * operator.attrgetter("scale")(other_names),
    "computed name": lambda net, x: net.f(x) * getattr(other_names, "".join(["sca", "le"])),
    "in a list": lambda net, x: net.f(x) * next(each.scale for each in [other_names]),
}


class Gained(Net):
    gain = 2.0


class Of(other_names.Kind):
    """Has what its base has."""


KINDS = {"one": (Of, 1)}
# Ways to come to an attribute of a class which the code does not name where it takes it.
UNNAMED = {
    "out of a container": lambda net, x: net.f(x) * KINDS["one"][0].scale,
    "out of one of its own": lambda net, x: net.f(x) * (other_names.Kind, 1)[0].scale,
    "in a loop": lambda net, x: net.f(x) * next(each.scale for each in [Of]),
    "getter": lambda net, x: net.f(x) * operator.attrgetter("scale")(Of),
    "computed name": lambda net, x: net.f(x) * getattr(Of, "".join(["sca", "le"])),
    "name and default": lambda net, x: net.f(x) * getattr(Of, "scale", 2.0),
    "an object of it": lambda net, x: net.f(x) * Of().scale,
    "bases": lambda net, x: net.f(x) * Of.__bases__[0].scale,
    "order of bases": lambda net, x: net.f(x) * Of.__mro__[1].scale,
    "held by the model": lambda net, x: net.f(x) * net.kind.scale,
    "in a list of the model's": lambda net, x: net.f(x) * net.kinds[0].scale,
    "computed name of the model's": lambda net, x: net.f(x) * getattr(net.kind, "sc" + "ale"),
}


@pytest.mark.parametrize("way", UNNAMED)
def test_all_data_of_a_class_in_hand_is_followed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(UNNAMED[way], f=linear())
    model.kind, model.kinds = Of, [Of]  # pyright: ignore
    net = rg.trace(model, randn(3, 4))
    equal_runs(net, model, randn(3, 4))
    monkeypatch.setattr(other_names.Kind, "scale", 7.0)
    equal_runs(net, model, randn(3, 4))
    assert len(net._forms) == 2


class Counted:
    """Has data that changes, and some that gives another value each time."""

    made = 0
    numbers = iter(range(1000))
    memory: ClassVar[dict[int, float]] = {}


def test_what_nothing_takes_of_a_class_hinders_no_trace() -> None:
    """Data of a class in hand that changes meanwhile, or tells something else each time, is let go."""

    def fill(module: Any, args: Any) -> None:
        Counted.memory[len(Counted.memory)] = 1.0
        Counted.made += 1

    model = Net(lambda net, x: net.f(x) * len([Counted]), f=linear())
    model.f.register_forward_pre_hook(fill)  # pyright: ignore
    net = rg.trace(model, randn(3, 4))
    equal_runs(net, model, randn(3, 4))
    assert len(net._forms) == 1


def test_kinds_that_are_only_asked_for_are_held_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(lambda net, x: net.f(x) * (2.0 if isinstance(net, Gained) else 3.0), f=linear())
    net = rg.trace(model, randn(3, 4))
    monkeypatch.setattr(Gained, "gain", 5.0)
    equal_runs(net, model, randn(3, 4))
    assert len(net._forms) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_change_is_followed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Gained(WAYS[way], f=linear())
    net = rg.trace(model, randn(3, 4))
    equal_runs(net, model, randn(3, 4))
    monkeypatch.setattr(other_names.Unused, "scale", 9.0)
    equal_runs(net, model, randn(3, 4))
    assert len(net._forms) == 1
    for place in (other_names, other_names.Kind):
        monkeypatch.setattr(place, "scale", 7.0)
        equal_runs(net, model, randn(3, 4))
    monkeypatch.setattr(Gained, "gain", 5.0)
    equal_runs(net, model, randn(3, 4))
    assert len(net._forms) > 1


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: net.f(x) * vars(other_names)["scale"],
        lambda net, x: net.f(x) * other_names.__dict__["scale"],
        lambda net, x: net.f(x) * vars(other_names.Kind)["scale"],
        lambda net, x: net.f(x) * other_names.Kind.__dict__["scale"],
    ],
)
def test_all_names_at_once_are_refused(body: Any) -> None:
    with pytest.raises(rg.TraceError, match=r"it reads all names of .* at once"):
        rg.trace(Net(body, f=linear()), randn(3, 4))


def test_modules_are_as_before_after_a_trace() -> None:
    kinds = {name: type(each) for name, each in sys.modules.items()}
    rg.trace(Net(another_name, f=linear()), randn(3, 4))
    with pytest.raises(rg.TraceError):
        rg.trace(Net(lambda net, x: x * vars(other_names)["scale"]), randn(3, 4))
    assert {name: type(sys.modules[name]) for name in kinds} == kinds


def test_a_module_that_the_forward_imports_first_is_followed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "comes_late.py").write_text("scale = 2.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = Net(lambda net, x: net.f(x) * importlib.import_module("comes_late").scale, f=linear())
    net = rg.trace(model, randn(3, 4))
    sys.modules["comes_late"].scale = 5.0  # pyright: ignore[reportAttributeAccessIssue]
    equal_runs(net, model, randn(3, 4))
    assert type(sys.modules.pop("comes_late")) is ModuleType


def test_what_follows_such_names_can_be_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    net = rg.trace(Net(another_name, f=linear()), x := randn(3, 4))
    again = pickle.loads(pickle.dumps(net))
    assert torch.equal(again(x), net(x))
    monkeypatch.setattr(other_names, "scale", 7.0)
    assert torch.equal(again(x), net(x))


def add_one(net: Any, x: Tensor) -> Tensor:
    Counted.made += 1
    return net.f(x)


def add_by_another_name(net: Any, x: Tensor) -> Tensor:
    kind = Counted
    kind.made += 1
    return net.f(x)


def add_in_another_module(net: Any, x: Tensor) -> Tensor:
    other_names.scale += 1.0
    return net.f(x)


@pytest.mark.parametrize("body", [add_one, add_by_another_name, add_in_another_module])
def test_code_that_counts_on_classes_and_modules_is_refused(
    body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph would do so once. Where the assignment is passed by, it is none."""
    monkeypatch.setattr(Counted, "made", 0)
    monkeypatch.setattr(other_names, "scale", 2.0)
    with pytest.raises(rg.TraceError, match=r"it changes .*(made|scale)"):
        rg.trace(Net(body, f=linear()), randn(3, 4))
    model = Net(lambda net, x: body(net, x) if net.counts else net.f(x), f=linear())
    model.counts = False  # pyright: ignore
    equal_runs(rg.trace(model, randn(3, 4)), model, randn(3, 4))

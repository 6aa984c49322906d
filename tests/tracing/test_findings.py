"""What a trace found is said: sums that are no couplings, modules that stayed whole, couplings lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import Net, linear, mlp, randn

import revgraph as rg


def last_lines(net: rg.ReversibleModule) -> str:
    """What `print(net.graph)` says after its table."""
    lines = str(net.graph).splitlines()
    rows = sum(node.kind not in ("input", "output") for node in net.graph.nodes)
    return "\n".join(lines[2 + rows :])


def pair() -> tuple[Tensor, Tensor]:
    return randn(3, 4), randn(3, 4, seed=1)


def test_sums_that_are_couplings_are_counted() -> None:
    def body(net: Any, a: Tensor, b: Tensor) -> Any:
        a = a + net.f(b)
        return a, b + net.g(a)

    net = rg.trace(Net(body, f=mlp(), g=mlp(seed=1)), *pair())
    assert last_lines(net) == "2 sums found: all couplings"


def test_a_residual_branch_is_no_coupling_and_told_so() -> None:
    def body(net: Any, a: Tensor, b: Tensor) -> Any:
        a = a + net.f(b)
        return a + net.g(a).sin(), b

    text = last_lines(rg.trace(Net(body, f=mlp(), g=mlp(seed=1)), *pair()))
    assert text.startswith("2 sums found: 1 is a coupling, 1 is none\n  not test_findings.py:")
    assert "a residual branch" in text


def test_a_sum_that_broadcasts_both_operands_is_no_coupling_and_told_so() -> None:
    net = rg.trace(Net(lambda net, a, b: (a[:1] + net.f(b)[:, :1], net.f(a)), f=linear()), *pair())
    text = last_lines(net)
    assert text.startswith("1 sum found: 0 are couplings, 1 is none")
    assert "neither operand has the sum's shape and dtype" in text


def test_sums_inside_a_function_are_counted_apart() -> None:
    def body(net: Any, a: Tensor, b: Tensor) -> Any:
        return a + (net.f(b) + net.g(b).sin()), b

    text = last_lines(rg.trace(Net(body, f=mlp(), g=mlp(seed=1)), *pair()))
    assert text == "2 sums found: 1 is a coupling, 1 inside the functions of couplings"


class Untraceable(nn.Module):
    """It cannot be traced, and holds a coupling."""

    def __init__(self) -> None:
        super().__init__()
        self.half_step = rg.Additive(mlp())
        self.rest = linear()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if a.sum() > 1e9:
            return a
        return self.rest(self.half_step(a, b))


def test_a_large_module_that_stayed_whole_is_named_with_the_reason() -> None:
    net = rg.trace(Net(lambda net, a, b: net.inner(a, b), inner=Untraceable()), *pair())
    text = last_lines(net)
    assert "whole: inner (Untraceable, 100% of the parameters, with 1 couplings in it): its forward" in text
    assert "depends on the values" in text


def test_findings_travel_with_the_graph() -> None:
    net = rg.trace(Net(lambda net, a, b: (a + net.f(b), b), f=mlp()), *pair())
    again = rg.Graph.from_json(net.graph.to_json())
    assert str(again) == str(net.graph)
    assert again == net.graph
    with pytest.raises(rg.GraphError, match="findings are a list of lines"):
        rg.Graph.from_json(net.graph.to_json().replace('"findings": [', '"findings": [3, '))


def test_a_coupling_that_ends_as_a_boundary_is_warned_of() -> None:
    model = Net(lambda net, a, b: (net.step(a, a), b), step=rg.Additive(mlp()))
    with pytest.warns(rg.TraceWarning, match=r"coupling 'step' \(Additive, test_findings.py:\d+\)") as caught:
        net = rg.trace(model, *pair())
    assert [each.filename for each in caught] == [__file__]
    assert "no coupling: 'step'" in last_lines(net)


TURNED = {"same": lambda a, b: (a, a), "constant": lambda a, b: (a, torch.ones(3, 4, dtype=torch.double))}


class Exchange(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return b, a

    inverse = forward


@pytest.mark.parametrize("name", TURNED)
def test_a_bijection_that_ends_as_a_boundary_is_warned_of(name: str) -> None:
    model = Net(lambda net, a, b: net.turn(*TURNED[name](a, b)), turn=rg.Bijection(Exchange()))
    with pytest.warns(rg.TraceWarning, match=r"coupling 'turn' \(Bijection, .*is a boundary"):
        net = rg.trace(model, *pair())
    for one, two in zip(net(*pair()), model(*pair()), strict=True):
        assert torch.equal(one, two)


class Wrong(rg.Coupling):
    """What `uncouple` takes away is not what `couple` added."""

    def couple(self, x: Tensor, term: Tensor) -> Tensor:
        return x + 2 * term

    def uncouple(self, y: Tensor, term: Tensor) -> Tensor:
        return y - term


class Failing(Wrong):
    def uncouple(self, y: Tensor, term: Tensor) -> Tensor:
        raise NotImplementedError("not yet")


class Shrinking(Wrong):
    def uncouple(self, y: Tensor, term: Tensor) -> Tensor:
        return y[:, :1]


class NearlyRight(rg.Coupling):
    def couple(self, x: Tensor, term: Tensor) -> Tensor:
        return x + term

    def uncouple(self, y: Tensor, term: Tensor) -> Tensor:
        return y - 0.999 * term


class Right(rg.Coupling):
    def couple(self, x: Tensor, term: Tensor) -> Tensor:
        return x * term.sigmoid() + term

    def uncouple(self, y: Tensor, term: Tensor) -> Tensor:
        return (y - term) / term.sigmoid()


class WrongTurn(Exchange):
    def inverse(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a, b


def test_a_wrong_inverse_is_refused_with_its_name() -> None:
    model = Net(lambda net, a, b: net.block(a, b), block=Wrong(mlp(), mlp(seed=1)))
    with pytest.raises(
        rg.CouplingError, match=r"^block\.f: uncouple does not undo couple \(off by \d+ %\)"
    ) as caught:
        rg.trace(model, *pair())
    assert caught.value.node == "block.f"
    assert "test_findings.py:" in str(caught.value)
    assert "Mend uncouple" in str(caught.value)


def test_an_inverse_in_double_precision_is_held_to_more_digits() -> None:
    model = Net(lambda net, a, b: net.block(a, b), block=NearlyRight(mlp(), mlp(seed=1)))
    with pytest.raises(rg.CouplingError, match=r"does not undo couple \(off by 0\.\d+ %\)"):
        rg.trace(model, *pair())


UNFIT = [
    (Failing, "fails on what couple gives: NotImplementedError: not yet"),
    (Shrinking, r"makes \[3, 1\]"),
]


@pytest.mark.parametrize(("kind", "text"), UNFIT)
def test_an_inverse_that_fails_is_refused(kind: Any, text: str) -> None:
    with pytest.raises(rg.CouplingError, match=text):
        rg.trace(Net(lambda net, a, b: (net.block(a, b), b), block=kind(mlp())), *pair())


def test_a_bijections_wrong_inverse_is_refused() -> None:
    model = Net(lambda net, a, b: net.turn(a, b), turn=rg.Bijection(WrongTurn()))
    with pytest.raises(
        rg.CouplingError, match=r"^turn: the module's inverse does not undo its forward \(off by"
    ):
        rg.trace(model, *pair())


def test_a_wrong_inverse_is_refused_when_a_specification_is_loaded() -> None:
    rg.register("WrongCoupling", Wrong)
    layer = {"WrongCoupling": {"f": {"Linear": [4, 4]}}, "target": "a", "others": ["b"]}
    spec = {"inputs": {"a": [4], "b": [4]}, "layers": [{"step": layer}], "outputs": ["a", "b"]}
    with pytest.raises(rg.CouplingError, match=r"step\.f: uncouple does not undo couple"):
        rg.load(spec)


def test_the_check_leaves_no_mark() -> None:
    model = Net(
        lambda net, a, b: (net.block(a, b), b),
        block=Right(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 4)).double()
        ),
    )
    before = {key: each.clone() for key, each in model.state_dict().items()}
    random = torch.get_rng_state()
    net = rg.trace(model, *pair())
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(each, before[key]) for key, each in net.state_dict().items())
    assert all(each.grad is None for each in model.parameters())


def test_the_check_runs_each_kind_once_and_on_few_samples() -> None:
    seen: list[int] = []

    class Counting(Right):
        def couple(self, x: Tensor, term: Tensor) -> Tensor:
            if type(x) is Tensor:
                seen.append(len(x))
            return super().couple(x, term)

    def body(net: Any, a: Tensor, b: Tensor) -> Any:
        for step in net.steps:
            a, b = b, step(a, b)
        return a, b

    model = Net(body, steps=nn.ModuleList(Counting(linear(seed=index)) for index in range(6)))
    rg.trace(model, randn(64, 4), randn(64, 4))
    assert [samples for samples in seen if samples < 64] == [4]  # costs are recorded on all 64


def test_what_does_not_run_on_made_up_numbers_is_not_refused() -> None:
    class Picky(nn.Module):
        def forward(self, b: Tensor) -> Tensor:
            if not b.is_meta and type(b) is Tensor and bool((b < 0).any()):
                raise ValueError("only positive numbers")
            return b.sqrt()

    a, b = randn(3, 4), randn(3, 4).abs()
    net = rg.trace(Net(lambda net, a, b: (net.block(a, b), b), block=Right(Picky())), a, b)
    assert [node.kind for node in net.graph.nodes].count("coupling") == 1


@pytest.mark.parametrize("others", ["a", "[b, a]"])
def test_a_target_among_its_own_others_is_a_spec_error(others: str) -> None:
    text = (
        "inputs: {a: [4], b: [4]}\nlayers:\n"
        f"  - step: {{Additive: {{f: {{Linear: [4, 4]}}}}, target: a, others: {others}}}\noutputs: [a, b]\n"
    )
    with pytest.raises(rg.SpecError, match=r":3: 'a' among `others` is the target 'a' itself"):
        rg.load(text)


def test_a_sum_in_a_specification_is_a_coupling_as_a_plus_is() -> None:
    text = """
inputs: {a: [4], b: [4]}
layers:
  - f: {Linear: [4, 4], in: b}
  - c: {Sum: [], in: [a, f]}
  - g: {Linear: [4, 4], in: c}
  - d: {Sum: [], in: [b, g]}
outputs: [c, d]
"""
    net = rg.load(text)
    assert [node.kind for node in net.graph.nodes].count("coupling") == 2
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    for one, two in zip(net.inverse(*net(a, b)), (a, b), strict=True):
        torch.testing.assert_close(one, two)


def test_a_sum_that_is_no_coupling_stays_one_boundary() -> None:
    text = "inputs: {a: [4]}\nlayers:\n  - f: {Linear: [4, 4]}\n  - c: {Sum: [], in: [a, f]}\n"
    net = rg.load(text)
    assert [node.name for node in net.graph.nodes if node.kind == "boundary"] == ["f", "c"]


def test_a_sum_that_is_given_up_later_is_not_counted_as_a_coupling() -> None:
    """Its function's further result is dropped out before other numbers are drawn."""

    def body(net: Any, a: Tensor, b: Tensor) -> Any:
        result, extra = net.f(b)
        extra, other = net.drop(extra), net.drop(b)
        return b, a + result, extra, other

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.tanh(self.layer(x))
            return y, y * y

    net = rg.trace(Net(body, f=Twice(), drop=nn.Dropout(0.5)), *pair())
    assert all(node.kind != "coupling" for node in net.graph.nodes)
    first, second = last_lines(net).splitlines()[:2]
    assert first == "1 sum found: 0 are couplings, 1 is none"
    assert "in another order" in second

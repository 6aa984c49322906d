"""Tracing finds half-steps in ordinary arithmetic, and only where there are any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import Net, agree, linear, mlp, randn

import revgraph as rg


def pair() -> tuple[Tensor, Tensor]:
    return randn(3, 4, seed=1), randn(3, 4, seed=2)


def in_place(net: Any, x1: Tensor, x2: Tensor) -> Any:
    x1 = x1 * 1.0
    x1 += net.f(x2)
    return x1, x2


def add_method(net: Any, x1: Tensor, x2: Tensor) -> Any:
    x1 = x1.clone()
    x1.add_(net.f(x2))
    return x1, x2


def add_method_alpha(net: Any, x1: Tensor, x2: Tensor) -> Any:
    x1 = x1.clone()
    x1.add_(net.f(x2), alpha=2)
    return x1, x2


def sub_method(net: Any, x1: Tensor, x2: Tensor) -> Any:
    x1 = x1.clone()
    x1.sub_(net.f(x2))
    return x1, x2


def in_place_minus(net: Any, x1: Tensor, x2: Tensor) -> Any:
    x1 = x1.clone()
    x1 -= net.f(x2)
    return x1, x2


ONE_HALF_STEP = {
    "x1 + f": lambda net, x1, x2: (x1 + net.f(x2), x2),
    "f + x1": lambda net, x1, x2: (net.f(x2) + x1, x2),
    "x1 - f": lambda net, x1, x2: (x1 - net.f(x2), x2),
    "f - x1": lambda net, x1, x2: (net.f(x2) - x1, x2),
    "x1 += f": in_place,
    "x1 -= f": in_place_minus,
    "x1.add_(f)": add_method,
    "x1.add_(f, alpha)": add_method_alpha,
    "x1.sub_(f)": sub_method,
    "x1.add(f)": lambda net, x1, x2: (x1.add(net.f(x2)), x2),
    "x1.sub(f)": lambda net, x1, x2: (x1.sub(net.f(x2)), x2),
    "torch.add": lambda net, x1, x2: (torch.add(x1, net.f(x2)), x2),
    "torch.add alpha": lambda net, x1, x2: (torch.add(x1, net.f(x2), alpha=0.5), x2),
    "torch.sub alpha": lambda net, x1, x2: (torch.sub(x1, net.f(x2), alpha=0.5), x2),
    "torch.subtract": lambda net, x1, x2: (torch.subtract(x1, net.f(x2)), x2),
    "torch.addcmul": lambda net, x1, x2: (torch.addcmul(x1, net.f(x2), torch.sin(x2)), x2),
    "torch.addcmul value": lambda net, x1, x2: (torch.addcmul(x1, net.f(x2), x2, value=-0.3), x2),
    "torch.addcmul of a parameter": lambda net, x1, x2: (torch.addcmul(x1, net.f(x2), net.norm.weight), x2),
    "torch.addcmul of one value": lambda net, x1, x2: (torch.addcmul(x1, h := net.f(x2), h), x2),
    "torch.addcmul of a scaled stream": lambda net, x1, x2: (torch.addcmul(0.9 * x1, net.f(x2), x2), x2),
    "torch.addcdiv": lambda net, x1, x2: (torch.addcdiv(x1, net.f(x2), 2 + torch.sin(x2), value=0.7), x2),
    "x1.addcmul(f)": lambda net, x1, x2: (x1.addcmul(net.f(x2), x2.exp(), value=2), x2),
    "x1.addcdiv(f)": lambda net, x1, x2: (x1.addcdiv(net.f(x2), x2.exp()), x2),
    "x1.addcmul_(f)": lambda net, x1, x2: (x1.clone().addcmul_(net.f(x2), x2, value=2), x2),
    "torch.lerp": lambda net, x1, x2: (torch.lerp(x1, net.f(x2), 0.3), x2),
    "torch.lerp weight": lambda net, x1, x2: (torch.lerp(x1, net.f(x2), weight=1.5), x2),
    "torch.lerp from f": lambda net, x1, x2: (torch.lerp(net.f(x2), x1, 0.8), x2),
    "torch.lerp of a scaled stream": lambda net, x1, x2: (torch.lerp(0.9 * x1, net.f(x2), 0.5), x2),
    "x1.lerp(f)": lambda net, x1, x2: (x1.lerp(net.f(x2), 0.3) + x2.exp(), x2),
    "x1.lerp_(f)": lambda net, x1, x2: (x1.clone().lerp_(net.f(x2), 0.3), x2),
    "expression": lambda net, x1, x2: (x1 + net.f(net.norm(x2)) * 0.5, x2),
    "functional": lambda net, x1, x2: (x1 + torch.tanh(x2).mul(2).sigmoid(), x2),
    "-f": lambda net, x1, x2: (x1 + -net.f(x2), x2),
    "read twice in F": lambda net, x1, x2: (x1 + net.f(x2) * torch.sigmoid(x2), x2),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", ONE_HALF_STEP)
def test_addition_is_found_as_one_half_step(form: str) -> None:
    net = agree(Net(ONE_HALF_STEP[form], f=mlp(), norm=nn.LayerNorm(4).double()), *pair(), couplings=1)
    (coupling,) = [node for node in net.graph.nodes if node.kind == "coupling"]
    assert len(coupling.others) == 1


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in ONE_HALF_STEP if "=" not in form and "_(" not in form])
def test_half_step_is_undone_exactly_from_its_law(form: str) -> None:
    model = Net(ONE_HALF_STEP[form], f=mlp(), norm=nn.LayerNorm(4).double())
    x1, x2 = pair()
    net = rg.trace(model, x1, x2)
    with torch.no_grad():
        back = net.inverse(*net(x1, x2))
    torch.testing.assert_close(back[0], x1, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back[1], x2, rtol=0, atol=0)


def test_paper_block_is_two_half_steps() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        y1 = x1 + net.f(x2)
        return y1, x2 + net.g(y1)

    net = agree(Net(body, f=mlp(), g=mlp(seed=5)), *pair(), couplings=2)
    assert [node.name for node in net.graph.nodes if node.kind == "coupling"] == ["f", "g"]
    assert all(node.kind in ("coupling", "input", "output") for node in net.graph.nodes)


def test_residual_on_itself_is_no_coupling() -> None:
    agree(Net(lambda net, x1, x2: x1 + net.f(x1), f=mlp()), *pair(), couplings=0)


def test_fused_sum_with_its_target_among_the_factors_is_no_coupling() -> None:
    agree(Net(lambda net, x1, x2: torch.addcmul(x1, x1, net.f(x2)), f=mlp()), *pair(), couplings=0)
    agree(Net(lambda net, x1, x2: torch.addcmul(net.f(x2), x1, x2), f=mlp()), *pair())


def test_what_lies_between_by_a_tensor_is_no_coupling() -> None:
    agree(
        Net(lambda net, x1, x2: (torch.lerp(x1, x2, net.f(x2).sigmoid()), x2), f=mlp()), *pair(), couplings=0
    )


def test_exact_mode_leaves_fused_sums_alone() -> None:
    x1, x2 = (each.float() for each in pair())
    model = Net(lambda net, x1, x2: (torch.addcmul(x1, net.f(x2), x2), x2), f=mlp()).float()
    net = rg.trace(model, x1, x2, exact=True)
    assert "addcmul" in str(net.graph)
    torch.testing.assert_close(net(x1, x2), model(x1, x2))


def test_doubling_is_no_coupling() -> None:
    agree(Net(lambda net, x1, x2: x1 + x1, f=mlp()), *pair(), couplings=0)


def test_target_that_leaks_into_f_through_wiring_is_no_coupling() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        return x1 + net.f(x1.view(3, 2, 2).flatten(1) * x2)

    agree(Net(body, f=mlp()), *pair(), couplings=0)


def test_broadcast_that_changes_the_shape_is_no_coupling() -> None:
    model = Net(lambda net, x1, x2: x1 + net.f(x2), f=mlp())
    net = agree(model, randn(1, 4), randn(3, 4))
    for node in net.graph.nodes:
        if node.kind == "coupling":
            assert net.graph.value[node.target].shape == (3, 4)


def test_broadcast_term_keeps_the_target() -> None:
    agree(Net(lambda net, x1, x2: (x1 + net.f(x2), x2), f=mlp()), randn(3, 4), randn(1, 4), couplings=1)


def test_scalar_added_is_no_coupling_and_right() -> None:
    agree(Net(lambda net, x1, x2: x1 + 3, f=mlp()), *pair(), couplings=0)


def test_promotion_that_changes_the_dtype_is_right() -> None:
    model = Net(lambda net, x1, x2: (x1 + net.f(x2), x2), f=mlp())
    agree(model, randn(3, 4, dtype=torch.float32), randn(3, 4))


def test_term_of_a_lower_precision_is_right() -> None:
    model = Net(lambda net, x1, x2: (x1 + net.f(x2.float()), x2), f=mlp().float())
    agree(model, *pair(), couplings=1)


def test_integer_addition_is_no_coupling() -> None:
    model = Net(lambda net, x1, x2: (x1 + x2 * 2, net.f(x1.double())), f=mlp())
    agree(model, torch.arange(12).view(3, 4), torch.arange(12).view(3, 4) + 5, couplings=0)


def test_momentum_arithmetic_is_found() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        x2 = x2 * 0.9 + net.f(x1) * 0.1
        return x1 + x2, x2

    agree(Net(body, f=mlp()), *pair())


def test_residual_block_inside_f_stays_inside() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = mlp(seed=3), mlp(seed=4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.one(x)
            return x + self.two(x)

    net = agree(Net(lambda net, x1, x2: (x1 + net.f(x2), x2), f=Residual()), *pair(), couplings=1)
    (coupling,) = [node for node in net.graph.nodes if node.kind == "coupling"]
    assert coupling.module == "f"


def test_two_streamed_addition_inside_f_stays_inside() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = mlp(seed=3), mlp(seed=4)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.one(x), self.two(x)
            return a + torch.tanh(b)

    net = agree(Net(lambda net, x1, x2: (x1 + net.f(x2), x2), f=Inner()), *pair(), couplings=1)
    (coupling,) = [node for node in net.graph.nodes if node.kind == "coupling"]
    assert coupling.module == "f"


def test_functional_boundary_between_couplings() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        x1 = x1 + net.f(x2)
        x1 = torch.tanh(net.mid(x1))
        return x1 + net.g(x2), x2

    agree(Net(body, f=mlp(), mid=linear(seed=7), g=mlp(seed=9)), *pair(), couplings=2)


def test_term_that_is_read_again_later() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        term = net.f(x2)
        return x1 + term, term * 2

    agree(Net(body, f=mlp()), *pair())


def test_target_that_is_read_again_later() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        y1 = x1 + net.f(x2)
        return y1, x1 * 2, x2

    agree(Net(body, f=mlp()), *pair(), couplings=1)


def test_alias_of_a_value_added_to_in_place_is_seen() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        x1 = x1.clone()
        alias = x1
        x1 += net.f(x2)
        return alias * 2, x1

    agree(Net(body, f=mlp()), *pair(), couplings=1)


def test_in_place_addition_to_slices() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        x = x1 * 1.0
        a, b = x[:, :2], x[:, 2:]
        a += net.f(b * 1.0)
        b = b + net.g(a)
        return torch.cat([a, b], 1)

    agree(Net(body, f=mlp(2), g=mlp(2, seed=4)), *pair(), couplings=2)


def test_whole_read_after_its_slice_was_changed_in_place_is_right_or_refused() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        x = x1 * 1.0
        a, b = x[:, :2], x[:, 2:]
        a += net.f(b)
        return x * 2

    model = Net(body, f=mlp(2))
    try:
        rg.trace(model, *pair())
    except rg.TraceError as error:
        assert "in place" in str(error)
    else:
        agree(model, *pair())


def test_slice_assignment_is_right_or_refused() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        x = x1 * 1.0
        x[:, :2] = net.f(x2)[:, :2]
        return x + x2

    model = Net(body, f=mlp())
    try:
        rg.trace(model, *pair())
    except rg.TraceError as error:
        assert len(str(error)) > 40
    else:
        agree(model, *pair())


def test_slice_augmented_in_place_is_right_or_refused() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        x = x1 * 1.0
        x[:, :2] += net.f(x2)[:, :2]
        return x + x2

    model = Net(body, f=mlp())
    try:
        rg.trace(model, *pair())
    except rg.TraceError as error:
        assert len(str(error)) > 40
    else:
        agree(model, *pair())


def test_view_changed_in_place_is_right_or_refused() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        x = x1 * 1.0
        x.view(-1).mul_(2)
        x[0].zero_()
        return x + net.f(x2)

    model = Net(body, f=mlp())
    try:
        rg.trace(model, *pair())
    except rg.TraceError as error:
        assert "in place" in str(error)
    else:
        agree(model, *pair())


def test_caller_input_changed_in_place_gives_the_right_result_and_is_left_as_it_was() -> None:
    """The model edits the caller's own tensor; the net computes the same and leaves that tensor alone."""

    class Edits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2)
            return x + 1

    x = randn(3, 4)
    try:
        net = rg.trace(Edits(), x.clone())
    except rg.TraceError:
        return
    ours, theirs = x.clone(), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(net(ours), Edits()(theirs), rtol=0, atol=0)
    assert torch.equal(ours, x), "a net leaves its caller's tensors as they are"


def test_out_argument_is_right_or_refused() -> None:
    class Out(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            buffer = torch.empty_like(x)
            torch.mul(x, y, out=buffer)
            return buffer + x

    x, y = pair()
    with torch.no_grad():
        expected = Out()(x, y)
        try:
            found = rg.trace(Out(), x, y)(x, y)
        except rg.TraceError:
            return
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("function", [torch.relu_, nn.functional.relu_, torch.sigmoid_, torch.exp_])
def test_inplace_functions_are_right_or_refused(function: Any) -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        y = x1 * 1.0
        function(y)
        return y + net.f(x2)

    model = Net(body, f=mlp())
    try:
        rg.trace(model, *pair())
    except rg.TraceError as error:
        assert "in place" in str(error)
    else:
        agree(model, *pair())


def test_positional_inplace_flag_is_right() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        y = x1 * 1.0
        z = nn.functional.relu(y, True)
        return y + net.f(x2), z

    agree(Net(body, f=mlp()), *pair())


def test_positional_inplace_flag_on_a_stream_is_right() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        y = x1 + net.f(x2)
        z = nn.functional.relu(y, True)
        return x2 + net.f(z), y

    agree(Net(body, f=mlp()), *pair())


def test_inplace_keyword_on_a_stream_is_right() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        y = x1 + net.f(x2)
        z = nn.functional.relu(y, inplace=True)
        return x2 + net.f(z), y

    agree(Net(body, f=mlp()), *pair())


def test_inplace_relu_module_is_seen_by_later_reads() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        y = x1 * 1.0
        z = net.act(y)
        return y + net.f(x2), z, x2

    agree(Net(body, f=mlp(), act=nn.ReLU(inplace=True)), *pair())


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["**=", "%=", "@=", "|="])
def test_other_augmented_assignments_are_right(operator: str) -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        y = x1 * 1.0
        alias = y
        if operator == "**=":
            y **= 2
        elif operator == "%=":
            y %= 0.5
        elif operator == "@=":
            y = y @ x2.t()
        else:
            y = y > 0
            y |= x2 > 0
            y = y.double()
        return alias + 1, y

    model = Net(body)
    try:
        rg.trace(model, *pair())
    except rg.TraceError as error:
        assert len(str(error)) > 40
    else:
        agree(model, *pair())


def test_number_augmented_in_place_changes_no_other_number() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        n = x1.shape[0]
        m = n
        n += 1
        return x1 * n + net.f(x2) * m

    agree(Net(body, f=mlp()), *pair())


def test_list_augmented_in_place_is_right() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        parts = [x1]
        parts += [x2]
        both = torch.cat(parts, 1)
        return both

    agree(Net(body), *pair())


def test_subtraction_from_a_stream_is_its_own_inverse_both_ways() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        for _ in range(3):
            x1, x2 = x2 - net.f(x1), x1
        return x1, x2

    agree(Net(body, f=mlp()), *pair(), couplings=3)


def test_chain_of_sums_of_three_streams() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = mlp(), mlp(seed=3)

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Any:
            a = a + self.f(b) + self.g(c)
            b = b + self.f(a) * self.g(c)
            return a, b, c

    agree(Three(), randn(2, 4, seed=1), randn(2, 4, seed=2), randn(2, 4, seed=3), couplings=3)


def test_alpha_given_as_a_tensor_valued_size_is_right() -> None:
    model = Net(lambda net, x1, x2: torch.add(x1, net.f(x2), alpha=x1.shape[0]), f=mlp())
    agree(model, *pair())


def test_complex_streams_are_right() -> None:
    model = Net(lambda net, x1, x2: (x1 + x2 * 2j, x2), f=mlp())
    agree(model, randn(3, 4).to(torch.complex128), randn(3, 4, seed=2).to(torch.complex128) * 1j)


ASSIGNED: dict[str, Callable[..., Any]] = {
    "slice": lambda x, y, f: x.__setitem__((slice(None), slice(0, 2)), f(y)[:, :2]),
    "mask": lambda x, y, f: x.__setitem__(x > 0, 1.0),
    "row": lambda x, y, f: x.__setitem__(0, f(y)[1]),
    "index": lambda x, y, f: x.__setitem__((torch.tensor([0, 2]), 1), y[:2, 0]),
    "ellipsis": lambda x, y, f: x.__setitem__((..., 3), y[..., 0]),
    "of another dtype": lambda x, y, f: x.__setitem__((slice(None), 0), (y[:, 0] > 0).int()),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ASSIGNED)
def test_items_may_be_assigned(kind: str) -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        x = x1 * 1.0
        alias = x
        ASSIGNED[kind](x, x2, net.f)
        return alias + x2, x

    agree(Net(body, f=mlp()), *pair())


def test_items_may_be_changed_in_place_and_assigned() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        x = x1 * 1.0
        x[:, :2] += net.f(x2)[:, :2]
        x[0] *= 2
        return x + x2

    agree(Net(body, f=mlp()), *pair())


def test_items_are_assigned_to_no_tensor_of_the_caller() -> None:
    class Masks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x[:, 0] = 0.0
            return x * 2

    x = randn(3, 4)
    net = rg.trace(Masks(), x.clone())
    given = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(net(given), Masks()(x.clone()), rtol=0, atol=0)
    assert torch.equal(given, x)


def test_items_assigned_to_a_buffer_are_refused_or_right() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(4, dtype=torch.double))

        def forward(self, x: Tensor) -> Tensor:
            self.last[0] = x.detach().mean()
            return x * 2

    with pytest.raises(rg.TraceError, match="in place"):
        rg.trace(Counts(), randn(3, 4))


def test_view_read_after_items_of_its_tensor_were_assigned_is_refused() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        x = x1 * 1.0
        view = x.view(-1)
        x[0] = 0.0
        return view * 2

    with pytest.raises(rg.TraceError, match="in place"):
        rg.trace(Net(body), *pair())

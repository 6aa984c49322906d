"""A compiled step has the loss, gradients and buffers of plain autograd, under any plan and in any state."""

from __future__ import annotations

import copy

import pytest
import torch
from compiling.nets import assert_same_step, chain, compiled, decided, half_step, inputs, step, twice
from compiling.random_steps import worst_error
from torch import Tensor, nn

import revgraph as rg
from revgraph import compile
from revgraph.compiling import backend

PLANS = ("keep", "recompute", "invert")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_random_plans_equal_plain_autograd(seed: int) -> None:
    assert worst_error(seed, "aot") <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("seed", [104, *range(20, 26)])
def test_choices_within_nodes_equal_plain_autograd(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backend.FUSES, "aot", True)
    assert worst_error(seed, "aot") <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_batchnorm_counts_one_step(plan: str) -> None:
    model, plain = twice(chain(lambda: nn.BatchNorm1d(8)))
    found = compiled(model, inputs(), plan=plan)
    for batch in range(3):
        assert_same_step(found, plain, inputs(seed=batch))
    assert int(model.blocks[0].f[1].num_batches_tracked) == 3  # pyright: ignore


class Counts(nn.Module):
    """Reads a buffer, moves it on, and reads it again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        before = self.linear(x) + self.scale
        self.scale.mul_(1.5)
        return torch.tanh(before) + self.scale


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_replays_read_buffers_as_the_forward_did(plan: str) -> None:
    from compiling.nets import Chain

    model, plain = twice(Chain(lambda: rg.Additive(Counts(), Counts())).double())
    found = compiled(model, inputs(), plan=plan)
    for batch in range(2):
        assert_same_step(found, plain, inputs(seed=batch))


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_aot_draws_the_masks_of_eager(plan: str) -> None:
    model, plain = twice(chain(lambda: nn.Dropout(0.4)))
    found = compiled(model, inputs(), plan=plan)
    for batch in range(2):
        assert_same_step(found, plain, inputs(seed=batch))


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_affine_couplings_and_bijections_with_parameters(plan: str) -> None:
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mix = rg.ActNorm(8), rg.InvertibleConv1x1(8)
            self.affine = rg.Affine(nn.Conv2d(4, 8, 1))

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.mix(self.norm(x)).chunk(2, 1)
            return torch.cat([self.affine(a, b), b], 1)

    x = torch.randn(2, 8, 3, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    model = Flow().double()
    model(x)  # ActNorm takes its first batch for an example
    model, plain = twice(model)
    assert_same_step(compiled(model, x, plan=plan), plain, x.requires_grad_())


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_exact_mode_has_the_bits_of_the_eager_engine(plan: str) -> None:
    model, plain = twice(chain(depth=3))
    eager = rg.trace(plain, inputs(), exact=True)
    for one, two in zip(
        step(compiled(model, inputs(), plan=plan, exact=True), inputs()), step(eager, inputs()), strict=True
    ):
        assert torch.equal(one, two)


@pytest.mark.slow
def test_exact_mode_refuses_what_leaves_the_grid() -> None:
    found = compiled(chain(), inputs(), exact=2.0**-45)
    with pytest.raises(rg.DriftError, match="exact mode holds numbers up to"):
        found(inputs() * 1e6)


@pytest.mark.slow
def test_autocast_is_that_of_the_call() -> None:
    model, plain = twice(chain().float())
    x = inputs().detach().float()
    found = compiled(model, x)
    for enabled in (True, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            one, two = found(x), plain(x)
            assert one.dtype == two.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=0, atol=0 if enabled else 1e-6)


@pytest.mark.slow
def test_frozen_and_shared_parameters() -> None:
    shared = half_step()

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = rg.Additive(shared, shared), rg.Additive(shared, half_step())

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.b(*self.a(*x.chunk(2, 1)))

    model, plain = twice(Tied().double())
    found = compiled(model, inputs())
    assert_same_step(found, plain, inputs())
    for each in (model, plain):
        each.b.g[0].weight.requires_grad_(False)
    assert_same_step(found, plain, inputs())


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_tied_weights(plan: str) -> None:
    model, plain = twice(chain())
    for each in (model, plain):
        f, g = each.blocks[0].f, each.blocks[1].g  # pyright: ignore
        f[2].weight, g[0].bias = g[2].weight, f[0].bias
    assert_same_step(compiled(model, inputs(), plan=plan), plain, inputs())


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_frozen_blocks(plan: str) -> None:
    model, plain = twice(chain(lambda: nn.BatchNorm1d(8), depth=3))
    found = compiled(model, inputs(), plan=plan)
    for frozen in ([0], [0, 1, 2], [2]):
        for each in (model, plain):
            each.requires_grad_(True)
            for place in frozen:
                each.blocks[place].requires_grad_(False)  # pyright: ignore
        assert_same_step(found, plain, inputs())
    model.requires_grad_(False)
    assert not found(inputs().detach()).requires_grad


@pytest.mark.slow
def test_evaluation_training_and_no_grad_take_turns() -> None:
    model, plain = twice(chain(lambda: nn.BatchNorm1d(8), lambda: nn.Dropout(0.4)))
    found = compiled(model, inputs())
    for training in (True, False, True):
        found.train(training)
        plain.train(training)
        assert_same_step(found, plain, inputs())
        with torch.no_grad():
            torch.manual_seed(1)
            one = found(inputs())
            torch.manual_seed(1)
            assert torch.equal(one, plain(inputs()))
            assert not one.requires_grad


@pytest.mark.slow
def test_other_batches_and_another_plan() -> None:
    model, plain = twice(chain())
    found = compiled(model, inputs())
    for batch in (6, 3, 1, 6):
        assert_same_step(found, plain, inputs(batch))
    found.plan = rg.keep_all(found.graph)
    assert_same_step(found, plain, inputs())


@pytest.mark.slow
def test_another_form_of_call() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = rg.Additive(half_step(), half_step())

        def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
            a, b = self.block(*x.chunk(2, 1))
            return {"y": a + b if mask is None else (a + b) * mask}

    model, plain = twice(Masked().double())
    found = compiled(model, inputs())
    mask = torch.tensor([1.0, 0.0] * 4, dtype=torch.double)
    for given in ((inputs(),), (inputs(), mask), (inputs(),)):
        one, two = found(*given), plain(*given)
        assert one.keys() == two.keys()
        assert torch.equal(one["y"], two["y"])


class InPieces(nn.Module):
    """Goes through the steps of what its layers give, whose norm sees the features before the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.step = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.first(x).transpose(1, 2)).transpose(1, 2)
        total = torch.zeros_like(z[:, 0])
        for each in z.unbind(1):
            total = torch.tanh(self.step(each) + total)
        return total * 2 if z.shape[1] > 3 else total


@pytest.mark.slow
def test_sizes_of_computed_tensors_that_lead_another_way(recwarn: pytest.WarningsRecorder) -> None:
    """A form runs once by the engine for inputs of new shapes, and is compiled when they come again."""
    model, plain = twice(InPieces().double())
    example = inputs(12).reshape(6, 8, 4)
    found = compiled(model, example[:, :3].detach(), plan="recompute")
    for length in (3, 3, 5, 5, 2, 3, 5):
        x = example[:, :length].detach().requires_grad_()
        assert_same_step(found, plain, x)
    assert not [each for each in recwarn if each.category is rg.CompileWarning]


def test_it_is_the_net_with_another_forward() -> None:
    model = chain()
    net = rg.trace(model, inputs())
    found = compile(net, "aot")
    assert isinstance(found, type(model))
    assert found.state_dict().keys() == model.state_dict().keys()
    assert found.blocks is model.blocks
    net.plan = decided(net.graph, "invert")
    assert found.plan is net.plan
    torch.testing.assert_close(found.inverse(found(inputs())), inputs(), rtol=0, atol=1e-12)
    copied = copy.deepcopy(found)
    assert type(copied) is type(found)
    assert_same_step(copied, model, inputs())


def test_a_value_returned_twice_is_two_tensors() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = rg.Additive(half_step(), half_step())

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            a, b = self.block(*x.chunk(2, 1))
            return a, b, a, x

    model, plain = twice(Twice().double())
    assert_same_step(compiled(model, inputs()), plain, inputs())

"""The net as an ordinary module: copies, files, precision, modes, threads."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from engine.samples import (
    Chain,
    assert_bitwise,
    assert_close,
    batch,
    doubled,
    inverted,
    loss_of,
    normed,
    step,
)
from torch import Tensor, nn

from revgraph.storages import StorageTracker


def test_deepcopy_is_independent() -> None:
    model, plain = doubled(lambda: Chain(f=normed))
    x = batch()
    net = inverted(model, x)
    other = copy.deepcopy(net)
    assert other.plan == net.plan and other.graph == net.graph
    assert not {id(p) for p in other.parameters()} & {id(p) for p in net.parameters()}
    assert_close(step(other, other, x), step(plain, plain, x))
    assert int(model.blocks[0].f[1].num_batches_tracked) == 0


def test_deepcopy_works_while_a_backward_is_pending() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    loss = loss_of(net(x))
    other = copy.deepcopy(net)
    found = torch.autograd.grad(loss, [*model.parameters(), x])
    assert_close(found, step(plain, plain, x))
    assert_close(step(other, other, x), step(plain, plain, x))


@pytest.mark.parametrize("way", ["pickle", "torch.save"])
def test_pickle_and_torch_save_of_the_whole_net(way: str) -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    if way == "pickle":
        other = pickle.loads(pickle.dumps(net))
    else:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert other.plan == net.plan
    assert_close(step(other, other, x), step(plain, plain, x))


def test_state_dict_has_the_models_keys_and_loads_both_ways() -> None:
    model, plain = doubled(lambda: Chain(f=normed))
    x = batch()
    net = inverted(model, x)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in net.named_modules()] == [name for name, _ in plain.named_modules()]
    step(plain, plain, x)
    assert not net.load_state_dict(plain.state_dict()).missing_keys
    assert_bitwise(list(net.state_dict().values()), list(plain.state_dict().values()))
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    fresh, _ = doubled(lambda: Chain(f=normed), seed=9)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert_bitwise(list(fresh.state_dict().values()), list(plain.state_dict().values()))


def test_to_another_precision() -> None:
    model, plain = doubled(Chain)
    x = batch().detach().float().requires_grad_()
    net = inverted(model, batch()).to(torch.float32)
    plain.float()
    for one, two in zip(step(net, model, x), step(plain, plain, x), strict=True):
        torch.testing.assert_close(one, two)


def test_train_and_eval_reach_the_modules() -> None:
    model, _ = doubled(lambda: Chain(f=normed))
    net = inverted(model, batch())
    net.eval()
    assert not any(module.training for module in [*net.modules(), *list(model.modules())[1:]])
    net.train()
    assert all(module.training for module in net.modules())


def test_eval_with_gradients_is_right() -> None:
    model, plain = doubled(lambda: Chain(f=normed))
    x = batch()
    net = inverted(model, x).eval()
    assert_close(step(net, model, x), step(plain.eval(), plain, x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_held(mode: type) -> None:
    torch.manual_seed(0)
    model = Chain(16, lambda width: nn.Linear(width, width), 32)
    x = torch.randn(8, 64)
    net = inverted(model, x)
    with mode(), StorageTracker([x, *net.parameters()]) as tracker:
        output = net(x)
        assert torch.equal(output, model(x))
        assert tracker.live() == output.nbytes
    assert not output.requires_grad


def test_without_gradients_the_peak_does_not_grow_with_depth() -> None:
    peaks = []
    for depth in (2, 16):
        torch.manual_seed(0)
        model = Chain(depth, lambda width: nn.Linear(width, width), 32)
        x = torch.randn(8, 64)
        net = inverted(model, x)
        with torch.no_grad(), StorageTracker([x, *net.parameters()]) as tracker:
            net(x)
        peaks.append(tracker.peak())
    assert peaks[0] == peaks[1]


def test_a_frozen_net_holds_nothing_for_an_input_without_gradient() -> None:
    torch.manual_seed(0)
    model = Chain(4, lambda width: nn.Linear(width, width), 32).requires_grad_(False)
    x = torch.randn(8, 64)
    net = inverted(model, x)
    with StorageTracker([x, *net.parameters()]) as tracker:
        output = net(x)
        assert tracker.live() == output.nbytes


def test_an_output_of_inference_mode_serves_as_data_afterwards() -> None:
    model, plain = doubled(Chain)
    x = batch(grad=False)
    net = inverted(model, x)
    with torch.inference_mode():
        assert torch.equal(net(x), plain(x))
    assert_close(step(net, model, x), step(plain, plain, x))


def test_the_model_stays_usable_beside_the_net() -> None:
    model, plain = doubled(lambda: Chain(f=normed))
    x = batch()
    net = inverted(model, x)
    assert_close(step(model, model, x), step(plain, plain, x))
    assert_close(step(net, model, x), step(plain, plain, x))


def test_training_follows_plain_autograd_for_several_steps() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    losses: list[list[Tensor]] = []
    for run in (net, plain):
        optimizer = torch.optim.AdamW(run.parameters(), lr=1e-2)
        losses.append([])
        for _ in range(5):
            optimizer.zero_grad()
            loss = loss_of(run(x))
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.detach())
    assert_close(losses[0], losses[1], tolerance=1e-10)


class Tracing(nn.Module):
    """Notes the precision of what it is given and of what it makes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.seen: list[tuple[torch.dtype, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.seen.append((x.dtype, y.dtype))
        return torch.tanh(y)


@pytest.mark.parametrize("inside", [True, False])
def test_bf16_autocast_is_the_same_on_replay(inside: bool) -> None:
    torch.manual_seed(0)
    model = Chain(3, Tracing, 16)
    plain = copy.deepcopy(model)
    x = torch.randn(8, 32, requires_grad=True)
    net = inverted(model, x)
    results = []
    for run, leaves in ((net, model), (plain, plain)):
        for block in leaves.blocks:
            block.f.seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            output = run(x)
            if inside:
                loss = loss_of(output)
                found = torch.autograd.grad(loss, [x, *leaves.parameters()])
        if not inside:
            found = torch.autograd.grad(loss_of(output), [x, *leaves.parameters()])
        assert output.dtype == torch.float32
        results.append(found)
    for block in model.blocks:
        assert block.f.seen == [(torch.float32, torch.bfloat16)] * 2
    for one, two in zip(*results, strict=True):
        assert (one - two).abs().max() <= 2e-2 * two.abs().max()

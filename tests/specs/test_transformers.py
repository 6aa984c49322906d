"""Transformers: each block against its formula, each shipped one against plain autograd in float64."""

from __future__ import annotations

import copy
import functools
import math
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revgraph as rg
from revgraph import blocks, specs
from revgraph.errors import SpecError

Weights = dict[str, Tensor]
TINY = {"width": 8, "depth": 2, "heads": 2}
LENGTH = 6
SMALL: dict[str, dict[str, Any]] = {
    "reversible-transformer": {**TINY, "length": LENGTH, "vocabulary": 11, "classes": 3},
    "reversible-lm": {**TINY, "length": LENGTH, "vocabulary": 11},
    "revvit": {**TINY, "patch": 8, "classes": 3},
}


def randomized(module: nn.Module) -> Weights:
    """The module's weights, all away from the zeros and ones at which some begin."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise.to(parameter.dtype))
    return {key: value.detach() for key, value in module.named_parameters()}


def numbers(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normed(x: Tensor, w: Weights, at: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{at}.weight"] + w[f"{at}.bias"]


def linear(x: Tensor, w: Weights, at: str) -> Tensor:
    return x @ w[f"{at}.weight"].T + w[f"{at}.bias"]


def attention(x: Tensor, w: Weights, at: str, heads: int, hidden: Tensor) -> Tensor:
    """`hidden`, [N, T, T], is True where a token does not see another."""
    q, k, v = linear(normed(x, w, f"{at}norm"), w, f"{at}qkv").chunk(3, dim=-1)
    size, found = x.shape[-1] // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        found.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[..., part])
    return linear(torch.cat(found, dim=-1), w, f"{at}out")


def feed_forward(x: Tensor, w: Weights, at: str) -> Tensor:
    wide = linear(normed(x, w, f"{at}norm"), w, f"{at}widen")
    return linear(0.5 * wide * (1 + torch.erf(wide / math.sqrt(2))), w, f"{at}narrow")


def hidden_from(padding: Tensor, causal: bool) -> Tensor:
    tokens = padding.shape[1]
    later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1) & torch.tensor(causal)
    return padding[:, None, :] | later


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def by_hand(name: str, w: Weights, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The shipped network, written out with its weights."""
    half = "attend.f.", "think.f."
    first, second = half if name == "reversible-transformer" else ("f.", "g.")
    if name == "revvit":
        patches = F.unfold(inputs[0], 8, stride=8).transpose(1, 2)
        x = patches @ w["embed.conv.weight"].flatten(1).T + w["embed.positions"]
    else:
        x = w["embed.tokens.weight"][inputs[0]] + w["embed.positions"]
    nothing = torch.zeros(x.shape[:2], dtype=torch.bool)
    padding = inputs[1] if len(inputs) > 1 else nothing
    unseen = hidden_from(padding, causal=name == "reversible-lm")
    x1 = x2 = x
    for index in range(2):
        at = f"block{index}."
        x1 = x1 + attention(x2, w, at + first, heads=2, hidden=unseen)
        x2 = x2 + feed_forward(x1, w, at + second)
    joined = torch.cat([x1, x2], dim=-1)
    head = "scores" if name == "reversible-transformer" else "head"
    ends = normed(joined, w, f"{head}.norm")
    if name == "reversible-lm":
        return (linear(ends, w, "head.linear"),)
    counted = (~padding)[..., None]
    scores = linear((ends * counted).sum(1) / counted.sum(1), w, f"{head}.linear")
    return (scores, joined) if name == "reversible-transformer" else (scores,)


@functools.cache
def _planned(name: str, dropout: float) -> rg.ReversibleModule:
    torch.manual_seed(0)
    return rg.load(name, batch=3, dropout=dropout, **SMALL[name])


def loaded(name: str, dropout: float = 0.0) -> rg.ReversibleModule:
    """The shipped network, small, in float64 and with every coupling inverted."""
    net = copy.deepcopy(_planned(name, dropout)).double()
    net.plan = rg.decide(net.graph, {})
    randomized(net)
    return net


def inputs_of(name: str) -> tuple[Tensor, ...]:
    if name == "revvit":
        return (numbers(3, 3, 32, 32),)
    tokens = torch.randint(11, (3, LENGTH), generator=torch.Generator().manual_seed(3))
    if name == "reversible-lm":
        return (tokens,)
    padding = torch.zeros(3, LENGTH, dtype=torch.bool)
    padding[1, 4:] = padding[2, 2:] = True
    return tokens, padding


def results(net: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    found = net(*inputs)
    return found if isinstance(found, tuple) else (found,)


def loss(outputs: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([(numbers(*each.shape) * each.square()).sum() for each in outputs]).sum()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_is_its_formula(causal: bool, padded: bool) -> None:
    block = blocks.Attention(12, 3, causal=causal).double()
    weights = randomized(block)
    x, padding = numbers(2, 5, 12), torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = padding[1, 4] = padded
    found = block(x, padding) if padded else block(x)
    close(found, attention(x, weights, "", 3, hidden_from(padding, causal)))


def test_feed_forward_is_its_formula_and_four_times_as_wide_inside() -> None:
    block = blocks.FeedForward(6).double()
    weights = randomized(block)
    assert weights["widen.weight"].shape == (24, 6)
    close(block(numbers(2, 5, 6)), feed_forward(numbers(2, 5, 6), weights, ""))
    assert blocks.FeedForward(6, hidden=7).narrow.in_features == 7


def test_a_token_that_sees_none_stays_finite() -> None:
    block = blocks.Attention(8, 2)
    x = torch.randn(2, 4, 8, requires_grad=True)
    found = block(x, torch.ones(2, 4, dtype=torch.bool))
    found.sum().backward()
    assert x.grad is not None and bool(torch.isfinite(found).all() and torch.isfinite(x.grad).all())
    head = blocks.PoolHead(8, 3)
    assert bool(torch.isfinite(head(x, torch.ones(2, 4, dtype=torch.bool))).all())


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("way", ["inverted", "stored"])
def test_outputs_and_gradients_are_those_of_plain_autograd(name: str, way: str) -> None:
    net, inputs = loaded(name), inputs_of(name)
    if way == "stored":
        net.plan = rg.keep_all(net.graph)
    else:
        assert {net.plan.decisions[node.name] for node in net.graph.nodes if node.kind == "coupling"} == {
            "invert"
        }
    weights = {key: value.detach().clone().requires_grad_() for key, value in net.named_parameters()}
    expected = by_hand(name, weights, inputs)
    found = results(net, inputs)
    for one, two in zip(found, expected, strict=True):
        close(one, two)
    loss(expected).backward()
    loss(found).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and weights[key].grad is not None, key
        close(parameter.grad, weights[key].grad)


@pytest.mark.slow
def test_couplings_of_the_blocks_give_their_streams_back() -> None:
    spec = """
    inputs: {x1: [6, 8], x2: [6, 8]}
    layers:
      - block:
          repeat: 3
          in: [x1, x2]
          out: [x1, x2]
          Additive: {f: {Attention: {width: 8, heads: 2, causal: true}}, g: {FeedForward: 8}}
    outputs: [x1, x2]
    """
    net = rg.load(spec, batch=2).double()
    randomized(net)
    x1, x2 = numbers(2, 6, 8), numbers(2, 6, 8, seed=5)
    for found, given in zip(net.inverse(*net(x1, x2)), (x1, x2), strict=True):
        close(found, given)


@pytest.mark.parametrize("changed", range(LENGTH))
def test_later_bytes_do_not_change_earlier_scores(changed: int) -> None:
    net, (tokens,) = loaded("reversible-lm").eval(), inputs_of("reversible-lm")
    others = tokens.clone()
    others[:, changed:] = (tokens[:, changed:] + 5) % 11
    with torch.no_grad():
        before, after = net(tokens), net(others)
    close(before[:, :changed], after[:, :changed])
    assert not torch.allclose(before[:, changed], after[:, changed])


def test_padded_tokens_change_nothing() -> None:
    net, (tokens, padding) = loaded("reversible-transformer").eval(), inputs_of("reversible-transformer")
    others = torch.where(padding, (tokens + 3) % 11, tokens)
    assert not torch.equal(tokens, others)
    with torch.no_grad():
        scores, features = net(tokens, padding)
        again, changed = net(others, padding)
        short, _ = net(tokens[1:2, :4], padding[1:2, :4])
    close(scores, again)
    close(features[~padding], changed[~padding])
    close(scores[1:2], short)


def test_a_sequence_shorter_than_planned_runs_and_a_longer_one_is_refused() -> None:
    net = loaded("reversible-lm")
    assert net(torch.zeros(2, 4, dtype=torch.int64)).shape == (2, 4, 11)
    with pytest.raises(ValueError, match="there are 7 tokens, and positions for 6: give at most so many"):
        net(torch.zeros(2, 7, dtype=torch.int64))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_dropout_falls_alike_when_a_function_runs_again(name: str) -> None:
    report = rg.check(loaded(name, dropout=0.3).train(), *inputs_of(name))
    assert report.max_relative_error < 1e-10


def test_predicted_bytes_are_those_measured() -> None:
    for name in SMALL:
        net = copy.deepcopy(_planned(name, 0.0))
        net.plan = rg.decide(net.graph, {})
        found = rg.measure(net, *specs.example_inputs(specs.build(name, batch=3, **SMALL[name])))
        assert (found.peak_bytes, found.held_bytes) == (net.plan.peak_bytes, net.plan.held_bytes)


@pytest.mark.parametrize("name", SMALL)
def test_a_few_steps_learn_inverted_as_stored(name: str) -> None:
    losses: list[list[float]] = []
    inputs = inputs_of(name)
    for stored in (False, True):
        net = loaded(name)
        if stored:
            net.plan = rg.keep_all(net.graph)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        losses.append([])
        for _ in range(8):
            scores = results(net, inputs)[0]
            target = (torch.arange(scores[..., 0].numel()) % 3).reshape(scores.shape[:-1])
            found = F.cross_entropy(scores.flatten(0, -2), target.flatten())
            optimizer.zero_grad()
            found.backward()
            optimizer.step()
            losses[-1].append(found.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)
    assert losses[0][-1] < 0.7 * losses[0][0]


@pytest.mark.parametrize("name", SMALL)
def test_shipped_transformers_are_short_and_take_their_parameters(name: str) -> None:
    text = (files("revgraph") / "models" / f"{name}.yaml").read_text()
    assert len(text.splitlines()) < 60
    with torch.device("meta"):
        built = specs.build(name, depth=5, width=48)
        weights = built.module.state_dict()
    assert built.name == name and set(SMALL[name]) <= set(built.parameters)
    assert {key.split(".")[0] for key in weights} >= {f"block{index}" for index in range(5)}
    assert not any(key.startswith("block5.") for key in weights)
    widths = {value.shape[0] for key, value in weights.items() if key.endswith("out.weight")}
    assert widths == {48}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"width": 30},
            r"Attention cannot be made .*attention's width must be a multiple of its heads, not 30 with 4",
        ),
        ({"heads": 0}, "must be a multiple of its heads, not 96 with 0"),
        ({"patch": 5}, "an image of 32 pixels cannot be cut into patches of 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(given: dict[str, int], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        specs.build("revvit", **given)

"""Each block against its formula, written out with torch's functions and nothing of revgraph."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revgraph import blocks
from revgraph.couplings import Boundary

Weights = dict[str, Tensor]


def randomized(module: nn.Module) -> Weights:
    """The module's state, after scales and shifts of normalizations have left their starting values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return {key: value.clone() for key, value in module.state_dict().items()}


def image(channels: int, size: int = 8) -> Tensor:
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(2))


def activate(x: Tensor, weights: Weights, norm: str) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = x.var((0, 2, 3), keepdim=True, unbiased=False)
    scale, shift = (weights[f"{norm}.{part}"].reshape(1, -1, 1, 1) for part in ("weight", "bias"))
    return ((x - mean) / (variance + 1e-3).sqrt() * scale + shift).clamp(min=0)


def basic(x: Tensor, w: Weights, at: str = "", stride: int = 1, preactivate: bool = True) -> Tensor:
    x = activate(x, w, f"{at}norm1") if preactivate else x
    x = F.conv2d(x, w[f"{at}conv1.weight"], stride=stride, padding=1)
    return F.conv2d(activate(x, w, f"{at}norm2"), w[f"{at}conv2.weight"], padding=1)


def bottleneck(x: Tensor, w: Weights, at: str = "", stride: int = 1, preactivate: bool = True) -> Tensor:
    x = activate(x, w, f"{at}norm1") if preactivate else x
    x = F.conv2d(x, w[f"{at}conv1.weight"], stride=stride)
    x = F.conv2d(activate(x, w, f"{at}norm2"), w[f"{at}conv2.weight"], padding=1)
    return F.conv2d(activate(x, w, f"{at}norm3"), w[f"{at}conv3.weight"])


def pool_and_pad(x: Tensor, channels: int, stride: int) -> Tensor:
    n, c, h, w = x.shape
    pooled = x.reshape(n, c, h // stride, stride, w // stride, stride).mean((3, 5))
    zeros = torch.zeros(n, (channels - c) // 2, h // stride, w // stride)
    return torch.cat([zeros, pooled, zeros], dim=1)


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preactivate", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_functions_follow_their_formula(stride: int, preactivate: bool) -> None:
    x = image(6)
    block = blocks.BasicFunction(6, 10, stride, preactivate)
    weights = randomized(block)
    close(block(x), basic(x, weights, "", stride, preactivate))
    block = blocks.BottleneckFunction(6, 16, stride, preactivate)
    weights = randomized(block)
    close(block(x), bottleneck(x, weights, "", stride, preactivate))


def test_bottleneck_narrows_to_a_quarter_of_its_output() -> None:
    shapes = {key: tuple(value.shape) for key, value in blocks.BottleneckFunction(8, 32).named_parameters()}
    assert shapes["conv1.weight"] == (8, 8, 1, 1)
    assert shapes["conv2.weight"] == (8, 8, 3, 3)
    assert shapes["conv3.weight"] == (32, 8, 1, 1)
    with pytest.raises(ValueError, match="out_channels must be a multiple of 4, not 6"):
        blocks.BottleneckFunction(8, 6)


@pytest.mark.parametrize(("out", "stride"), [(6, 1), (6, 2), (14, 2)])
def test_basic_unit_adds_the_pooled_and_padded_input(out: int, stride: int) -> None:
    x = image(6)
    block = blocks.BasicUnit(6, out, stride)
    weights = randomized(block)
    close(block(x), basic(x, weights, "f.", stride) + pool_and_pad(x, out, stride))


@pytest.mark.parametrize(("out", "stride"), [(16, 1), (16, 2), (8, 2)])
def test_bottleneck_unit_adds_the_projected_raw_input(out: int, stride: int) -> None:
    x = image(8)
    block = blocks.BottleneckUnit(8, out, stride)
    weights = randomized(block)
    shortcut = F.conv2d(x, weights["shortcut.weight"], stride=stride)
    close(block(x), bottleneck(x, weights, "f.", stride) + shortcut)


def test_units_that_keep_the_shape_add_the_input_itself() -> None:
    x = image(8)
    for block, function in ((blocks.BasicUnit(8), basic), (blocks.BottleneckUnit(8), bottleneck)):
        weights = randomized(block)
        assert not any("shortcut" in key for key in weights)
        close(block(x), x + function(x, weights, "f."))


@pytest.mark.parametrize("preactivate", [True, False])
@pytest.mark.parametrize(("out", "stride"), [(6, 1), (10, 2)])
def test_basic_entry_is_the_papers_first_unit(out: int, stride: int, preactivate: bool) -> None:
    x1, x2 = image(6), image(6).flip(0)
    block = blocks.BasicEntry(6, out, stride, preactivate)
    weights = randomized(block)
    y1 = basic(x2, weights, "f.", stride, preactivate) + pool_and_pad(x1, out, stride)
    y2 = basic(y1, weights, "g.") + pool_and_pad(x2, out, stride)
    for one, two in zip(block(x1, x2), (y1, y2), strict=True):
        close(one, two)


@pytest.mark.parametrize("stride", [1, 2])
def test_bottleneck_entry_projects_each_stream_with_weights_of_its_own(stride: int) -> None:
    x1, x2 = image(4), image(4).flip(0)
    block = blocks.BottleneckEntry(4, 16, stride)
    weights = randomized(block)
    s1, s2 = (F.conv2d(x, weights[f"shortcut{i}.weight"], stride=stride) for i, x in ((1, x1), (2, x2)))
    y1 = bottleneck(x2, weights, "f.", stride) + s1
    y2 = bottleneck(y1, weights, "g.") + s2
    for one, two in zip(block(x1, x2), (y1, y2), strict=True):
        close(one, two)


def test_stems_and_head_follow_their_formula() -> None:
    x = image(3, size=32)
    stem = blocks.Stem(3, 8)
    weights = randomized(stem)
    close(stem(x), activate(F.conv2d(x, weights["conv.weight"], padding=1), weights, "norm"))
    stem = blocks.ImageNetStem(3, 8)
    weights = randomized(stem)
    features = F.conv2d(x, weights["conv.weight"], stride=2, padding=3)
    pooled = F.max_pool2d(features, 3, stride=2, padding=1)
    close(stem(x), activate(pooled, weights, "norm"))
    head = blocks.Head(3, 5)
    weights = randomized(head)
    means = activate(x, weights, "norm").mean((2, 3))
    close(head(x), means @ weights["linear.weight"].T + weights["linear.bias"])


def test_sum_adds_any_number_of_values() -> None:
    values = [image(2), image(2) * 2, image(2) * 3]
    close(blocks.Sum()(*values), image(2) * 6)


# The paper's, and the ends of transformers; other families have constants of their own.
ARGUMENTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Stem", "ImageNetStem", "BasicFunction", "BottleneckFunction", "BasicUnit"), (4, 8)),
    **dict.fromkeys(("BottleneckUnit", "BasicEntry", "BottleneckEntry", "PatchEmbedding"), (4, 8)),
    **dict.fromkeys(("Head", "TokenHead", "PoolHead"), (4, 5)),
    "Sum": (),
    "TokenEmbedding": (4, 8, 5),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_blocks_share_constants_and_never_work_in_place(name: str) -> None:
    block = getattr(blocks, name)(*ARGUMENTS[name])
    if not name.endswith("Function") and name != "Sum":
        assert isinstance(block, Boundary)
    for part in block.modules():
        assert not getattr(part, "inplace", False)
        if isinstance(part, nn.BatchNorm2d):
            assert (part.eps, part.momentum) == (1e-3, 0.01)
        if isinstance(part, nn.Conv2d):
            assert part.bias is None


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_start_truncated_normal(kernel: int) -> None:
    torch.manual_seed(0)
    block = blocks.BottleneckFunction(256)
    weight = block.get_submodule("conv1" if kernel == 1 else "conv2").weight
    deviation = math.sqrt(2 / (kernel * kernel * 64))
    assert weight.abs().max() <= 2 * deviation
    # Cut at two deviations, a normal distribution keeps .8796 of its deviation.
    assert weight.std().item() == pytest.approx(0.8796 * deviation, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=0.02 * deviation)


def test_shortcut_refuses_what_zeros_cannot_fill() -> None:
    for out in (9, 4):
        with pytest.raises(
            ValueError, match=f"cannot lead from 6 channels to {out}: the difference must be even"
        ):
            blocks.BasicUnit(6, out)

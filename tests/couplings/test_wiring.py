"""Wiring modules: each forward undone by its inverse, and bad arguments refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import revgraph as rg

CASES: dict[str, tuple[Any, tuple[tuple[int, ...], ...]]] = {
    "split": (rg.Split(), ((2, 6, 3),)),
    "split 3": (rg.Split(3, dim=2), ((2, 4, 6),)),
    "split last": (rg.Split(2, dim=-1), ((2, 4, 6),)),
    "split 1": (rg.Split(1), ((2, 4),)),
    "concatenate": (rg.Concatenate(), ((2, 3), (2, 4), (2, 1))),
    "concatenate last": (rg.Concatenate(-1), ((2, 3, 4), (2, 3, 5))),
    "permute": (rg.Permute(2, 0, 1), ((2, 3), (2, 4), (2, 1))),
    "swap": (rg.Swap(), ((2, 3), (4, 4))),
    "reshape": (rg.Reshape(2, 6), ((5, 12),)),
    "reshape free": (rg.Reshape(-1, 2), ((5, 3, 4),)),
    "space to depth": (rg.SpaceToDepth(), ((2, 3, 4, 6),)),
    "space to depth 3": (rg.SpaceToDepth(3), ((2, 1, 6, 9),)),
}


def tensors(shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    return [torch.randn(*shape, dtype=torch.double) for shape in shapes]


def _tuple(tree: Any) -> tuple[Tensor, ...]:
    return tuple(tree) if isinstance(tree, (tuple, list)) else (tree,)


@pytest.mark.parametrize("case", CASES)
def test_wiring_gives_its_input_back_bitwise(case: str) -> None:
    module, shapes = CASES[case]
    x = tensors(shapes)
    back = _tuple(module.inverse(*_tuple(module(*x)), shapes=[each.shape for each in x]))
    assert len(back) == len(x)
    for one, two in zip(back, x, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("case", CASES)
def test_wiring_only_rearranges(case: str) -> None:
    module, shapes = CASES[case]
    x = tensors(shapes)
    before = torch.cat([each.flatten() for each in x]).sort().values
    after = torch.cat([each.flatten() for each in _tuple(module(*x))]).sort().values
    assert torch.equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [None, 7])
def test_traced_wiring_is_inverted_by_the_net(case: str, batch: int | None) -> None:
    module, shapes = CASES[case]
    net = rg.trace(module, *tensors(shapes))
    assert {node.kind for node in net.graph.nodes} <= {"input", "wiring", "output"}
    x = tensors(shapes if batch is None else tuple((batch, *shape[1:]) for shape in shapes))
    for one, two in zip(_tuple(net.inverse(*_tuple(net(*x)))), x, strict=True):
        assert torch.equal(one, two)


def test_permute_output_is_the_input_of_its_order() -> None:
    a, b, c = tensors(((1,), (1,), (1,)))
    assert all(one is two for one, two in zip(rg.Permute(2, 0, 1)(a, b, c), (c, a, b), strict=True))


@pytest.mark.parametrize("order", [(0, 0), (1, 2), (0, 2), (-1, 0), (0, 1, 1)])
def test_permute_must_be_an_order(order: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no order of"):
        rg.Permute(*order)


def test_permute_of_another_number_of_streams_is_an_error() -> None:
    with pytest.raises((ValueError, IndexError, TypeError), match="stream"):
        rg.Permute(1, 0, 2)(*tensors(((1,), (1,))))
    with pytest.raises((ValueError, IndexError, TypeError), match="stream"):
        rg.Swap()(*tensors(((1,), (1,), (1,))))


def test_split_of_odd_channels_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot split 5 channels"):
        rg.Split()(torch.randn(2, 5))


@pytest.mark.parametrize("parts", [0, -1])
def test_split_into_no_parts_is_an_error(parts: int) -> None:
    with pytest.raises(ValueError, match="part"):
        rg.Split(parts)(torch.randn(2, 4))


def test_reshape_to_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="the sizes differ"):
        rg.Reshape(5)(torch.randn(2, 6))


def test_space_to_depth_of_an_odd_image_is_an_error() -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"divisible|3"):
        rg.SpaceToDepth()(torch.randn(1, 2, 3, 4))


@pytest.mark.parametrize("block", [0, -2])
def test_space_to_depth_block_must_be_positive(block: int) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        rg.SpaceToDepth(block)(torch.randn(1, 2, 4, 4))


@pytest.mark.parametrize(
    "module", [rg.Split(), rg.Reshape(4), rg.SpaceToDepth()], ids=lambda m: type(m).__name__
)
def test_wiring_of_one_stream_refuses_two(module: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        module(*tensors(((2, 4, 2, 2), (2, 4, 2, 2))))


@pytest.mark.parametrize("layer", ["{Permute: [0, 1]", "{Swap: []", "{Concatenate: []"])
def test_a_wiring_that_reads_a_value_twice_is_planned_as_a_boundary(layer: str) -> None:
    net = rg.load(
        f"""
        inputs: {{x: [4]}}
        layers:
          - wide: {{Linear: [4, 6]}}
          - twice: {layer}, in: [wide, wide]}}
        """,
        batch=3,
    ).double()
    assert net.graph.node["twice"].kind == "boundary"
    x = torch.randn(3, 4, dtype=torch.float64)
    assert rg.check(net, x).max_relative_error < 1e-12

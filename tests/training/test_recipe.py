"""The paper's recipe: exact learning rates, the right weights decaying, running averages that settle."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from revgraph.training.averages import norm_momentum, settling
from revgraph.training.errors import TrainingError
from revgraph.training.optimizing import parameter_groups, sgd
from revgraph.training.recipe import Recipe, learning_rate, steps_of


def test_papers_schedule_exactly() -> None:
    paper = Recipe(steps=80_000)
    assert (paper.batch, paper.momentum, paper.weight_decay, paper.warmup) == (100, 0.9, 2e-4, 0)
    rates = [learning_rate(paper, step) for step in range(1, 80_001)]
    assert rates == [0.1] * 40_000 + [0.01] * 20_000 + [0.001] * 20_000


@pytest.mark.parametrize(
    ("steps", "full", "tenth", "hundredth"), [(8, 4, 2, 2), (10, 5, 3, 2), (7, 4, 2, 1), (1, 1, 0, 0)]
)
def test_schedule_scales_to_the_steps(steps: int, full: int, tenth: int, hundredth: int) -> None:
    rates = [learning_rate(Recipe(steps=steps, learning_rate=1.0), step) for step in range(1, steps + 1)]
    assert rates == [1.0] * full + [0.1] * tenth + [0.01] * hundredth


def test_warmup_climbs_linearly() -> None:
    recipe = Recipe(steps=100, learning_rate=0.4, warmup=4)
    assert [learning_rate(recipe, step) for step in range(1, 6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


def test_epochs_are_rounded_up_to_steps() -> None:
    assert steps_of(1, 1437, 100) == 15
    assert steps_of(160, 50_000, 100) == 80_000
    assert steps_of(0.001, 1437, 100) == 1


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"steps": 0}, "steps is 0, and must be 1 or more"),
        ({"batch": 0}, "batch is 0, and must be 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, and must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, and must be above 0"),
        ({"warmup": 11}, "warmup is 11, and must be from 0 to the number of steps"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"precision": "fp8"}, "precision is fp8, and must be no or bf16 or fp16"),
    ],
)
def test_figure_out_of_range_is_named(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(TrainingError, match=text):
        Recipe(**{"steps": 10, **wrong})  # type: ignore[arg-type]


def test_weight_decay_on_conv_and_linear_weights_only() -> None:
    net = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "linear": nn.Linear(4, 2),
            "embedding": nn.Embedding(5, 4),
            "frozen": nn.Linear(2, 2).requires_grad_(False),
        }
    )
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decaying, other = parameter_groups(net, 2e-4)
    assert [names[id(p)] for p in decaying["params"]] == ["conv.weight", "linear.weight"]
    assert [names[id(p)] for p in other["params"]] == [
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "linear.bias",
        "embedding.weight",
    ]
    assert (decaying["weight_decay"], other["weight_decay"]) == (2e-4, 0.0)


def test_shared_weight_is_in_one_group_once() -> None:
    shared = nn.Linear(4, 4, bias=False)
    (group,) = parameter_groups(nn.Sequential(shared, shared), 1e-4)
    assert len(group["params"]) == 1


def test_sgd_has_the_recipes_figures() -> None:
    optimizer = sgd(nn.Linear(2, 2), Recipe(steps=1, learning_rate=0.3, momentum=0.8, weight_decay=0.5))
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.3, 0.8, 0.5),
        (0.3, 0.8, 0.0),
    ]


def test_running_averages_settle_within_the_last_quarter() -> None:
    assert norm_momentum(0.01, 80_000) == 0.01
    for steps in (160, 400, 1600):
        assert (1 - norm_momentum(0.01, steps)) ** (steps / 4) < 0.02
    assert norm_momentum(0.3, 10) == 0.3


def test_momentum_of_the_module_is_given_back() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2, momentum=0.01), nn.BatchNorm2d(2, momentum=None))
    with pytest.raises(RuntimeError), settling(net, 200):
        assert [module.momentum for module in net] == [0.08, None]
        raise RuntimeError
    assert [module.momentum for module in net] == [0.01, None]


def test_groups_cover_every_parameter_of_a_network() -> None:
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.GroupNorm(1, 2), nn.PReLU())
    covered = {id(p) for group in parameter_groups(net, 0.1) for p in group["params"]}
    assert covered == {id(p) for p in net.parameters()}
    assert all(isinstance(p, torch.nn.Parameter) for p in net.parameters())

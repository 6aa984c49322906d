"""The optimizer, and which parameters it lets decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from revgraph.training.recipe import Recipe

DECAYING = (_ConvNd, nn.Linear)
SQUARES = 0.95


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: weights of convolutions and linear maps, which decay, and everything else.

    Biases, normalisation and parameters of other modules do not decay (Gomez et al. 2017, section 4). Frozen
    parameters are left out, and so is an empty group.
    """
    decaying = {id(module.weight) for module in net.modules() if isinstance(module, DECAYING)}
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in decaying], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decaying], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer that the recipe names, over `parameter_groups`."""
    return sgd(net, recipe) if recipe.optimizer == "sgd" else adamw(net, recipe)


def sgd(net: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Stochastic gradient descent with momentum over `parameter_groups`."""
    return torch.optim.SGD(
        parameter_groups(net, recipe.weight_decay), lr=recipe.learning_rate, momentum=recipe.momentum
    )


def adamw(net: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Adam with decoupled weight decay over `parameter_groups`; squares are averaged as for GPT-3.

    Brown et al. 2020, appendix B: the averages of squared gradients decay by .95 a step.
    """
    return torch.optim.AdamW(
        parameter_groups(net, recipe.weight_decay), lr=recipe.learning_rate, betas=(recipe.momentum, SQUARES)
    )

"""How a network is trained: the paper's recipe, or a transformer's, scaled to the steps asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from revgraph.training.errors import TrainingError

Precision = Literal["no", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
Optimizer = Literal["sgd", "adamw"]
OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run, but for the network and the data.

    The learning rate climbs linearly over the first `warmup` steps. With "sgd", stochastic gradient descent
    with momentum, it is then divided by 10 at half and again at three quarters of `steps`; the paper has
    80,000 steps and no warm-up (Gomez et al. 2017, section 4). With "adamw" (Loshchilov and Hutter 2019) it
    falls along half a cosine towards 0, and `momentum` is that of the mean gradient. `weight_decay` is for
    the weights of convolutions and linear maps. `batch` counts samples: images, or windows of text.

    Raises:
        TrainingError: a figure is out of range.
    """

    steps: int
    batch: int = 100
    learning_rate: float = 0.1
    warmup: int = 0
    momentum: float = 0.9
    weight_decay: float = 2e-4
    seed: int = 0
    precision: Precision = "no"
    optimizer: Optimizer = "sgd"

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "steps", self.steps, "1 or more")
        _require(self.batch >= 1, "batch", self.batch, "1 or more")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        _require(0 <= self.warmup <= self.steps, "warmup", self.warmup, "from 0 to the number of steps")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "from 0 to below 1")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _require(0 <= self.seed < 2**32, "seed", self.seed, f"from 0 to {2**32 - 1}")
        _require(self.precision in PRECISIONS, "precision", self.precision, " or ".join(PRECISIONS))
        _require(self.optimizer in OPTIMIZERS, "optimizer", self.optimizer, " or ".join(OPTIMIZERS))


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of step number `step`, counted from 1 to `recipe.steps`.

    Example:
        >>> paper = Recipe(steps=80_000)
        >>> [learning_rate(paper, step) for step in (1, 40_000, 40_001, 60_000, 60_001, 80_000)]
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    """
    done = step - 1
    warm = min(1.0, step / recipe.warmup) if recipe.warmup else 1.0
    if recipe.optimizer == "adamw":
        way = max(0, done - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        return recipe.learning_rate * warm * (1 + math.cos(math.pi * way)) / 2
    divisor = 1 if 2 * done < recipe.steps else 10 if 4 * done < 3 * recipe.steps else 100
    return recipe.learning_rate / divisor * warm


def steps_of(epochs: float, samples: int, batch: int) -> int:
    """The steps in which `epochs` passes over `samples` samples are made, rounded up."""
    return max(1, math.ceil(epochs * samples / batch))


def _require(fine: bool, name: str, value: object, range_: str) -> None:
    if not fine:
        raise TrainingError(f"{name} is {value}, and must be {range_}")

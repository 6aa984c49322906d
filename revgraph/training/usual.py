"""The recipe that is usual for a data set, where nothing else is asked for."""

from __future__ import annotations

from typing import Any

from revgraph.training.recipe import Recipe, steps_of
from revgraph.training.tasks import Task

PAPER_STEPS = 80_000
STEPS = {"digits": 500, "text": 2_000}
BATCH = {"text": 16}
OPTIMIZER = {"text": "adamw"}


def usual_recipe(task: Task, epochs: float | None = None, **given: Any) -> Recipe:
    """The recipe with the figures given, those that are not None, and for the others what is usual.

    Images are learned by stochastic gradient descent as in the paper, text by AdamW, with a rate that climbs
    over the first twentieth of the steps. `epochs` are passes over the training samples, in place of steps.

    Raises:
        TrainingError: a figure is out of range.

    Example:
        >>> from revgraph.training.data import load_data
        >>> usual_recipe(load_data("digits"), batch=50)
        Recipe(steps=500, batch=50, learning_rate=0.1, warmup=0, momentum=0.9, weight_decay=0.0002, seed=0, \
precision='no', optimizer='sgd')
    """
    figures = {name: value for name, value in given.items() if value is not None}
    figures.setdefault("optimizer", OPTIMIZER.get(task.name, "sgd"))
    figures.setdefault("batch", BATCH.get(task.name, 100))
    if epochs is not None:
        figures["steps"] = steps_of(epochs, len(task.train), figures["batch"])
    steps = figures.setdefault("steps", STEPS.get(task.name, PAPER_STEPS))
    if figures["optimizer"] == "adamw":
        figures = {"learning_rate": 3e-3, "warmup": steps // 20, "weight_decay": 0.1, **figures}
    return Recipe(**figures)

"""What a network learns, as the loop sees it: samples to draw, labels to hit, and words for both."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from revgraph.errors import DataError
from revgraph.specs import InputShape


class Task(Protocol):
    """Samples in a training and a test split, each with one label or several, numbered from 0.

    `samples` is what they are called, such as images, and `judged` what is right or wrong, such as bytes.
    Labels are [N, ...] and the network's scores for them [N, ..., classes].
    """

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> int: ...
    @property
    def train(self) -> Sized: ...
    @property
    def test(self) -> Sized: ...
    @property
    def samples(self) -> str: ...
    @property
    def judged(self) -> str: ...

    def drawn(
        self, chosen: Tensor, generator: torch.Generator, *, start: int, of: int
    ) -> tuple[Tensor, Tensor]:
        """The chosen training samples, [N], as inputs and labels, with chance from the generator alone.

        They are those from `start` on of a batch of `of`, and become what they would among all of it.
        """
        ...

    def tested(self, part: slice) -> tuple[Tensor, Tensor]:
        """Some of the test samples as inputs and labels."""
        ...

    def bits_per_byte(self, loss: float) -> float | None:
        """What a mean loss in nats means where labels are bytes; None where they are not."""
        ...

    def fitted(self, shape: InputShape) -> Task:
        """The same with samples of the form that the network takes.

        Raises:
            DataError: it takes something else.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """What a run that goes on must find unchanged."""
        ...


def loss_of(logits: Tensor, labels: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """The cross-entropy in nats over all labels, of scores [N, ..., classes] and labels [N, ...]."""
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction=reduction)


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """At which labels the highest score is the label's: bool, of the labels' shape."""
    return logits.argmax(-1) == labels


def verify_scores(logits: Tensor, labels: Tensor, task: Task) -> None:
    """Refuse scores of another shape than the labels ask for.

    Raises:
        DataError: the network does not give one score for every class.
    """
    if logits.shape[:-1] != labels.shape or logits.shape[-1] < task.classes:
        raise DataError(
            f"the network returns {list(logits.shape)} for {len(labels)} {task.samples} of {task.name}, "
            f"which has {task.classes} classes: it must return {[*labels.shape, task.classes]}"
        )


def fitted(task: Task, inputs: Sequence[InputShape]) -> Task:
    """The task in the form that a network with these inputs takes.

    Raises:
        DataError: the network takes something else.
    """
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs)
        raise DataError(
            f"the network takes {len(inputs)} inputs ({names}), and {task.name} gives one: choose a network "
            "of one input, or train this one in a loop of your own"
        )
    return task.fitted(inputs[0])

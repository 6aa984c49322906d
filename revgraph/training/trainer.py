"""One training step, and the state that the next one depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from revgraph.training.batches import Batches
from revgraph.training.checkpoints import Checkpoint, load_weights
from revgraph.training.errors import TrainingError
from revgraph.training.evaluating import Score, evaluate
from revgraph.training.optimizing import optimizer
from revgraph.training.processes import Together
from revgraph.training.randomness import random_states, restore_random_states, seed_everything
from revgraph.training.recipe import Recipe, learning_rate
from revgraph.training.tasks import Task, loss_of, right, verify_scores


@dataclass(frozen=True, slots=True)
class Update:
    """What one step measured on its batch, before its update of the weights."""

    loss: float
    accuracy: float
    learning_rate: float


class Trainer:
    """A network in training: its optimizer, its data and everything random, on the device Accelerate chooses.

    The global generators are seeded from the recipe, in each process differently. `close` gives the network
    back as an ordinary module. Processes that train together do all that is here together.

    Raises:
        TrainingError: the batch cannot be split over the processes.
    """

    def __init__(self, net: nn.Module, data: Task, recipe: Recipe, together: Together) -> None:
        self.net = net
        self.together = together
        self._recipe = recipe
        self._data = data
        self._accelerator = together.accelerator
        self._own_forward = net.__dict__.get("forward")
        self._batches = Batches(data, recipe.batch, recipe.seed, together.rank, together.count)
        seed_everything((recipe.seed + together.rank) % 2**32)
        self.prepared: nn.Module
        self.prepared, self._optimizer = self._accelerator.prepare(net, optimizer(net, recipe))

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self._accelerator.device

    def step(self, number: int) -> Update:
        """Do step `number`, counted from 1.

        Raises:
            TrainingError: the loss is not finite; the weights are those of the step before.
            DataError: the network does not give one score for every class.
        """
        rate = learning_rate(self._recipe, number)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        inputs, labels = (tensor.to(self.device) for tensor in self._batches.draw())
        logits = self.prepared(inputs)
        verify_scores(logits, labels, self._data)
        with self._accelerator.autocast():
            loss = loss_of(logits, labels)
        hits = right(logits, labels).to(loss.dtype).mean()
        value, accuracy = self.together.mean(torch.stack([loss.detach(), hits])).tolist()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {number} (learning rate {rate:g}): training has diverged. "
                "Start again with a lower learning rate, a longer warm-up or full precision."
            )
        self._accelerator.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return Update(value, accuracy, rate)

    def state(self) -> dict[str, Any]:
        """All that the coming steps depend on besides the weights and buffers of the network."""
        scaler = self._accelerator.scaler
        return {
            "processes": self.together.count,
            "recipe": asdict(self._recipe),
            "data": self._data.identity(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "batches": self._batches.state(),
            "random": self.together.gather(random_states()),
        }

    def verify(self, state: Mapping[str, Any]) -> None:
        """Refuse a `state` of another run.

        Raises:
            TrainingError: it belongs to another recipe, to other data, or to more or fewer processes.
        """
        _verify_same(state["recipe"], asdict(self._recipe))
        _verify_same(state["data"], self._data.identity())
        _verify_same(state, {"processes": self.together.count})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state` that was verified."""
        self._optimizer.load_state_dict(state["optimizer"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self._batches.restore(state["batches"])
        restore_random_states(state["random"][self.together.rank])

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Give the network of every process the weights and buffers that the main one reads.

        Raises:
            DataError: the file is missing or damaged, or belongs to another network.
        """
        self.together.from_main(lambda: load_weights(checkpoint, self.net))
        self.together.spread(self.net, weights=True)

    def evaluate(self, progress: Callable[[int, int], None]) -> Score:
        """The score on the test samples, with the main process's running averages."""
        self.together.spread(self.net, weights=False)
        return evaluate(
            self.net,
            self._data,
            batch=self._batches.share,
            device=self.device,
            progress=progress,
            together=self.together,
        )

    def finite(self) -> bool:
        """Whether all weights are finite numbers."""
        return all(bool(torch.isfinite(weight).all()) for weight in self.net.parameters())

    def close(self) -> None:
        """Undo what Accelerate did to the network, so that it can be copied and pickled again."""
        self._accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
        self.net.__dict__.pop("forward", None)
        if self._own_forward is not None:
            self.net.__dict__["forward"] = self._own_forward


def _verify_same(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    different = [name for name in asked if saved.get(name) != asked[name]]
    if different:
        raise TrainingError(
            "cannot go on with another run's checkpoint: it was made with "
            + ", ".join(f"{name} = {saved.get(name)}" for name in different)
            + ", and this run asks for "
            + ", ".join(f"{name} = {asked[name]}" for name in different)
            + ". Ask for the same, or start a new run in another folder."
        )

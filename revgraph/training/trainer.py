"""One training step, and the state that the next one depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from revgraph.errors import DataError
from revgraph.training.batches import Batches
from revgraph.training.errors import TrainingError
from revgraph.training.images import Data
from revgraph.training.optimizing import sgd
from revgraph.training.randomness import random_states, restore_random_states, seed_everything
from revgraph.training.recipe import Recipe, learning_rate


@dataclass(frozen=True, slots=True)
class Update:
    """What one step measured on its batch, before its update of the weights."""

    loss: float
    accuracy: float
    learning_rate: float


class Trainer:
    """A network in training: its optimizer, its data and everything random, on the device Accelerate chooses.

    The global generators are seeded from the recipe. `close` gives the network back as an ordinary module.

    Raises:
        TrainingError: the precision does not work on this device, or there are several processes.
    """

    def __init__(self, net: nn.Module, data: Data, recipe: Recipe) -> None:
        self.net = net
        self._recipe = recipe
        self._data = data
        self._accelerator = _accelerator(recipe)
        self._own_forward = net.__dict__.get("forward")
        seed_everything(recipe.seed)
        self._batches = Batches(data, recipe.batch, recipe.seed)
        self.prepared: nn.Module
        self.prepared, self._optimizer = self._accelerator.prepare(net, sgd(net, recipe))

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
        images, labels = (tensor.to(self.device) for tensor in self._batches.draw())
        logits = self.prepared(images)
        self._verify_scores(logits, len(labels))
        with self._accelerator.autocast():
            loss = functional.cross_entropy(logits, labels)
        value = loss.item()
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {value} at step {number} (learning rate {rate:g}): training has diverged. "
                "Start again with a lower learning rate, a longer warm-up or full precision."
            )
        self._accelerator.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad()
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        return Update(value, accuracy, rate)

    def state(self) -> dict[str, Any]:
        """All that the coming steps depend on besides the weights and buffers of the network."""
        scaler = self._accelerator.scaler
        return {
            "recipe": asdict(self._recipe),
            "data": _identity(self._data),
            "optimizer": self._optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "batches": self._batches.state(),
            "random": random_states(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            TrainingError: it belongs to another recipe or to other data.
        """
        _verify_same(state["recipe"], asdict(self._recipe))
        _verify_same(state["data"], _identity(self._data))
        self._optimizer.load_state_dict(state["optimizer"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self._batches.restore(state["batches"])
        restore_random_states(state["random"])

    def finite(self) -> bool:
        """Whether all weights are finite numbers."""
        return all(bool(torch.isfinite(weight).all()) for weight in self.net.parameters())

    def close(self) -> None:
        """Undo what Accelerate did to the network, so that it can be copied and pickled again."""
        self._accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
        self.net.__dict__.pop("forward", None)
        if self._own_forward is not None:
            self.net.__dict__["forward"] = self._own_forward

    def _verify_scores(self, logits: Tensor, count: int) -> None:
        if logits.ndim != 2 or logits.shape[0] != count or logits.shape[1] < self._data.classes:
            raise DataError(
                f"the network returns {list(logits.shape)} for {count} images of {self._data.name}, which "
                f"has {self._data.classes} classes: it must return [{count}, {self._data.classes}]"
            )


def _accelerator(recipe: Recipe) -> Accelerator:
    try:
        accelerator = Accelerator(mixed_precision=recipe.precision)
    except ValueError as error:
        raise TrainingError(f"precision {recipe.precision!r} does not work here: {error}") from error
    if recipe.precision == "fp16" and accelerator.device.type == "cpu":
        # Accelerate would go on in full precision without a word.
        raise TrainingError("precision 'fp16' does not work on a CPU: choose bf16 or no")
    if accelerator.num_processes > 1:
        raise TrainingError(
            f"this loop trains in one process, and {accelerator.num_processes} were launched. "
            "For several, use the network in a loop of your own: it is an ordinary module."
        )
    return accelerator


def _identity(data: Data) -> dict[str, Any]:
    return {"data": data.name, "training images": len(data.train), "test images": len(data.test)}


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

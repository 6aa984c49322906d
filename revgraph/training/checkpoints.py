"""Checkpoints: all that a run needs to go on exactly as if it had never stopped."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from revgraph.errors import DataError
from revgraph.training.durable import discard, new_folder
from revgraph.training.errors import TrainingError

FORMAT = 2
KEPT = 2
WEIGHTS = "model.safetensors"
STATE = "state.pt"
PREFIX = "step-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk: a folder with the weights and state of a run after `step` steps."""

    step: int
    folder: Path


def checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete checkpoints in `folder`, oldest first; none where there is no such folder."""
    found = [
        Checkpoint(int(digits), path)
        for path in folder.glob(f"{PREFIX}*")
        if (digits := path.name[len(PREFIX) :]).isdigit() and path.is_dir()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def save(folder: Path, step: int, net: nn.Module, state: Mapping[str, Any]) -> Checkpoint:
    """A new checkpoint in `folder`, which holds the newest two from then on.

    The weights are written as safetensors with the net's own names, `state` as tensors and plain Python
    values. It appears by one rename once everything is on the disk; if that fails, earlier checkpoints stay
    as they were.

    Raises:
        TrainingError: it could not be written, for example because the disk is full.
    """
    path = folder / f"{PREFIX}{step:08d}"
    try:
        with new_folder(path) as unfinished:
            save_model(net, str(unfinished / WEIGHTS), metadata={"format": "pt"})
            torch.save({"revgraph": FORMAT, "step": step, **state}, unfinished / STATE)
    except (OSError, SafetensorError, RuntimeError) as error:
        last = checkpoints(folder)
        intact = f"The checkpoint of step {last[-1].step} is intact" if last else "There is no earlier one"
        raise TrainingError(
            f"the checkpoint of step {step} could not be written to {str(folder)!r}: {error}. {intact}. "
            "Make room there, then go on from the last checkpoint with --resume."
        ) from error
    for old in checkpoints(folder)[:-KEPT]:
        discard(old.folder)
    return Checkpoint(step, path)


def load_weights(checkpoint: Checkpoint, net: nn.Module) -> None:
    """Give `net` the weights and buffers of `checkpoint`.

    Raises:
        DataError: the file is missing or damaged, or belongs to another network.
    """
    path = checkpoint.folder / WEIGHTS
    try:
        load_model(net, path, device="cpu")
    except (OSError, SafetensorError) as error:
        raise _damaged(checkpoint, path, error) from error
    except RuntimeError as error:
        raise DataError(f"the weights in {str(path)!r} are another network's: {error}") from error


def load_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state that `save` was given. No code in the file can run.

    Raises:
        DataError: the file is missing, damaged, or of another format.
    """
    path = checkpoint.folder / STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise _damaged(checkpoint, path, error) from error
    if not isinstance(state, dict) or state.get("revgraph") != FORMAT:
        raise DataError(f"{str(path)!r} is not a state that this revgraph wrote (format {FORMAT})")
    return state


def _damaged(checkpoint: Checkpoint, path: Path, error: Exception) -> DataError:
    others = [other for other in checkpoints(checkpoint.folder.parent) if other.step < checkpoint.step]
    advice = f"Delete {str(checkpoint.folder)!r}" + (
        f" to go on from step {others[-1].step}." if others else " and start again."
    )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"the checkpoint file {str(path)!r} is missing or damaged: {reason}. {advice}")

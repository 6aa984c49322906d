"""Checkpoints: all that a run needs to go on exactly as if it had never stopped."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from revgraph.errors import DataError, RevgraphError
from revgraph.training.checksums import verify_checksum, write_checksums
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
        if (digits := path.name[len(PREFIX) :]).isascii() and digits.isdigit() and path.is_dir()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def save(folder: Path, step: int, net: nn.Module, state: Mapping[str, Any]) -> Checkpoint:
    """A new checkpoint in `folder`, which holds the newest two from then on.

    The weights are written as safetensors with the net's own names, `state` as tensors and plain Python
    values, and a checksum of each file. It appears by one rename once everything is on the disk; if that
    fails, earlier checkpoints stay as they were.

    Raises:
        TrainingError: it could not be written, for example because the disk is full.
    """
    path = folder / f"{PREFIX}{step:08d}"
    try:
        with new_folder(path) as unfinished:
            save_model(net, str(unfinished / WEIGHTS), metadata={"format": "pt"})
            torch.save({"revgraph": FORMAT, "step": step, **state}, unfinished / STATE)
            write_checksums(unfinished, (WEIGHTS, STATE))
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
    """Give `net` the weights and buffers of `checkpoint`; where that fails, it keeps those it has.

    Raises:
        DataError: the file is missing or damaged, or belongs to another network.
    """
    path = checkpoint.folder / WEIGHTS
    with _damage(checkpoint, path):
        verify_checksum(path)
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        _verify_fits(shapes, net, path)
        load_model(net, path, device="cpu")


def load_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state that `save` was given. No code in the file can run.

    Raises:
        DataError: the file is missing, damaged, or of another format.
    """
    path = checkpoint.folder / STATE
    with _damage(checkpoint, path):
        verify_checksum(path)
        _verify_uncompressed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or state.get("revgraph") != FORMAT:
        raise DataError(f"{str(path)!r} is not a state that this revgraph wrote (format {FORMAT})")
    if state.get("step") != checkpoint.step:
        raise DataError(
            f"{str(path)!r} is the state after step {state.get('step')!r}, and its folder's name says "
            f"{checkpoint.step}: give the folder its own name again"
        )
    return state


@contextmanager
def restoring(checkpoint: Checkpoint) -> Iterator[None]:
    """Within the block a state is put back; where it is no such state, that is an error of the checkpoint.

    Raises:
        DataError: something in the state is missing or of another kind.
    """
    try:
        yield
    except RevgraphError:
        raise
    except Exception as error:
        raise _damaged(checkpoint, checkpoint.folder / STATE, error) from error


@contextmanager
def _damage(checkpoint: Checkpoint, path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # readers of damaged files raise errors of any kind
        raise _damaged(checkpoint, path, error) from error


def _verify_uncompressed(path: Path) -> None:
    """Raises ValueError where the file could take more memory than it has bytes."""
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED or part.file_size > path.stat().st_size:
                raise ValueError(f"its part {part.filename!r} is compressed, which revgraph's never are")


def _verify_fits(shapes: Mapping[str, tuple[int, ...]], net: nn.Module, path: Path) -> None:
    """Raises DataError where the file holds other names or shapes than the net."""
    own = net.state_dict()
    # A tensor under several names is written under one of them.
    there = {(own[name].data_ptr(), own[name].shape) for name in shapes if name in own}
    wrong = [
        *(f"{name} is missing" for name in own if (own[name].data_ptr(), own[name].shape) not in there),
        *(f"{name} is not the net's" for name in shapes if name not in own),
        *(
            f"{name} is {list(shape)}, not {list(own[name].shape)}"
            for name, shape in shapes.items()
            if name in own and shape != tuple(own[name].shape)
        ),
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(f"the weights in {str(path)!r} are another network's: {'; '.join(wrong[:3])}{more}")


def _damaged(checkpoint: Checkpoint, path: Path, error: Exception) -> DataError:
    others = [other for other in checkpoints(checkpoint.folder.parent) if other.step < checkpoint.step]
    advice = f"Delete {str(checkpoint.folder)!r}" + (
        f" to go on from step {others[-1].step}." if others else " and start again."
    )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"the checkpoint file {str(path)!r} is missing or damaged: {reason}. {advice}")

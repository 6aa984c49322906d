"""The processes that train one network together, as Accelerate finds them; usually one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from revgraph.errors import DataError
from revgraph.training.errors import Elsewhere, TrainingError
from revgraph.training.recipe import Recipe

T = TypeVar("T")


class Together:
    """The processes of a run: `count` of them, this one `rank`, and 0 the main one, which writes and prints.

    Every method is called by all processes alike, in the same order, and waits for all of them.

    Raises:
        TrainingError: the precision does not work on this device, or the launched processes cannot meet.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.accelerator = _accelerator(recipe)
        self.count = self.accelerator.num_processes
        self.rank = self.accelerator.process_index
        if self.count != launched():
            raise TrainingError(
                f"{launched()} processes were launched (WORLD_SIZE), and Accelerate sees {self.count}: each "
                "would train by itself. Launch with torchrun or accelerate launch, with one process for each "
                "GPU."
            )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        return flag if self.count == 1 else self.sum([float(flag)])[0] > 0

    def mean(self, values: Tensor) -> Tensor:
        """The means over processes."""
        return cast("Tensor", self.accelerator.reduce(values, "mean"))

    def sum(self, values: list[float]) -> list[float]:
        """The sums over processes, of figures counted on the CPU."""
        if self.count == 1:
            return values
        # In float64, which some devices lack, as objects: they are few.
        return [sum(each) for each in zip(*self.gather(values), strict=True)]

    def gather(self, value: T) -> list[T]:
        """What each process gives, by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the main process, where alone it runs.

        Raises:
            Elsewhere: it failed there; in the main process the error is its own.
        """
        if self.count == 1:
            return make()
        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer[0] = make()
            except Exception as error:
                answer[1] = str(error) or type(error).__name__
                dist.broadcast_object_list(answer, src=0)
                raise
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise Elsewhere(f"the main process failed: {answer[1]}")
        return answer[0]

    def spread(self, net: nn.Module, *, weights: bool) -> None:
        """Give every process the main one's buffers, and with `weights` its weights too."""
        if self.count > 1:
            with torch.no_grad():
                for tensor in (*net.buffers(), *(net.parameters() if weights else ())):
                    dist.broadcast(tensor, src=0)


def launched() -> int:
    """How many processes were launched together with this one, itself among them."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def close() -> None:
    """Part from the other processes, at the end of this one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def parting(together: Together) -> Iterator[None]:
    """An error in the block that the other processes may not have parts this one from them.

    Otherwise they would wait for it until the time-out, if it is caught and the process lives on. They notice
    once nothing in it refers to the group any more.
    """
    try:
        yield
    except (TrainingError, DataError):  # raised by all alike, or told to them
        raise
    except BaseException:
        if together.count > 1:
            close()
        raise


def share(batch: int, count: int, samples: str = "images") -> int:
    """The samples of a batch that each of `count` processes gets.

    Raises:
        TrainingError: they cannot get equally many, as the mean of their gradients needs.
    """
    if batch % count:
        raise TrainingError(
            f"a batch of {batch} {samples} cannot be split evenly over {count} processes. "
            f"Choose a multiple of {count}, such as {-(-batch // count) * count}."
        )
    return batch // count


def is_lost(error: BaseException) -> bool:
    """Whether a collective operation failed because another process is gone or does not answer."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in ("gloo", "nccl"))
    )


def why_lost(error: BaseException) -> str:
    """What the backend says of it, without where in its source and what else to read."""
    return re.sub(r"^(\[[^]]*\.cc:\d+\] )+", "", str(error)).split(". ")[0].splitlines()[0]


def _accelerator(recipe: Recipe) -> Accelerator:
    # Unless told so, Accelerate does not look for other processes on a machine without accelerators.
    cpu = launched() > 1 and not torch.accelerator.is_available()
    try:
        accelerator = Accelerator(mixed_precision=recipe.precision, cpu=cpu)
    except ValueError as error:
        raise TrainingError(f"precision {recipe.precision!r} does not work here: {error}") from error
    if recipe.precision == "fp16" and accelerator.device.type == "cpu":
        # Accelerate would go on in full precision without a word.
        raise TrainingError("precision 'fp16' does not work on a CPU: choose bf16 or no")
    return accelerator

"""The training run: steps, metrics, evaluations and checkpoints, from a start or from where it stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from revgraph.engine.module import ReversibleModule
from revgraph.errors import DataError, PlanError
from revgraph.graph import Graph
from revgraph.planning import Plan
from revgraph.training.averages import settling
from revgraph.training.checkpoints import Checkpoint, checkpoints, load_state, restoring, save
from revgraph.training.durable import discard, sweep
from revgraph.training.errors import TrainingError
from revgraph.training.evaluating import Score
from revgraph.training.interrupting import interruptible
from revgraph.training.metrics import CSV, TENSORBOARD, Metrics, Row, metrics, no_metrics, wanted
from revgraph.training.processes import Together, is_lost, launched, parting, share, why_lost
from revgraph.training.recipe import Recipe, steps_of
from revgraph.training.sharing import share_plan
from revgraph.training.tasks import Task
from revgraph.training.trainer import Trainer
from revgraph.training.watching import Silent, Watch

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended: after `step` of `steps` steps and `seconds` since it began or was taken up again.

    `test` is the score at the end, None if the run was interrupted.
    """

    step: int
    steps: int
    seconds: float
    interrupted: bool
    test: Score | None
    checkpoint: Checkpoint


def fit(
    net: nn.Module,
    data: Task,
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    evaluate_every: int | None = None,
    save_every: int | None = None,
    tensorboard: bool | None = None,
    watch: Watch | None = None,
    plan: Callable[[Graph], Plan] | None = None,
) -> Result:
    """Train `net`, which turns the data's samples into scores of classes, and return how it ended.

    Images are [N, 3, 32, 32], and scores [N, classes]; text is [N, T], and scores [N, T, 256].

    `folder` gets `metrics.csv` with a row a step, `checkpoints/` with the newest two, and `tensorboard/`
    where TensorBoard is installed (or not, as `tensorboard` says). Evaluations and checkpoints come every
    so many steps, once an epoch unless given, and at the end. With `resume` the run in `folder` goes on
    from its newest checkpoint, on a CPU bit for bit as if it had never stopped; with `overwrite` it is
    thrown away. Ctrl-C saves and returns; a second Ctrl-C raises KeyboardInterrupt at once. The global
    random generators are seeded, and the net stays on the device it was trained on.

    A reversible `net` trains under its own plan, or the one that `plan` makes for its graph. With `resume` it
    is the plan that the run had, unless `plan` makes another.

    Processes that torchrun or Accelerate launched train together: all call this alike, each computes its part
    of every batch, and the main one alone plans for all, reads and writes the folder and tells `watch`.

    Raises:
        TrainingError: the loss is no longer finite, the disk is full, the folder holds another run, the batch
            cannot be split over the processes, or another process is gone.
        DataError: there is nothing to resume, or it is damaged, or does not fit `net`.
        PlanError: no plan was found, or it is for another graph than the net's. The folder is as it was.
    """
    folder = Path(folder)
    share(recipe.batch, launched(), data.samples)
    together = Together(recipe)
    watch = (watch or Silent()) if together.is_main else Silent()
    try:
        with parting(together):
            if isinstance(net, ReversibleModule):
                if plan is not None or not resume:
                    share_plan(net, plan)
            elif plan is not None:
                raise TrainingError(
                    f"a {type(net).__name__} has no plan: train a reversible net, or give none"
                )
            start = together.from_main(
                lambda: _start(folder, resume=resume, overwrite=overwrite, tensorboard=tensorboard)
            )
            epoch = steps_of(1, len(data.train), recipe.batch)
            run = _Run(folder, data, recipe, evaluate_every or epoch, save_every or epoch, watch, together)
            trainer = Trainer(net, data, recipe, together)
            try:
                if start is not None:
                    with restoring(start):
                        state = together.from_main(lambda: _verified(start, trainer))
                        trainer.restore(state)
                        if isinstance(net, ReversibleModule) and plan is None:
                            share_plan(net, lambda graph: _plan_in(state, start, graph) or net.plan)
                    trainer.load_weights(start)
                with settling(net, recipe.steps):
                    return run.go(trainer, start, tensorboard)
            finally:
                trainer.close()
    except OSError as error:
        raise TrainingError(
            f"cannot write the run to {str(folder)!r}: {error}. {_intact(folder)} "
            "Once there is room, go on with --resume."
        ) from error
    except RuntimeError as error:
        if together.count == 1 or not is_lost(error):
            raise
        raise TrainingError(
            f"process {together.rank} of {together.count} has lost another: it ended or does not answer "
            f"({why_lost(error)}). {_intact(folder)} See what that process wrote last, then launch all again"
            f"{' with --resume' if checkpoints(folder / CHECKPOINTS) else ''}."
        ) from error


@dataclass(frozen=True, slots=True)
class _Run:
    folder: Path
    data: Task
    recipe: Recipe
    evaluate_every: int
    save_every: int
    watch: Watch
    together: Together

    def go(self, trainer: Trainer, start: Checkpoint | None, tensorboard: bool | None) -> Result:
        steps = self.recipe.steps
        began = time.perf_counter()
        last, test = start, None
        done = start.step if start is not None else 0
        self.watch.began(done, steps, self.recipe.batch)
        trainer.net.train()
        with (
            metrics(self.folder, done, tensorboard) if self.together.is_main else no_metrics() as rows,
            interruptible(self.watch.interrupted) as interrupt,
        ):
            if done == steps:
                test = trainer.evaluate(self.watch.evaluating)
            while done < steps and not self.together.any(interrupt.asked):
                done += 1
                row, test = self._step(trainer, done, began)
                rows.write(row)
                self.watch.stepped(row)
                if done % self.save_every == 0 or done == steps:
                    last = self._save(trainer, done, rows)
            if last is None or last.step != done:
                last = self._save(trainer, done, rows)
        return Result(
            step=done,
            steps=steps,
            seconds=time.perf_counter() - began,
            interrupted=done < steps,
            test=test if done == steps else None,
            checkpoint=last,
        )

    def _step(self, trainer: Trainer, number: int, began: float) -> tuple[Row, Score | None]:
        before = time.perf_counter()
        try:
            update = trainer.step(number)
        except TrainingError as error:
            raise TrainingError(f"{error} {_intact(self.folder)}") from error
        after = time.perf_counter()
        due = number % self.evaluate_every == 0 or number == self.recipe.steps
        test = trainer.evaluate(self.watch.evaluating) if due else None
        row = Row(
            step=number,
            epoch=number * self.recipe.batch / len(self.data.train),
            loss=update.loss,
            accuracy=update.accuracy,
            learning_rate=update.learning_rate,
            samples_per_second=self.recipe.batch / (after - before),
            seconds=after - began,
            test_loss=test.loss if test is not None else None,
            test_accuracy=test.accuracy if test is not None else None,
            test_bits_per_byte=test.bits_per_byte if test is not None else None,
        )
        return row, test

    def _save(self, trainer: Trainer, step: int, rows: Metrics) -> Checkpoint:
        state = trainer.state()
        checkpoint = self.together.from_main(lambda: self._write(trainer, step, rows, state))
        self.watch.saved(checkpoint)
        return checkpoint

    def _write(self, trainer: Trainer, step: int, rows: Metrics, state: dict[str, Any]) -> Checkpoint:
        if not trainer.finite():
            raise TrainingError(
                f"a weight is no longer a finite number after step {step}: training has diverged. "
                f"Start again with a lower learning rate, a longer warm-up or full precision. "
                f"{_intact(self.folder)}"
            )
        rows.sync()
        if isinstance(trainer.net, ReversibleModule):
            state = {**state, "plan": trainer.net.plan.to_json()}
        return save(self.folder / CHECKPOINTS, step, trainer.net, state)


def _start(folder: Path, *, resume: bool, overwrite: bool, tensorboard: bool | None) -> Checkpoint | None:
    wanted(tensorboard)
    kept = folder / CHECKPOINTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(kept)
        if overwrite and not resume:
            if kept.exists():
                discard(kept)
            shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)
            (folder / CSV).unlink(missing_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot write to the folder {str(folder)!r}: {error}") from error
    found = checkpoints(kept)
    if resume and not found:
        raise DataError(f"there is no checkpoint in {str(kept)!r} to resume. Start without --resume.")
    if found and not resume:
        raise TrainingError(
            f"{str(folder)!r} holds a run already (its last checkpoint is of step {found[-1].step}). "
            "Go on with --resume, throw it away with --overwrite, or choose another folder."
        )
    return found[-1] if found else None


def _verified(start: Checkpoint, trainer: Trainer) -> dict[str, Any]:
    """The state in a checkpoint, which goes on with the trainer's run."""
    state = load_state(start)
    trainer.verify(state)
    return state


def _plan_in(state: dict[str, Any], start: Checkpoint, graph: Graph) -> Plan | None:
    """The plan that the run had; None in a checkpoint without one, of a revgraph that did not write it yet.

    Raises:
        PlanError: it is for another graph, or another version of revgraph predicted other figures of it.
    """
    text = state.get("plan")
    if text is None:
        return None
    try:
        return Plan.from_json(text, graph)
    except PlanError as error:
        raise PlanError(
            f"the run cannot go on under the plan in its checkpoint {str(start.folder)!r}: {error} To go on "
            "under another one, ask for it with --plan or --budget (`plan` in Python)."
        ) from error


def _intact(folder: Path) -> str:
    found = checkpoints(folder / CHECKPOINTS)
    return f"The checkpoint of step {found[-1].step} is intact." if found else "There is no checkpoint yet."

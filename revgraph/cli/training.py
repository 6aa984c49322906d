"""`revgraph train`: a network on real data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from revgraph.cli.guarding import INTERRUPTED
from revgraph.cli.options import Budget, Exact, Json, Net, Parameters, PlanFile, parameters_of
from revgraph.cli.plan_files import read_plan
from revgraph.cli.showing import messages, process, show_json, show_table
from revgraph.training.recipe import OPTIMIZERS, PRECISIONS

# Of rg.compile; importing it to ask takes seconds, and --help is to answer at once.
BACKENDS = ("inductor", "aot")

if TYPE_CHECKING:
    from revgraph.engine.module import ReversibleModule
    from revgraph.graph import Graph
    from revgraph.planning import Plan
    from revgraph.training.evaluating import Score
    from revgraph.training.loop import Result
    from revgraph.training.recipe import Recipe
    from revgraph.training.tasks import Task


def train(
    net: Net,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="digits, cifar10:FOLDER, cifar100:FOLDER (binary files), text, or text:FILE-OR-FOLDER.",
        ),
    ] = "digits",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the run. (default: runs/NET-DATA)", show_default=False),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            help="Training steps. (default: 500 for digits, 2,000 for text, else the paper's 80,000)",
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over the training samples, instead of --steps.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            help="Images, or windows of text, in a batch over all processes. (default: 100, for text 16)",
        ),
    ] = None,
    budget: Budget = None,
    plan: PlanFile = None,
    exact: Exact = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile forward and backward to one graph each, under the plan. Takes seconds to minutes "
            "at the first step, and again at the first test and at each other size of batch; then each step "
            "runs without Python.",
        ),
    ] = False,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="Of --compile: inductor, torch's compiler, which on a CPU needs a C++ compiler; or aot, "
            "which runs the graphs operator by operator and needs none.",
        ),
    ] = "inductor",
    optimizer: Annotated[
        str | None,
        typer.Option("--optimizer", help="sgd or adamw. (default: sgd for images, adamw for text)"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            help="At its highest: sgd divides it by 10 at half and three quarters of the steps, adamw lets "
            "it fall along a cosine. (default: 0.1, with adamw 0.003)",
        ),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            "--warmup",
            min=0,
            help="Steps in which the learning rate climbs. (default: 0, with adamw a twentieth of all)",
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            "--weight-decay",
            min=0,
            help="Of the weights of convolutions and linear maps. (default: 0.0002, with adamw 0.1)",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of weights, data order and everything random.")
    ] = 0,
    precision: Annotated[
        str,
        typer.Option(
            "--precision", help="no, bf16 or fp16: of what runs under autocast; streams stay float32."
        ),
    ] = "no",
    evaluate_every: Annotated[
        int | None, typer.Option("--evaluate-every", min=1, help="Steps between tests. (default: one epoch)")
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option("--save-every", min=1, help="Steps between checkpoints. (default: one epoch)"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the newest checkpoint in the folder, under its plan unless --budget or --plan "
            "asks for another.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away the run that the folder holds.")
    ] = False,
    tensorboard: Annotated[
        bool | None,
        typer.Option(
            "--tensorboard/--no-tensorboard", help="Write TensorBoard events. (default: if installed)"
        ),
    ] = None,
    set_: Parameters = None,
    json: Json = False,
) -> None:
    """Train a network on real data, under a plan.

    The plan is that of `revgraph plan`: the cheapest near the least memory, or the cheapest within a budget.

    Images are learned by stochastic gradient descent with momentum and the paper's schedule, scaled to the
    steps asked for; text, byte by byte, by AdamW. The folder gets metrics.csv, the newest two checkpoints and
    TensorBoard events. Ctrl-C saves and stops; a second one aborts at once. Under torchrun or accelerate
    launch the processes train together: the main one plans for all, writes and prints.
    """
    if steps is not None and epochs is not None:
        raise typer.BadParameter("give --steps or --epochs, not both")
    if epochs is not None and epochs <= 0:
        raise typer.BadParameter("--epochs must be above 0")
    if resume and overwrite:
        raise typer.BadParameter("give --resume or --overwrite, not both")
    if plan is not None and budget is not None:
        raise typer.BadParameter("give --plan or --budget, not both")
    if precision not in PRECISIONS:
        raise typer.BadParameter(f"--precision is {', '.join(PRECISIONS)}, not {precision!r}")
    if optimizer is not None and optimizer not in OPTIMIZERS:
        raise typer.BadParameter(f"--optimizer is {' or '.join(OPTIMIZERS)}, not {optimizer!r}")
    if backend not in BACKENDS:
        raise typer.BadParameter(f"--backend is {' or '.join(BACKENDS)}, not {backend!r}")
    given = parameters_of(set_)

    from revgraph.training.data import load_data
    from revgraph.training.loop import fit
    from revgraph.training.metrics import CSV
    from revgraph.training.processes import close
    from revgraph.training.progress import Bar
    from revgraph.training.usual import usual_recipe

    task = _fitted(net, load_data(data), given)
    recipe = usual_recipe(
        task,
        epochs,
        steps=steps,
        batch=batch,
        optimizer=optimizer,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        seed=seed,
        precision=precision,
    )
    folder = out if out is not None else Path("runs") / f"{Path(net).stem}-{task.name}"
    network = _load(net, task.classes, recipe, exact, given)
    if compiled:
        network = _compiled(network, backend)
    with _compilations_told(), Bar(messages(quiet=process() > 0), task.samples) as bar:
        result = fit(
            network,
            task,
            recipe,
            folder,
            resume=resume,
            overwrite=overwrite,
            evaluate_every=evaluate_every,
            save_every=save_every,
            tensorboard=tensorboard,
            watch=bar,
            plan=_planner(plan, budget),
        )
    close()
    if process():
        raise typer.Exit(INTERRUPTED if result.interrupted else 0)
    if json:
        show_json(_report(result, task.judged, folder / CSV))
    else:
        _show(result, task.judged, folder / CSV)
    if result.interrupted:
        messages().print(
            f"Interrupted after step {result.step} of {result.steps}, and saved. Go on with --resume.",
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED)


def _fitted(net: str, task: Task, parameters: dict[str, Any]) -> Task:
    """The task with samples of the form that the network takes."""
    import torch

    from revgraph import specs
    from revgraph.training.tasks import fitted

    with torch.device("meta"):
        return fitted(task, specs.build(net, **parameters).inputs)


def _load(
    net: str, classes: int, recipe: Recipe, exact: bool, parameters: dict[str, Any]
) -> ReversibleModule:
    """The network, with weights from the seed, and the data's number of classes if that is a parameter.

    It is to be planned for the samples that each process gets.
    """
    import torch

    import revgraph as rg
    from revgraph import specs
    from revgraph.training.processes import launched, share

    batch = share(recipe.batch, launched())
    with torch.device("meta"):
        known = specs.build(net, batch=batch, **parameters).parameters
    if "classes" in known:
        parameters = {"classes": classes, **parameters}
    torch.manual_seed(recipe.seed)
    return rg.load(net, batch=batch, exact=exact or None, **parameters)


def _compiled(network: ReversibleModule, backend: str) -> ReversibleModule:
    """The network with compiled steps.

    Raises:
        PlanError: torch's compiler would need a C++ compiler, and there is none.
    """
    import torch

    import revgraph as rg

    if backend == "inductor" and not torch.cuda.is_available():
        _need_compiler()
    return rg.compile(network, cast("Any", backend))


@contextmanager
def _compilations_told() -> Iterator[None]:
    """A block in which each step that has been compiled is told of, by the main process."""

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages(quiet=process() > 0).print(record.getMessage())

    logger = logging.getLogger("revgraph.compiling")
    told, level = Told(), logger.level
    logger.addHandler(told)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(told)


def _need_compiler() -> None:
    """Refuse where torch's compiler would find no C++ compiler, before anything is written."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    from revgraph.errors import PlanError

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise PlanError(
            "--compile: torch's compiler needs a C++ compiler on a CPU, and finds none. Install g++, name "
            "another (such as clang++) in the environment variable CXX, or compile with --backend aot, which "
            "needs none."
        ) from error


def _planner(path: Path | None, budget: str | None) -> Callable[[Graph], Plan] | None:
    """What makes the run's plan, in the main process alone: from the file, or within the budget."""
    from revgraph.planning import plan

    if path is not None:
        return lambda graph: read_plan(path, graph)
    return None if budget is None else lambda graph: plan(graph, budget=budget)


def _report(result: Result, judged: str, metrics: Path) -> dict[str, Any]:
    return {
        "step": result.step,
        "steps": result.steps,
        "interrupted": result.interrupted,
        "seconds": result.seconds,
        "test": _score(result.test, judged) if result.test is not None else None,
        "checkpoint": str(result.checkpoint.folder),
        "metrics": str(metrics),
    }


def _score(test: Score, judged: str) -> dict[str, Any]:
    found = {"loss": test.loss, "accuracy": test.accuracy, judged: test.labels}
    if test.bits_per_byte is not None:
        found["bits_per_byte"] = test.bits_per_byte
    return found


def _show(result: Result, judged: str, metrics: Path) -> None:
    from revgraph.reporting import Report

    test = result.test
    rows = (
        ("steps", f"{result.step:,} of {result.steps:,}"),
        (
            "test accuracy",
            f"{test.accuracy:.2%} of {test.labels:,} {judged}" if test is not None else "not tested",
        ),
        ("test loss", f"{test.loss:.4f}" if test is not None else "not tested"),
        *(
            [("bits per byte", f"{test.bits_per_byte:.4f}")]
            if test is not None and test.bits_per_byte is not None
            else []
        ),
        ("seconds", f"{result.seconds:.0f}"),
        ("checkpoint", str(result.checkpoint.folder)),
        ("metrics", str(metrics)),
    )
    show_table(Report("the run", ("quantity", "value"), rows))

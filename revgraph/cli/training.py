"""`revgraph train`: a network on real data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from revgraph.cli.guarding import INTERRUPTED
from revgraph.cli.options import Budget, Exact, Json, Net, Parameters, parameters_of
from revgraph.cli.showing import messages, process, show_json, show_table
from revgraph.reporting import Report

if TYPE_CHECKING:
    from revgraph.runtime.module import ReversibleModule
    from revgraph.training.loop import Result
    from revgraph.training.recipe import Recipe

PAPER_STEPS = 80_000
DIGITS_STEPS = 500


def train(
    net: Net,
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="DATA", help="digits, cifar10:FOLDER or cifar100:FOLDER (binary files)."
        ),
    ] = "digits",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the run. (default: runs/NET-DATA)", show_default=False),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=1, help="Training steps. (default: 500 for digits, else the paper's 80,000)"
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over the training images, instead of --steps.")
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Images in a batch, over all processes.")
    ] = 100,
    budget: Budget = None,
    exact: Exact = False,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate", help="At the start; divided by 10 at half and three quarters of the steps."
        ),
    ] = 0.1,
    warmup: Annotated[
        int, typer.Option("--warmup", min=0, help="Steps in which the learning rate climbs.")
    ] = 0,
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", min=0, help="Of the weights of convolutions and linear maps.")
    ] = 2e-4,
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
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in the folder.")
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
    """Train a network under a plan: the least memory, or the least computed again within a budget.

    Stochastic gradient descent with momentum and the paper's schedule, scaled to the steps asked for. The
    folder gets metrics.csv, the newest two checkpoints and TensorBoard events. Ctrl-C saves and stops; a
    second one aborts at once. Under torchrun or accelerate launch the processes train together, and the main
    one writes and prints.
    """
    from revgraph.training.data import load_data
    from revgraph.training.loop import fit
    from revgraph.training.metrics import CSV
    from revgraph.training.processes import close
    from revgraph.training.progress import Bar
    from revgraph.training.recipe import PRECISIONS, Recipe, steps_of

    if steps is not None and epochs is not None:
        raise typer.BadParameter("give --steps or --epochs, not both")
    if epochs is not None and epochs <= 0:
        raise typer.BadParameter("--epochs must be above 0")
    if resume and overwrite:
        raise typer.BadParameter("give --resume or --overwrite, not both")
    if precision not in PRECISIONS:
        raise typer.BadParameter(f"--precision is {', '.join(PRECISIONS)}, not {precision!r}")
    images = load_data(data)
    if epochs is not None:
        steps = steps_of(epochs, len(images.train), batch)
    recipe = Recipe(
        steps=steps or (DIGITS_STEPS if images.name == "digits" else PAPER_STEPS),
        batch=batch,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        seed=seed,
        precision=precision,  # pyright: ignore[reportArgumentType]
    )
    folder = out if out is not None else Path("runs") / f"{Path(net).stem}-{images.name}"
    network = _load(net, images.classes, recipe, budget, exact, parameters_of(set_))
    with Bar(messages(quiet=process() > 0)) as bar:
        result = fit(
            network,
            images,
            recipe,
            folder,
            resume=resume,
            overwrite=overwrite,
            evaluate_every=evaluate_every,
            save_every=save_every,
            tensorboard=tensorboard,
            watch=bar,
        )
    close()
    if process():
        raise typer.Exit(INTERRUPTED if result.interrupted else 0)
    if json:
        show_json(_report(result, folder / CSV))
    else:
        _show(result, folder / CSV)
    if result.interrupted:
        messages().print(
            f"Interrupted after step {result.step} of {result.steps}, and saved. Go on with --resume.",
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED)


def _load(
    net: str, classes: int, recipe: Recipe, budget: str | None, exact: bool, parameters: dict[str, Any]
) -> ReversibleModule:
    """The network, with weights from the seed, and the data's number of classes if that is a parameter.

    Its plan is for the images that each process gets, and fits the budget, if there is one.
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
    network = rg.load(net, batch=batch, exact=exact or None, **parameters)
    if budget is not None:
        network.plan = rg.plan(network.graph, budget=budget)
    return network


def _report(result: Result, metrics: Path) -> dict[str, Any]:
    return {
        "step": result.step,
        "steps": result.steps,
        "interrupted": result.interrupted,
        "seconds": result.seconds,
        "test": asdict(result.test) if result.test is not None else None,
        "checkpoint": str(result.checkpoint.folder),
        "metrics": str(metrics),
    }


def _show(result: Result, metrics: Path) -> None:
    test = result.test
    rows = (
        ("steps", f"{result.step:,} of {result.steps:,}"),
        (
            "test accuracy",
            f"{test.accuracy:.2%} of {test.images:,} images" if test is not None else "not tested",
        ),
        ("test loss", f"{test.loss:.4f}" if test is not None else "not tested"),
        ("seconds", f"{result.seconds:.0f}"),
        ("checkpoint", str(result.checkpoint.folder)),
        ("metrics", str(metrics)),
    )
    show_table(Report("the run", ("quantity", "value"), rows))

"""Backends of torch.compile: what AOTAutograd traces of a form of call is cut in two by its plan, and run.

"aot" runs the graphs of forward and backward operator by operator, "inductor" hands them to torch's compiler.
Both ask `partition` for them, which lowers the plan of the form that is `running`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import fx

Backend = Literal["inductor", "aot"]
BACKENDS: tuple[str, ...] = get_args(Backend)
# Whether a backend computes pointwise work where it is read.
FUSES: dict[str, bool] = {"inductor": True, "aot": False}
# Under plans whose peak is above these bytes, buffers are freed when nothing reads them any more. Torch's
# compiler would keep one until another of its size is made, as long as that does not raise the peak that it
# foresees, which is at the end: with the gradients of all parameters. In small nets allocating takes time.
REUSE_BELOW = 2**20
# By thread: `step`, the form and the function whose call may compile, and the line that tells the `progress`.
running = threading.local()


def tell(phase: str) -> None:
    """Tell what compiling is at."""
    progress = getattr(running, "progress", None)
    if progress is not None:
        progress.phase = phase


def revgraph_backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """`torch.compile(model, backend="revgraph")`: nets in a model run as `compile` has them.

    What is around them is compiled by torch's compiler.
    """
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(graph, inputs)  # pyright: ignore


def register() -> None:
    """Tell torch.compile of the backend, where the package's metadata has not."""
    from torch._dynamo.backends.registry import list_backends, register_backend

    if "revgraph" not in list_backends():
        register_backend(revgraph_backend, name="revgraph")


def partition(
    joint: fx.GraphModule, _: Any, *, num_fwd_outputs: int, decompositions: Any = None, **__: Any
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The graphs of forward and backward, for AOTAutograd."""
    from torch._functorch.partitioners import _extract_fwd_bwd_modules

    from revgraph.compiling.partition import partitioned  # what traces takes a second to import

    tell("lowering the plan")
    step, function = running.step
    found = partitioned(joint, num_fwd_outputs, function.marked, step.plan, decompositions, step.fuses)
    step.partitions.append(found)
    return _extract_fwd_bwd_modules(
        found.joint, list(found.saved), list(found.saved_numbers), num_fwd_outputs=num_fwd_outputs
    )


def _aot(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    from torch._dynamo.backends.common import aot_autograd

    running.step[1].compilations += 1
    tell("tracing forward and backward")
    return aot_autograd(fw_compiler=_boxed, partition_fn=partition)(graph, inputs)


def _boxed(graph: fx.GraphModule, _: Any) -> Callable[..., Any]:
    """A graph as a function of a list, which it empties: tensors go with their last reader.

    Kernels lay some gradients out in another way than torch's own shape functions foresee (those of batch
    normalization after a transposition): then what was traced as a view is a copy.
    """
    from torch.fx.graph import _BoxedCodeGen

    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default
    graph.graph.set_codegen(_BoxedCodeGen())
    graph.recompile()
    run: Any = graph.forward

    def boxed(given: list[Any]) -> Any:
        return run(given)

    boxed._boxed_call = True  # pyright: ignore[reportFunctionMemberAccess]
    return boxed


def _inductor(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx

    from revgraph.compiling.inductor import Partitioner

    step, function = running.step
    function.compilations += 1
    partitioner = Partitioner(f"revgraph {step.key} {code_version()}")
    tell("tracing forward and backward")
    options = {
        "custom_partitioner_fn": partitioner,
        "allow_buffer_reuse": step.plan.peak_bytes < REUSE_BELOW,
    }
    run: Any = compile_fx(graph, inputs, inner_compile=_generated, config_patches=options)
    return run


def _generated(graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
    """What torch's compiler makes of the graph of a forward or a backward."""
    from torch._inductor.compile_fx import compile_fx_inner

    part = "backward" if options.get("is_backward") else "forward"
    tell(f"generating code for the {part}, {len(graph.graph.nodes)} operators")
    return compile_fx_inner(graph, inputs, **options)


@lru_cache
def code_version() -> str:
    """Changes with the code that lowers plans."""
    here = Path(__file__).parent
    text = "".join(path.read_text() for path in sorted(here.glob("*.py")))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


COMPILERS: dict[str, Callable[..., Any]] = {"inductor": _inductor, "aot": _aot}

"""`devices_worker.py FILE TURNS NET ...`: nets on the CPU and on a second device, and their gradients.

For each net, plan and way to differentiate, FILE tells how far gradients were from plain autograd's at most,
or what was raised. TURNS is "with" or "without": one node runs at a time, as on the CPU, or several may, as
on GPUs.
"""

from __future__ import annotations

import faulthandler
import json
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from engine.second_device import in_thread_of, install, keep_errors
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

import revgraph as rg
from revgraph.engine import random_state

WIDTH, BATCH = 4, 3
CPU, SECOND = torch.device("cpu"), torch.device("privateuseone", 0)
ERRORS: list[Exception] = []
ENGINE = str(Path(rg.__file__).parent / "engine")
# Whose backward is late. With "any" both threads are held up now and then, wherever in the engine they are.
LATE = ("cpu", "second", "any")
# The ways of which the last is tried, too: it takes ten times as long.
ANYWHERE = ("whole", "parameters on the second", "second derivatives")


class Pace:
    """Holds up the backward of one device, so that the two come in one order and in the other."""

    def __init__(self) -> None:
        self.late = ""
        self.chance = random.Random(0)
        self.left = 1

    @contextmanager
    def set(self, late: str) -> Iterator[None]:
        self.late = late
        try:
            yield
        finally:
            self.late = ""

    def wait(self, device: torch.device) -> None:
        if self.late == device.type:
            time.sleep(2e-4)
        elif self.late == "any":
            time.sleep(self.chance.choice((0, 2e-4, 1e-3)))

    def begin(self, frame: FrameType, event: str, _: Any) -> Any:
        """The trace function of a thread: looks at calls of the engine's own functions alone."""
        if self.late != "any" or not frame.f_code.co_filename.startswith(ENGINE):
            return None
        frame.f_trace_opcodes = True
        return self.between

    def between(self, frame: FrameType, event: str, _: Any) -> Any:
        """Let the other thread go on, once in some hundred instructions and anywhere among them."""
        self.left -= 1
        if self.left <= 0:
            self.left = self.chance.randrange(400)
            time.sleep(self.chance.choice((0, 1e-5)))
        return self.between


PACE = Pace()


class Function(rg.Boundary):
    """A function on one device: it takes its input there, and gives its result where the input was."""

    def __init__(self, device: torch.device, middle: nn.Module) -> None:
        super().__init__()
        self.one, self.middle, self.two = nn.Linear(WIDTH, WIDTH), middle, nn.Linear(WIDTH, WIDTH)
        self.device = device
        self.replayed_in: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x.to(self.device))
        if torch._C._current_graph_task_id() != -1:
            self.replayed_in.add(threading.get_ident())
            PACE.wait(self.device)
            return self.two(self.middle(y)).to(x.device)
        y = self.two(self.middle(y))
        if y.requires_grad:
            y.register_hook(lambda _: PACE.wait(self.device))
        return y.to(x.device)


class Pair(nn.Module):
    """Two half-steps."""

    def __init__(self, *devices: torch.device) -> None:
        super().__init__()
        self.f, self.g = (Function(device, nn.Tanh()) for device in devices)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + self.f(x2)
        return y1, x2 + self.g(y1)


def pairs(count: int, first: torch.device, second: torch.device) -> nn.ModuleList:
    return nn.ModuleList(Pair(first, second) for _ in range(count))


class Weave(nn.Module):
    """Streams on the CPU, every other function on the second device."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = pairs(3, CPU, SECOND)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
        for pair in self.pairs:
            x1, x2 = pair(x1, x2)
        return x1, x2


class Moving(nn.Module):
    """Streams that move to the second device and back."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.there, self.after = pairs(1, CPU, CPU), pairs(2, SECOND, SECOND), pairs(1, CPU, CPU)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
        for pair in self.before:
            x1, x2 = pair(x1, x2)
        x1, x2 = x1.to(SECOND), x2.to(SECOND)
        for pair in self.there:
            x1, x2 = pair(x1, x2)
        x1, x2 = x1.to(CPU), x2.to(CPU)
        for pair in self.after:
            x1, x2 = pair(x1, x2)
        return x1, x2


class Apart(nn.Module):
    """One stream on each device."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = pairs(3, CPU, SECOND)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
        x2 = x2.to(SECOND)
        for step in self.steps:
            x1 = x1 + step.f(x2.to(CPU))
            x2 = x2 + step.g(x1.to(SECOND))
        return x1, x2


class Branches(nn.Module):
    """A trunk, and then a branch on each device; nothing keeps the two from running at once."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = pairs(1, CPU, SECOND)
        self.left, self.right = pairs(2, CPU, CPU), pairs(2, SECOND, SECOND)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
        for pair in self.trunk:
            x1, x2 = pair(x1, x2)
        a1, a2, b1, b2 = x1, x2, x1.to(SECOND), x2.to(SECOND)
        for left, right in zip(self.left, self.right, strict=True):
            a1, a2 = left(a1, a2)
            b1, b2 = right(b1, b2)
        return a1, a2, b1, b2


class Taps(nn.Module):
    """A chain on the CPU; the second device reads each value of it, sooner or later than the chain itself."""

    def __init__(self, middle: Callable[[], nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Function(CPU, middle()) for _ in range(5))
        self.taps = nn.ModuleList(Function(SECOND, middle()) for _ in range(5))

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
        total = torch.zeros_like(x1)
        for step, tap in zip(self.steps, self.taps, strict=True):
            x1, x2 = x2, x1 + step(x2)
            total = total + tap(x2)
        return x1, x2, total


class Changing(Taps):
    """The same with functions that draw random numbers and write buffers, which replays put back."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Sequential(nn.BatchNorm1d(WIDTH, eps=0.5), nn.Dropout(0.4)))


NETS: dict[str, type[nn.Module]] = {
    each.__name__: each for each in (Weave, Moving, Apart, Branches, Taps, Changing)
}


def make(net: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETS[net]().double()
    for module in functions(model):
        module.to(module.device)
    return model


def functions(model: nn.Module) -> list[Function]:
    return [module for module in model.modules() if isinstance(module, Function)]


def make_inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, WIDTH)
    return [torch.randn(shape, dtype=torch.double, generator=generator).requires_grad_() for _ in range(2)]


def all_recomputed(graph: rg.Graph) -> rg.Plan:
    return rg.decide(graph, {node.name: "recompute" for node in graph.planned})


def all_run_again(graph: rg.Graph) -> rg.Plan:
    """Nothing is stored, so that every value comes back from the inputs."""
    names = [node.name for node in graph.planned]
    return rg.decide(graph, dict.fromkeys(names, "recompute"), stored=[], reruns=names[:-1])


PLANS: dict[str, Callable[[rg.Graph], rg.Plan]] = {
    "default": rg.plan,
    "inverted": lambda graph: rg.decide(graph, {}),
    "recomputed": all_recomputed,
    "run again": all_run_again,
}


Leaves = dict[str, Tensor]
Gradients = list[Tensor | None]
Way = Callable[[nn.Module, list[Tensor], Leaves], Gradients]


def loss_of(outputs: Sequence[Tensor]) -> Tensor:
    return torch.stack([(y.cpu() ** 2).sum() * (1 + place) for place, y in enumerate(outputs)]).sum()


def grad(loss: Tensor, leaves: Sequence[Tensor], **extras: Any) -> Gradients:
    return list(torch.autograd.grad(loss, leaves, allow_unused=True, **extras))


def whole(run: nn.Module, x: list[Tensor], leaves: Leaves) -> Gradients:
    for leaf in leaves.values():
        leaf.grad = None
    loss_of(run(*x)).backward()
    return [leaf.grad for leaf in leaves.values()]


def to_inputs(run: nn.Module, x: list[Tensor], leaves: Leaves) -> Gradients:
    return grad(loss_of(run(*x)), x)


def to_parameters_on(device: torch.device) -> Way:
    def way(run: nn.Module, x: list[Tensor], leaves: Leaves) -> Gradients:
        there = [leaf for name, leaf in leaves.items() if leaf.device == device and name not in ("x1", "x2")]
        return grad(loss_of(run(*x)), there)

    return way


def retained(run: nn.Module, x: list[Tensor], leaves: Leaves) -> Gradients:
    loss = loss_of(run(*x))
    return [each for keeps in (True, False) for each in grad(loss, [*leaves.values()], retain_graph=keeps)]


def output_by_output(run: nn.Module, x: list[Tensor], leaves: Leaves) -> Gradients:
    losses = [loss_of([y]) for y in run(*x)]
    return [
        each
        for loss in losses
        for each in grad(loss, [*leaves.values()], retain_graph=loss is not losses[-1])
    ]


def two_forwards(run: nn.Module, x: list[Tensor], leaves: Leaves) -> Gradients:
    """One backward through both."""
    return grad(loss_of(run(*x)) + loss_of(run(*reversed(x))), [*leaves.values()])


def second_derivatives(run: nn.Module, x: list[Tensor], leaves: Leaves) -> Gradients:
    first = grad(loss_of(run(*x)), [*leaves.values()], create_graph=True)
    return grad(loss_of([each for each in first if each is not None]), [*leaves.values()])


WAYS: dict[str, Way] = {
    "whole": whole,
    "inputs": to_inputs,
    "parameters on the CPU": to_parameters_on(CPU),
    "parameters on the second": to_parameters_on(SECOND),
    "retained": retained,
    "output by output": output_by_output,
    "two forwards": two_forwards,
    "second derivatives": second_derivatives,
}


def difference(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    assert [each is None for each in found] == [each is None for each in expected]
    pairs = [
        (one, two) for one, two in zip(found, expected, strict=True) if one is not None and two is not None
    ]
    return max(((one - two).abs().max() / two.abs().max().clamp(min=1)).item() for one, two in pairs)


def leaves_of(model: nn.Module, x: list[Tensor]) -> Leaves:
    return {**dict(model.named_parameters()), "x1": x[0], "x2": x[1]}


def differentiate(way: Way, run: nn.Module, model: nn.Module, x: list[Tensor]) -> list[Tensor | None]:
    """The gradients, and the buffers after that."""
    torch.manual_seed(0)
    found = way(run, x, leaves_of(model, x))
    if ERRORS:
        raise ERRORS[0]
    return [*found, *model.buffers()]


def compare(kind: str) -> Iterator[tuple[str, Any]]:
    """For each plan and way the largest difference, or what was raised; and how many threads ran replays."""
    model, plain, x = make(kind), make(kind), make_inputs()
    net = rg.trace(model, *x)
    for plan, decide in PLANS.items():
        net.plan = decide(net.graph)
        for module in functions(model):
            module.replayed_in.clear()
        for name, way in WAYS.items():
            state = {key: value.clone() for key, value in plain.state_dict().items()}
            expected = differentiate(way, plain, plain, x)
            found: Any = 0.0
            for late in LATE if name in ANYWHERE else LATE[:-1]:
                model.load_state_dict(state)
                try:
                    with PACE.set(late):
                        found = max(found, difference(differentiate(way, net, model, x), expected))
                except Exception as error:
                    traceback.print_exception(error, limit=-3)
                    found = f"{late} late: {type(error).__name__}: {error}"
                    in_thread_of(SECOND, ERRORS.clear)  # after what it may still be at
                    break
            yield f"{kind}, {plan}, {name}", found
        threads = set[int]().union(*(module.replayed_in for module in functions(model)))
        yield f"{kind}, {plan}, threads", len(threads)


class Watching(TorchDispatchMode):
    """Does nothing; a thread has it or has not."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def state_of_thread() -> dict[str, Any]:
    """What the engine relies on, in the thread that runs a node of a backward pass."""
    return {
        "pass": torch._C._current_graph_task_id(),
        "keeps the graph": torch._C._autograd._get_current_graph_task_keep_graph(),
        "gradients": torch.is_grad_enabled(),
        "autocast": [torch.is_autocast_enabled(each.type) for each in (CPU, SECOND)],
        "precision": [str(torch.get_autocast_dtype(each.type)) for each in (CPU, SECOND)],
        "dispatch mode": type(_get_current_dispatch_mode()).__name__,
        "default hooks": torch._C._autograd._top_saved_tensors_default_hooks(True) is not None,
    }


def threads_of_a_pass(ends_on: torch.device) -> dict[str, Any]:
    """One backward pass through both devices: what its threads are like, and where its callback runs."""
    threads: dict[str, int] = {}
    states: dict[str, dict[str, Any]] = {}

    def unpack(held: tuple[str, Tensor]) -> Tensor:
        device, tensor = held
        threads[device], states[device] = threading.get_ident(), state_of_thread()
        if len(threads) == 1:
            torch.autograd.Variable._execution_engine.queue_callback(
                lambda: threads.update(callback=threading.get_ident())
            )
        return tensor

    x = torch.ones(2, device=ends_on).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (tensor.device.type, tensor), unpack):
        y = x.exp().to(CPU if ends_on == SECOND else SECOND).exp().cpu().sum()
    plain = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.autocast("cpu", torch.float16), torch.autocast(SECOND.type, torch.bfloat16), Watching(), plain:
        torch.autograd.grad(y, x, create_graph=True)
    return {
        "own thread": threads[SECOND.type] != threads[CPU.type] == threading.get_ident(),
        "called back in": next(device for device in states if threads[device] == threads["callback"]),
        "states": states,
    }


def without_turns() -> None:
    held = random_state.turn
    for module in list(sys.modules.values()):
        if getattr(module, "turn", None) is held:
            module.turn = lambda devices: nullcontext()


def main(path: Path, held: str, *nets: str) -> None:
    faulthandler.dump_traceback_later(280, exit=True)
    install()
    keep_errors(ERRORS)
    found: dict[str, Any] = {
        f"pass that ends on {each.type}": threads_of_a_pass(each) for each in (CPU, SECOND)
    }
    if held == "without":
        without_turns()
    sys.setswitchinterval(1e-5)
    sys.settrace(PACE.begin)
    in_thread_of(SECOND, lambda: sys.settrace(PACE.begin))
    for net in nets:
        began = time.monotonic()
        found.update(compare(net))
        print(net, round(time.monotonic() - began, 1), "s", flush=True)
    path.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

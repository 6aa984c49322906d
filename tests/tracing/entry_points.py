"""One model whose code hands tensors to torch by another way than a torch function."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return grad * 2 * x


BODIES: dict[str, Any] = {
    "autograd function": lambda net, x: Square.apply(x),
    "checkpoint": lambda net, x: x * checkpoint(net.f, x, use_reentrant=False),
    "reentrant checkpoint": lambda net, x: x * checkpoint(net.f, x, use_reentrant=True),
    "vmap": lambda net, x: torch.vmap(lambda row: row * 2)(x),
    "functional gradient": lambda net, x: x * torch.func.grad(lambda y: y.square().sum())(x),
    "as_tensor": lambda net, x: torch.as_tensor(x) * 2,
    "subclass": lambda net, x: nn.Parameter(x) * 2,
}


PLACES = ("submodule", "function", "root")


class Body(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.body, self.f = BODIES[name], nn.Linear(4, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class Around(nn.Module):
    def __init__(self, name: str, place: str) -> None:
        super().__init__()
        self.place, self.body = place, Body(name)

    def forward(self, x1: Tensor, x2: Tensor) -> Any:
        return (x1 + self.body(x2), x2 * 1.0) if self.place == "function" else (x1 + x2, self.body(x1))


def run(name: str, place: str) -> None:
    from tracing.agreement import agree, randn

    import revgraph as rg

    if place != "root":
        agree(Around(name, place), randn(3, 4), randn(3, 4, seed=2))
        return
    try:
        agree(Body(name), randn(3, 4))
    except rg.TraceError as error:
        assert "submodule" in str(error), error


def main() -> None:
    """Every case in a fork of its own; a line for each: name, place, exit status, error."""
    import resource

    from tracing import agreement

    import revgraph as rg

    assert agreement
    rg.plan(rg.trace(nn.Linear(4, 4), torch.randn(2, 4)).graph)  # imports what every case takes, once
    for name in BODIES:
        for place in PLACES:
            read, write = os.pipe()
            if (child := os.fork()) == 0:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                try:
                    run(name, place)
                    status, text = 0, ""
                except BaseException as error:
                    status, text = 1, f"{type(error).__name__}: {error}"
                os.write(write, text[:2000].replace("\n", " ").encode())
                os._exit(status)
            os.close(write)
            _, status = os.waitpid(child, 0)
            with open(read, encoding="utf-8") as stream:
                print(name, place, os.waitstatus_to_exitcode(status), stream.read(), sep="|", flush=True)


if __name__ == "__main__":
    main()

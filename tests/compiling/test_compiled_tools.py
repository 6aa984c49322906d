"""Compiled steps under the tools around a net: checks, drift, torch.compile, DistributedDataParallel."""

from __future__ import annotations

import pytest
import torch
from compiling.nets import assert_same_step, chain, compiled, decided, inputs, twice
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import revgraph as rg
from revgraph.compiling import backend, compile, module
from revgraph.compiling.module import _compiled


def compilations(step: rg.ReversibleModule) -> int:
    return len(_compiled[step._executable]["aot", False].partitions)


@pytest.mark.slow
def test_a_second_net_of_the_structure_compiles_nothing() -> None:
    counted: list[int] = []
    for seed in range(3):
        model, plain = twice(chain(lambda: nn.BatchNorm1d(8, momentum=0.37), depth=3))  # no other test's
        step = compiled(model, inputs())
        assert_same_step(step, plain, inputs(seed=seed))
        counted.append(compilations(step))
    assert counted == [1, 0, 0]


@pytest.mark.slow
def test_nets_that_differ_in_a_number_share_nothing() -> None:
    for rate in (0.1, 0.6):
        model, plain = twice(chain(lambda rate=rate: nn.Dropout(rate)))
        assert_same_step(compiled(model, inputs()), plain, inputs())


def test_check_runs_the_compiled_step() -> None:
    step = compiled(chain(lambda: nn.Dropout(0.37)), inputs())  # no other test compiles this rate
    report = rg.check(step, inputs())
    assert report.verdict == "good"
    assert report.drift
    assert compilations(step) == 1


@pytest.mark.slow
def test_check_finds_steps_that_drift() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(rg.Affine(nn.Linear(8, 16), nn.Linear(8, 16)) for _ in range(20))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = x.chunk(2, 1)
            for block in self.blocks:
                a, b = block(a, b)
            return torch.cat([a, b], 1)

    torch.manual_seed(0)
    model = Growing()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    x = inputs().detach().float()
    step = compiled(model, x)
    assert rg.check(step, x).verdict != "good"
    step.plan = rg.keep_all(step.graph)
    assert rg.check(step, x).verdict == "good"


@pytest.mark.slow
def test_watch_drift_warns() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(rg.Affine(nn.Linear(8, 16), nn.Linear(8, 16)) for _ in range(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = x.chunk(2, 1)
            for block in self.blocks:
                a, b = block(a, b)
            return torch.cat([a, b], 1)

    step = compiled(Growing(), inputs().detach().float())
    step.watch_drift(every=2, limit=1e-12)
    x = inputs().detach().float()
    with pytest.warns(rg.DriftWarning):
        step(x).sum().backward()
    step(x).sum().backward()
    assert compilations(step) == 1


def test_plans_with_bounded_drift_keep_their_anchors() -> None:
    model, plain = twice(chain(depth=4))
    net = rg.trace(model, inputs())
    anchor = next(node.outputs[0] for node in net.graph.planned if node.kind == "coupling")
    net.plan = rg.decide(net.graph, decided(net.graph, "invert").decisions, anchors=[anchor])
    assert anchor in net.plan.stored
    assert_same_step(compile(net, "aot"), plain, inputs())


def test_a_plan_with_max_drift_keeps_what_it_says() -> None:
    model, plain = twice(chain(depth=4))
    net = rg.trace(model, inputs())
    net.plan = rg.plan(rg.estimate_drift(net, inputs()), max_drift=1e-15)
    step = compile(net, "aot")
    assert_same_step(step, plain, inputs())
    assert all(each <= 1e-15 for each in rg.check(step, inputs()).drift.values())


def test_torch_compile_with_the_backend_of_this_name(monkeypatch: pytest.MonkeyPatch) -> None:
    backend.register()
    monkeypatch.setitem(module.FACES, "revgraph", lambda net: compile(net, "aot"))
    model, plain = twice(chain())
    net = rg.trace(model, inputs())
    assert_same_step(torch.compile(net, backend="revgraph"), plain, inputs())
    assert compilations(net) == 1


def test_inside_of_distributed_data_parallel_with_buckets() -> None:
    """Torch cuts what it compiles there at the borders of the buckets; a step is one graph nevertheless."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model, plain = twice(chain(depth=3))
        step = compiled(model, inputs())
        parallel = DistributedDataParallel(step, bucket_cap_mb=2e-3)
        for run in (parallel, plain):
            run(inputs()).square().sum().backward()
        for one, two in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-12)
        assert compilations(step) == 1
    finally:
        distributed.destroy_process_group()

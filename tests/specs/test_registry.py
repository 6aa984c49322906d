"""What a specification can name, and how a user's own modules get a name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from revgraph import blocks, couplings, specs, wiring
from revgraph.couplings import Coupling
from revgraph.errors import SpecError
from revgraph.specs import registry
from revgraph.specs.vocabulary import TORCH


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_registered", {})
    yield


def build(layer: str, inputs: str = "{x: [4]}") -> nn.Module:
    return specs.build(f"inputs: {inputs}\nlayers:\n  - a: {layer}\n").module.get_submodule("a")


class Doubled(nn.Module):
    def __init__(self, size: int, *, times: float = 2.0) -> None:
        super().__init__()
        self.linear, self.times = nn.Linear(size, size), times

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.times


def test_a_registered_class_or_function_takes_the_arguments_written() -> None:
    specs.register("Doubled", Doubled)
    specs.register("doubled", lambda size: Doubled(size, times=3))
    module = build("{Doubled: {size: 4, times: 1.5}}")
    assert isinstance(module, Doubled) and module.times == 1.5
    assert build("{doubled: 4}").times == 3


def test_a_registered_module_may_hold_modules_written_as_arguments() -> None:
    class Residual(nn.Module):
        def __init__(self, body: nn.Module, others: tuple[nn.Module, ...] = ()) -> None:
            super().__init__()
            self.body, self.others = body, nn.ModuleList(others)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x)

    specs.register("Residual", Residual)
    module = build(
        "{Residual: {body: {layers: [up: {Linear: [4, 8]}, down: {Linear: [8, 4]}]}, others: [{ReLU: }]}}"
    )
    assert [name for name, _ in module.named_parameters()] == [
        "body.up.weight",
        "body.up.bias",
        "body.down.weight",
        "body.down.bias",
    ]
    assert isinstance(module.others[0], nn.ReLU)


def test_a_registered_coupling_takes_its_functions_and_options() -> None:
    class Scaled(Coupling):
        def __init__(self, *functions: nn.Module, by: float = 1.0) -> None:
            super().__init__(*functions)
            self.by = by

        def couple(self, x: Tensor, term: Tensor) -> Tensor:
            return x + self.by * term

        def uncouple(self, y: Tensor, term: Tensor) -> Tensor:
            return y - self.by * term

    class Shift(Coupling):
        def __init__(self) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.ones(1))

        def couple(self, x: Tensor, term: None) -> Tensor:
            return x + self.by

        def uncouple(self, y: Tensor, term: None) -> Tensor:
            return y - self.by

    specs.register("Scaled", Scaled)
    specs.register("Shift", Shift)
    net = specs.build("""
inputs: {x: [4]}
layers:
  - shift: Shift
  - streams: {Split: 2, out: [x1, x2]}
  - other: {Shift: , target: x2}
  - step: {Scaled: {f: {Linear: [2, 2]}, by: 0.5}, target: x1, others: x2}
  - end: {Concatenate: , in: [x1, x2]}
""").module
    x = torch.randn(2, 4)
    x1, x2 = (x + 1).chunk(2, dim=1)
    expected = torch.cat([x1 + 0.5 * net.get_submodule("step.f")(x2 + 1), x2 + 1], dim=1)
    torch.testing.assert_close(net(x), expected)


def test_a_module_says_how_many_values_it_makes() -> None:
    class Both(nn.Module):
        outputs = 2

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, -x

    specs.register("Both", Both)
    net = specs.build("inputs: {x: [4]}\nlayers:\n  - a: Both\n  - b: Sum\n").module
    assert not net(torch.ones(2, 4)).any()


def test_a_factory_that_needs_real_numbers_is_called_with_them_and_the_random_state_is_as_plain() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.randn(3).abs().max().item()

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    torch.manual_seed(3)
    plain = Scaled().scale
    after = torch.get_rng_state()
    specs.register("Scaled", Scaled)
    torch.manual_seed(3)
    assert build("Scaled").scale == plain
    assert torch.equal(torch.get_rng_state(), after)


def test_registering_again_replaces_and_built_in_names_are_kept() -> None:
    specs.register("Mine", nn.ReLU)
    specs.register("Mine", nn.Tanh)
    assert isinstance(build("Mine"), nn.Tanh)
    for name in ("Linear", "Additive", "Split", "Stem"):
        with pytest.raises(SpecError, match=f"'{name}' names a module of revgraph or torch already"):
            specs.register(name, nn.ReLU)


@pytest.mark.parametrize("name", ["", "a b", "1a", "in", "repeat", "layers", "a.b", "_a", "$a"])
def test_names_that_a_specification_could_not_write_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="cannot name a module"):
        specs.register(name, nn.ReLU)


def test_what_is_no_factory_or_makes_no_module_is_refused() -> None:
    with pytest.raises(SpecError, match="must be registered with a module class or a function, not int"):
        specs.register("Number", 3)  # pyright: ignore[reportArgumentType]
    specs.register("Three", lambda: 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        SpecError, match=r"^text:3: what is registered as 'Three' made int, which is no module$"
    ):
        build("Three")


def test_an_error_in_a_users_factory_is_named_with_its_line_and_kept_as_the_cause() -> None:
    def failing() -> nn.Module:
        raise KeyError("lost")

    specs.register("Failing", failing)
    with pytest.raises(
        SpecError, match=r"^text:3: Failing cannot be made from these arguments: 'lost'$"
    ) as caught:
        build("Failing")
    assert isinstance(caught.value.__cause__, KeyError)


def test_every_coupling_wiring_and_block_of_revgraph_can_be_named() -> None:
    for name in ("Additive", "Affine"):
        assert registry.BUILT_IN[name] is getattr(couplings, name)
    for name in ("Split", "Concatenate", "Permute", "Swap", "Reshape", "SpaceToDepth"):
        assert registry.BUILT_IN[name] is getattr(wiring, name)
    for name in blocks.__all__:
        assert registry.BUILT_IN[name] is getattr(blocks, name)
    assert not {"Coupling", "Wiring", "Boundary"} & registry.BUILT_IN.keys()


def test_modules_of_torch_that_copy_run_or_hold_others_cannot_be_named() -> None:
    for name in (
        "Sequential",
        "ModuleList",
        "DataParallel",
        "LazyLinear",
        "TransformerEncoder",
        "LSTM",
        "Module",
    ):
        assert hasattr(nn, name)
        assert name not in registry.BUILT_IN
    assert all(
        issubclass(kind, nn.Module) and kind.__module__.startswith("torch.nn.") for kind in TORCH.values()
    )

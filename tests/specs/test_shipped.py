"""The shipped networks: what they are, and that each is the published one."""

from __future__ import annotations

from importlib.resources import files

import pytest
import torch
from torch import nn

from revgraph import specs
from revgraph.errors import SpecError

# Trainable parameters by number of classes, as published.
COUNTS = {
    "resnet-32": {10: 464_154, 100: 470_004},
    "revnet-38": {10: 464_890, 100: 475_060},
    "resnet-110": {10: 1_727_962, 100: 1_733_812},
    "revnet-110": {10: 1_729_194, 100: 1_740_804},
    "resnet-164": {10: 1_703_258, 100: 1_726_388},
    "revnet-164": {10: 1_748_778, 100: 1_794_948},
    "resnet-50": {1000: 25_549_352},
    "resnet-101": {1000: 44_541_480},
    "resnet-152": {1000: 60_185_128},
    "revnet-56": {1000: 27_553_128},
    "revnet-104": {1000: 45_428_072},
}


def trainable(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [(name, classes, count) for name, counts in COUNTS.items() for classes, count in counts.items()],
)
def test_parameter_counts_are_the_published_ones(name: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        module = specs.build(name, classes=classes).module
    assert trainable(module) == count


@pytest.mark.parametrize("name", COUNTS)
def test_default_number_of_classes_is_the_data_sets(name: str) -> None:
    with torch.device("meta"):
        built = specs.build(name)
        assert trainable(built.module) == next(iter(COUNTS[name].values()))
    assert built.parameters == {"classes": next(iter(COUNTS[name]))}


@pytest.mark.parametrize("name", COUNTS)
def test_shipped_specs_are_short_and_named_for_their_file(name: str) -> None:
    text = (files("revgraph") / "models" / f"{name}.yaml").read_text()
    with torch.device("meta"):
        built = specs.build(name)
    assert built.name == name
    assert len(built.description) > 20
    assert len(text.splitlines()) <= 25


def test_shipped_names_come_sorted_by_family_and_depth() -> None:
    names = specs.shipped()
    assert set(COUNTS) <= set(names)
    assert [name for name in names if name.startswith("revnet-")] == [
        "revnet-38",
        "revnet-56",
        "revnet-104",
        "revnet-110",
        "revnet-164",
    ]


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("revnet-164", (100, 3, 32, 32), 10), ("resnet-152", (2, 3, 224, 224), 1000)],
)
def test_forward_gives_class_scores(name: str, shape: tuple[int, ...], classes: int) -> None:
    with torch.device("meta"):
        built = specs.build(name)
        assert built.inputs[0].shape == shape
        assert built.module(*specs.example_inputs(built)).shape == (shape[0], classes)


@pytest.mark.parametrize("name", ["resnet-32", "revnet-38"])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    built = specs.build(name, batch=2)
    built.module(*specs.example_inputs(built)).square().sum().backward()
    without = [
        key for key, value in built.module.named_parameters() if value.grad is None or not value.grad.any()
    ]
    assert without == []


def test_revnet_38_is_the_papers_chain() -> None:
    built = specs.build("revnet-38", batch=2)
    net, at = built.module, built.module.get_submodule
    (image,) = specs.example_inputs(built)
    x1, x2 = at("stem")(image).chunk(2, dim=1)
    for stage in ("stage1", "stage2", "stage3"):
        x1, x2 = at(f"{stage}.unit0")(x1, x2)
        for unit in ("unit1", "unit2"):
            y1 = x1 + at(f"{stage}.{unit}.f")(x2)
            x1, x2 = y1, x2 + at(f"{stage}.{unit}.g")(y1)
    expected = at("head")(torch.cat([x1, x2], dim=1))
    torch.testing.assert_close(net(image), expected, rtol=0, atol=0)


def test_only_the_very_first_function_leaves_out_its_activation() -> None:
    for name in ("resnet-110", "revnet-104"):
        with torch.device("meta"):
            keys = specs.build(name).module.state_dict().keys()
        functions = {key.rsplit(".", 2)[0] for key in keys if ".conv1." in key}
        without = {path for path in functions if f"{path}.norm1.weight" not in keys}
        assert without == {"stage1.unit0.f"}


def test_state_dict_keys_are_readable() -> None:
    keys = specs.build("revnet-38").module.state_dict().keys()
    assert {
        "stem.conv.weight",
        "stage1.unit0.f.conv1.weight",
        "stage1.unit1.g.norm2.bias",
        "stage3.unit2.f.norm1.running_mean",
        "head.linear.weight",
    } <= keys
    with torch.device("meta"):
        deep = specs.build("revnet-164").module.state_dict().keys()
    assert "stage1.unit0.shortcut2.weight" in deep
    assert "stage3.unit8.g.conv3.weight" in deep
    assert not any("stage3.unit9" in key for key in deep)


def test_checking_draws_no_random_numbers() -> None:
    torch.manual_seed(7)
    plain = nn.Linear(4, 4)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    built = specs.build("inputs: {x: [4]}\nlayers:\n  - a: {Linear: [4, 4]}\n").module
    assert torch.equal(built.get_submodule("a").weight, plain.weight)
    assert torch.equal(torch.get_rng_state(), after)


def test_weights_come_from_the_global_generator_and_nothing_else_draws_from_it() -> None:
    torch.manual_seed(5)
    first = specs.build("resnet-32").module
    after = torch.get_rng_state()
    torch.manual_seed(5)
    second = specs.build("resnet-32")
    assert torch.equal(torch.get_rng_state(), after)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.module.state_dict()[key]), key
    with pytest.raises(SpecError):
        specs.build("inputs: {x: [4]}\nlayers: [{a: {Linear: [4, 4]}}, {b: {Linear: [4]}}]\n")
    (image,) = specs.example_inputs(second)
    assert torch.equal(torch.get_rng_state(), after)
    assert image.shape == (100, 3, 32, 32)
    assert torch.equal(image, specs.example_inputs(second)[0])
    assert 0.9 < image.std() < 1.1

"""RevNets of any depth: small ones in one stage, and the shipped ones with more units a stage."""

from __future__ import annotations

from typing import Any

import torch
import yaml
from torch import nn

import revgraph as rg
from benchmarks.tradeoff.networks import Fold, Halves, Joined
from revgraph.specs.sources import MODELS

CHANNELS, SIDE = 16, 16


def one_stage(units: int, batch: int, channels: int = CHANNELS, side: int = SIDE) -> dict[str, Any]:
    """The specification of a RevNet whose only stage is `units` basic units on two streams."""
    function = {"BasicFunction": channels}
    return {
        "name": f"revnet-of-{units}",
        "batch": batch,
        "inputs": {"image": [3, side, side]},
        "layers": [
            {"stem": {"Stem": {"in_channels": 3, "out_channels": 2 * channels}}},
            {"streams": {"Split": 2}},
            {"unit0": {"Additive": {"f": function, "g": function}, "repeat": units}},
            {"joined": "Concatenate"},
            {"head": {"Head": {"channels": 2 * channels, "classes": 10}}},
        ],
    }


def deepened(name: str, units: int) -> dict[str, Any]:
    """The specification of a shipped network with `units` units in every stage."""
    spec = yaml.safe_load((MODELS / f"{name}.yaml").read_text(encoding="utf-8"))
    for layer in spec["layers"]:
        for key, parts in layer.items():
            if key.startswith("stage"):
                entry, inverted = parts
                (inner,) = inverted.items()
                more = {inner[0]: {**inner[1], "repeat": units - 1}}
                layer[key] = [entry, more] if units > 1 else [entry]
    return spec


def plain(net: rg.ReversibleModule, units: int) -> Fold:
    """The same modules as an ordinary network, for what torch does by itself; `net` is from `one_stage`."""
    blocks: list[nn.Module] = [net.get_submodule(f"unit{index}") for index in range(units)]
    return Fold([net.get_submodule("stem"), Halves(), *blocks, Joined(), net.get_submodule("head")])


def images(net: rg.ReversibleModule) -> torch.Tensor:
    """Random images of the shape that a net was planned for."""
    shape = net.graph.value[net.graph.inputs[0]].shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))

"""The networks that are tried on a GPU, at any batch and depth: `made("revnet-104", batch, depth)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor

import revgraph as rg
from benchmarks.paper.networks import images
from benchmarks.tradeoff.networks import transformer
from revgraph.specs.sources import MODELS

Net = tuple[rg.ReversibleModule, tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A network at any batch and depth: `deep` says what depth counts, `batch` and `depth` are the usual."""

    title: str
    deep: str
    batch: int
    depth: int
    make: Callable[[int, int], Net]


def revnet_104(batch: int, depth: int) -> Net:
    """RevNet-104 with `depth` reversible units in its third stage, which has 10."""
    torch.manual_seed(0)
    net = rg.load(specification(depth), batch=batch)
    return net, (images(net),)


def specification(depth: int) -> dict[str, Any]:
    """That of RevNet-104, with so many reversible units in the third stage."""
    spec: dict[str, Any] = yaml.safe_load((MODELS / "revnet-104.yaml").read_text(encoding="utf-8"))
    for layer in spec["layers"]:
        for unit in layer.get("stage3", []):
            if "unit1" in unit:
                unit["unit1"]["repeat"] = depth
    return spec


def _transformer(length: int, width: int) -> Callable[[int, int], Net]:
    def make(batch: int, depth: int) -> Net:
        made = transformer(blocks=depth, batch=batch, length=length, width=width)
        return made.net, made.inputs

    return make


SUBJECTS = {
    "revnet-104": Subject("RevNet-104", "units in stage 3", 32, 10, revnet_104),
    "transformer": Subject(
        "Reversible transformer of width 1,024 on 512 tokens", "blocks", 8, 12, _transformer(512, 1024)
    ),
    # For tests on a CPU.
    "small": Subject(
        "Small reversible transformer of width 16 on 8 tokens", "blocks", 2, 2, _transformer(8, 16)
    ),
}
NAMES = ("revnet-104", "transformer")

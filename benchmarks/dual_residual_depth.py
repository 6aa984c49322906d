"""A converted run of blocks by its depth: how far values drift when it is inverted, and its bytes."""

from __future__ import annotations

from typing import Any

DEPTHS = (4, 8, 16, 32)
# Alpha and beta: the pretrained network's own alpha under several betas, then what finetuning may end with.
COEFFICIENTS = ((1.0, 0.01), (1.0, 0.1), (1.0, 0.5), (0.5, 0.7), (0.0, 1.0))


def by_depth(quick: bool = False) -> list[dict[str, Any]]:
    """For each number of blocks the largest drift without anchors, and what each plan takes.

    The blocks are units of a ResNet with 16 channels on 8 images of 16x16, at random weights. Bytes are those
    that plans predict, at the peak; the ordinary network's plan recomputes least within those of the
    converted one. None stands for a drift beyond the numbers.
    """
    import torch

    import revgraph as rg

    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for blocks in DEPTHS[:1] if quick else DEPTHS:
        spec = {
            "inputs": {"image": [3, 16, 16]},
            "layers": [
                {"stem": {"Stem": {"in_channels": 3, "out_channels": 16}}},
                {"unit": {"BasicUnit": 16, "repeat": blocks}},
                {"head": {"Head": {"channels": 16, "classes": 5}}},
            ],
        }
        torch.manual_seed(0)
        images = torch.randn(8, 3, 16, 16)
        plain = rg.load(spec, batch=8)
        net = rg.dual_residual(plain, images)
        inverted = rg.decide(net.graph, {})
        plans = {
            "ordinary, stored": rg.keep_all(plain.graph),
            "ordinary, recomputing": rg.plan(plain.graph, budget=inverted.peak_bytes),
            "converted, inverted": inverted,
        }
        drift: dict[str, list[float]] = {}
        for dtype in (torch.float32, torch.float64):
            net.to(dtype)
            drift[str(dtype).removeprefix("torch.")] = [
                _drift(net, inverted, images.to(dtype), *each) for each in COEFFICIENTS
            ]
        memory = {name: [plan.peak_bytes, plan.flops_ratio] for name, plan in plans.items()}
        found.append({"blocks": blocks, "drift": drift, "plans": memory})
    return found


def _drift(net: Any, plan: Any, images: Any, alpha: float, beta: float) -> float | None:
    """The largest drift; None where it is no number."""
    import math

    import revgraph as rg

    rg.set_dual_residual(net, alpha=alpha, beta=beta)
    net.plan = plan
    drift = max(rg.check(net, images).drift.values())
    return drift if math.isfinite(drift) else None

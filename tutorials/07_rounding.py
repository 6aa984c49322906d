# %% [markdown]
# # 7. Rounding
#
# After this page you can tell when the rounding errors of inversion matter, see them, bound them, and do
# without them.
#
# ## Where they come from
#
# Undoing rests on $(x + t) - t = x$. In real numbers.

# %%
import torch
from torch import nn

import revgraph as rg
from pictures import BLUE, GREEN, ORANGE, chart

torch.manual_seed(0)
x, t = torch.rand(100_000), torch.rand(100_000)
wrong = (x + t) - t != x
error = ((x + t) - t - x).abs().max()
print(
    f"{wrong.float().mean():.0%} of the numbers do not come back; the largest error is {error:.0e}"
)
assert 0.2 < wrong.float().mean() < 1 and error < 1e-7

# %% [markdown]
# The sum has more digits than fit, and the last ones are gone. An error of $10^{-7}$ would not matter, if
# it remained one. But the next half-step down computes $F$ of a slightly wrong value. If $F$ is steep, the
# error grows; and so on, block by block.
#
# ## See them
#
# `rg.check` takes a step twice, once on rebuilt and once on stored values. The *drift* of a value is its
# largest error over its largest element; the angle is that between the two gradients. Here are chains of 32
# blocks with weights of 1, 1.5 and 2 times PyTorch's usual size.

# %%


def function(size):
    layers = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    for weight in layers.parameters():
        weight.data *= size
    return layers


class Chain(nn.Module):
    def __init__(self, size, depth=32):
        super().__init__()
        blocks = (rg.Additive(function(size), function(size)) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x1, x2):
        for block in self.blocks:
            x1, x2 = block(x1, x2)
        return x1, x2


inputs = torch.randn(8, 16), torch.randn(8, 16)
chains, reports = {}, {}
for size in (1, 1.5, 2):
    net = chains[size] = rg.trace(Chain(size), *inputs)
    net.plan = rg.decide(net.graph, {})  # everything inverted
    report = reports[size] = rg.check(net, *inputs)
    worst = max(report.drift.values())
    print(
        f"weights x{size}: drift up to {worst:.0e}, angle {report.angle_degrees:.1e} degrees"
    )
assert reports[1].angle_degrees < 1e-3 and reports[2].angle_degrees > 45

# %% tags=["drawing"]
with chart(
    "drift.svg",
    "Drift of each rebuilt value, for three sizes of weights, on a logarithmic scale",
) as axes:
    for (size, report), colour, mark in zip(
        reports.items(), (GREEN, BLUE, ORANGE), "os^", strict=True
    ):
        axes.plot(
            report.drift.values(),
            f"{mark}-",
            color=colour,
            markersize=4,
            label=f"weights x{size}",
        )
    axes.set(
        yscale="log",
        xlabel="rebuilt values, in the order of the backward pass",
        ylabel="drift",
    )
    axes.grid(alpha=0.35)

# %% [markdown]
# The lines are straight, on a logarithmic scale: the error grows by a *factor* with each half-step. At
# weights of twice the size the gradient is at right angles to the true one, which is as good as a random
# one. Nothing fails, no number is infinite. That is why one has to look.
#
# For networks as they are usually trained it is the lowest line that counts: RevNet-38 as shipped, on
# random images.

# %%
revnet = rg.load("revnet-38", batch=4)
revnet.plan = rg.decide(revnet.graph, {})
report = rg.check(revnet, torch.randn(4, 3, 32, 32))
print(report)
assert report.angle_degrees < 0.1

# %% [markdown]
# ## Bound them
#
# A stored value has no error, and the errors below it start again from zero. Such values are *anchors*.
# `rg.estimate_drift` measures how much each half-step rounds, and by how much it grows errors; a plan with
# `max_drift` then stores as few values as the bound takes.

# %%
net = chains[1.5]
rg.estimate_drift(net, *inputs)
for bound in (None, 1e-4, 1e-5, 1e-6):
    if bound:
        net.plan = rg.plan(net.graph, max_drift=bound, effort="quick")
    drift = max(rg.check(net, *inputs).drift.values())
    held = f"{len(net.plan.anchors):2} anchors, {net.plan.held_bytes:6,} bytes held"
    print(f"bound {bound!s:6} drift {drift:.0e}, {held}")
    assert bound is None or drift < bound

# %% [markdown]
# While a network trains, `net.watch_drift()` looks at a few elements now and then, and warns.
#
# ## Do without them
#
# Addition is exact as long as no digit is lost. Put all numbers on a grid, the multiples of $2^{-14}$, and
# round $F(x_2)$ to the grid before it is added. Sums of such numbers are such numbers, and float32 holds
# them without error up to $2^{10}$.

# %%
step = 2.0**-14


def on_grid(x):
    return torch.round(x / step) * step


x, t = on_grid(x), on_grid(t)
assert torch.equal((x + t) - t, x)
print("all of the numbers come back")

# %% [markdown]
# What $F$ computes is rounded away a bit, in the forward pass and in the backward alike. What comes back is
# *exactly* what was there. The gradient of rounding is taken to be 1. This is the library's exact mode:

# %%
exact = rg.trace(Chain(1.5), *inputs, exact=True)
exact.plan = rg.decide(exact.graph, {})
report = rg.check(exact, *inputs)
print(report)
assert report.angle_degrees == 0 and set(report.drift.values()) == {0}

# %% [markdown]
# !!! info "In the library"
#
#     `revgraph/rounding.py` has the grid, `revgraph/estimating.py` the measurement of growth, and
#     `revgraph/planning/drifting.py` what a plan makes of it. More in [Drift and exact mode](../drift.md).
#
# ## Exercises
#
# **1.** By what factor does the error grow with each half-step, at weights of twice the size? Read it off
# the drifts.

# %% tags=["answer"]
drifts = list(reports[2].drift.values())
factor = (drifts[40] / drifts[10]) ** (1 / 30)
print(f"about {factor:.1f}")
assert factor > 1.2

# %% [markdown]
# **2.** With float64 streams, errors begin nine digits lower. How many blocks of the steep kind can you
# undo with it before the drift is above $10^{-3}$? Estimate with the factor, then try.

# %% tags=["answer"]
for depth in (16, 32, 48):
    wide = rg.trace(Chain(2, depth).double(), *(x.double() for x in inputs))
    wide.plan = rg.decide(wide.graph, {})
    drift = max(rg.check(wide, *(x.double() for x in inputs)).drift.values())
    print(f"{depth} blocks: drift {drift:.0e}")
assert drift > 1e-3

# %% [markdown] tags=["answer"]
# Wider numbers move the limit by some tens of blocks. They do not remove it, since growth is exponential:
# anchors and the grid do.

# %% [markdown]
# **3.** *Predict, then run.* The grid of steps of $2^{-14}$ is exact up to $2^{10}$. What share of the sums
# comes back if the numbers are uniform up to $2^{9}$, up to $2^{11}$ and up to $2^{13}$?

# %% tags=["answer"]
for exponent in (9, 11, 13):
    x, t = (on_grid(torch.rand(100_000) * 2**exponent) for _ in range(2))
    share = ((x + t) - t == x).float().mean()
    print(f"up to 2^{exponent}: {share:.0%} come back")
    assert (share == 1) == (exponent == 9)

# %% [markdown] tags=["answer"]
# A float32 has 24 binary digits, and $2^{10} / 2^{-14} = 2^{24}$. Up to $2^9$ each, sums stay below
# $2^{10}$, and all come back. Beyond, the steps of float32 are wider than the grid's, and digits are lost as
# at the beginning.

# %% [markdown]
# **4.** Put a `nn.LayerNorm(16)` before the first layer of each function, at weights of twice the size. Is
# the drift better or worse than without? Why?

# %% tags=["answer"]
torch.manual_seed(0)
calm = Chain(2)
for block in calm.blocks:
    block.f = nn.Sequential(nn.LayerNorm(16), block.f)
    block.g = nn.Sequential(nn.LayerNorm(16), block.g)
calm = rg.trace(calm, *inputs)
calm.plan = rg.decide(calm.graph, {})
report = rg.check(calm, *inputs)
worst = max(report.drift.values())
print(
    f"drift up to {worst:.0e} in place of {max(reports[2].drift.values()):.0e}, "
    f"angle {report.angle_degrees:.1e} degrees"
)
assert worst < 1e-3

# %% [markdown] tags=["answer"]
# Much better. Behind the normalization every function gets numbers of the same size, whatever the streams
# have grown to, and its slope by the stream falls as the stream grows. So errors are not multiplied again
# and again. The functions of RevNet-38 begin with a BatchNorm, which does the same.

# %% [markdown]
# **5.** Place an anchor by hand: `rg.decide(net.graph, {}, anchors=["blocks.15.f", "blocks.15.g"])` stores
# both streams in the middle of the chain. From the drift without anchors, at weights of 1.5 times the size,
# what do you expect of the drift with them?

# %% tags=["answer"]
net = chains[1.5]
net.plan = rg.decide(net.graph, {}, anchors=["blocks.15.f", "blocks.15.g"])
drift = max(rg.check(net, *inputs).drift.values())
print(f"drift {drift:.0e} in place of {max(reports[1.5].drift.values()):.0e}")
assert drift < max(reports[1.5].drift.values()) / 5

# %% [markdown] tags=["answer"]
# An error of about $10^{-7}$ grows by a factor $g^{64}$ without anchors, and by $g^{32}$, the square root of
# that, with one in the middle. So in digits the drift is half as far above $10^{-7}$.

# %% [markdown]
# # 5. What it costs
#
# After this page you can say what a reversible network saves in memory and costs in computing, for any
# depth, and check it by measurement.
#
# ## Count on paper
#
# Let the forward pass of a network take $N$ operations. For a matrix product $y = x W$ the backward pass
# does two products of the same size, $\bar{x} = \bar{y} W^\top$ and $\bar{W} = x^\top \bar{y}$. Nearly all
# operations of a network are of that kind. So a step of ordinary training takes $N + 2N = 3N$.
#
# A reversible network computes each function once more in the backward pass (lines 2 and 3 of tutorial 3):
# $4N$.
#
# $$\frac{4N}{3N} = 1.333$$
#
# In return it holds the outputs of its last block between forward and backward, at whatever depth.
#
# ## Measure
#
# `rg.measure` runs one training step and looks: at the storages that are alive, at the operations, and at
# how often each function ran.

# %%
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential
from torch.utils.flop_counter import FlopCounterMode

import revgraph as rg
from pictures import BLUE, ORANGE, chart
from revgraph.storages import StorageTracker

WIDTH, BATCH = 32, 64


def function():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


class Chain(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.ModuleList(
            rg.Additive(function(), function()) for _ in range(depth)
        )

    def forward(self, x1, x2):
        for block in self.blocks:
            x1, x2 = block(x1, x2)
        return x1, x2


inputs = [torch.randn(BATCH, WIDTH, requires_grad=True) for _ in range(2)]
depths = [1, 2, 4, 8, 16]
kept, inverted = [], []
for depth in depths:
    net = rg.trace(Chain(depth), *inputs)
    net.plan = rg.keep_all(net.graph)  # ordinary autograd
    kept.append(rg.measure(net, *inputs))
    net.plan = rg.decide(net.graph, dict.fromkeys(net.plan.decisions, "invert"))
    inverted.append(rg.measure(net, *inputs))

print(f"{'':8} {'kept':>28} {'inverted':>28}")
for depth, *both in zip(depths, kept, inverted, strict=True):
    cells = [f"{each.peak_bytes:10,} B {each.flops:11,} FLOPs" for each in both]
    print(f"{depth:2} blocks {cells[0]:>28} {cells[1]:>28}")
print(inverted[-1])

# %% [markdown]
# The paper's count holds exactly, and the inverted network's memory does not grow:

# %%
N = (
    4 * depths[-1] * 2 * BATCH * WIDTH * WIDTH
)  # four products a block, a multiplication and an addition each
assert kept[-1].flops == 3 * N and inverted[-1].flops == 4 * N
assert len({measured.held_bytes for measured in inverted}) == 1
assert len({measured.peak_bytes for measured in inverted[1:]}) == 1
assert kept[-1].held_bytes > 15 * kept[0].held_bytes

# %% tags=["drawing"]
with chart("costs.svg", "Peak bytes and FLOPs by depth, kept and inverted", count=2) as (
    left,
    right,
):
    for measured, name, colour, mark in (
        (kept, "kept", ORANGE, "s-"),
        (inverted, "inverted", BLUE, "o-"),
    ):
        left.plot(
            depths,
            [each.peak_bytes / 1024 for each in measured],
            mark,
            color=colour,
            label=name,
        )
        right.plot(
            depths, [each.flops / 1e6 for each in measured], mark, color=colour, label=name
        )
    left.set(title="memory", xlabel="blocks", ylabel="KiB at the peak", ylim=0)
    right.set(title="computing", xlabel="blocks", ylabel="million FLOPs", ylim=0)
    for axes in (left, right):
        axes.grid(alpha=0.35)

# %% [markdown]
# ## How it compares
#
# The paper's Table 1, for $L$ layers. Checkpointing stores some activations and runs the layers between
# them again.
#
# | way | activations held | computing |
# |---|---|---|
# | ordinary backprop | $O(L)$ | $O(L)$ |
# | a checkpoint at every $\sqrt{L}$-th layer | $O(\sqrt{L})$ | $O(L)$ |
# | checkpoints inside checkpoints | $O(\log L)$ | $O(L \log L)$ |
# | reversible | $O(1)$ | $O(L)$ |
#
# The second line, measured: PyTorch's own checkpoints, at every $\sqrt{L}$-th of $L$ blocks, and the most
# that a step of each has in memory.

# %%


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = function()

    def forward(self, x):
        return x + self.f(x)


def peak(chain, parts=None):
    """The activation bytes at the peak of a step, with checkpoints around so many parts."""
    x = inputs[0]
    with StorageTracker([x, *chain.parameters()]) as tracker:
        y = (
            checkpoint_sequential(chain, parts, x, use_reentrant=False)
            if parts
            else chain(x)
        )
        y.sum().backward()
    return tracker.peak(without=[weight.grad for weight in chain.parameters()])


for count in (4, 16, 36):
    chain = nn.Sequential(*(Block() for _ in range(count)))
    plain, stored = peak(chain), peak(chain, round(count**0.5))
    print(
        f"{count:2} blocks: plain {plain / 1024:3.0f} KiB, checkpoints {stored / 1024:3.0f} KiB"
    )
assert stored < plain / 2

# %% [markdown]
# Checkpoints need no second stream, and take any network. A plan of this library may mix both, as the next
# page shows.
#
# ## What the count leaves out
#
# - Only matrix products, convolutions and attention are counted as FLOPs. Normalization and activation
#   functions run again, too, and take time. Measure seconds where they matter to you.
# - Boundaries, such as the first layer and the last, are as dear as in any network.
# - Weights, their gradients and the optimizer's state are no activations; they stay what they were.
#
# !!! info "In the library"
#
#     `revgraph/measuring.py` measures; PyTorch's `FlopCounterMode` counts operations, and
#     `revgraph/storages.py` watches each storage from its birth to its end. What a plan *predicts* comes
#     from `revgraph/costs/`, without running anything on real numbers. On the CPU both agree to the byte.
#
# ## Exercises
#
# **1.** Where do the 16 KiB come from that the inverted network holds between forward and backward?

# %% tags=["answer"]
two_streams = 2 * BATCH * WIDTH * 4  # four bytes a number
print(two_streams, "of", inverted[-1].held_bytes, "bytes are the last two streams")
assert inverted[-1].held_bytes == two_streams + 4

# %% [markdown] tags=["answer"]
# The other four bytes are the loss.

# %% [markdown]
# **2.** Somebody undoes a block first, without gradients, and then runs it forward again with gradients, to
# call `backward`. What does a step cost now, on paper? Count it, too.

# %% tags=["answer"]

block = rg.Additive(function(), function())
with FlopCounterMode(display=False) as counter:
    with torch.no_grad():
        y1, y2 = block(*inputs)
        x2 = y2 - block.g(y1)
        x1 = y1 - block.f(x2)
    again = block(x1.requires_grad_(), x2.requires_grad_())
    torch.autograd.backward(again, [torch.ones_like(y1), torch.ones_like(y2)])
print(f"{counter.get_total_flops() / kept[0].flops:.3f} of ordinary training")
assert counter.get_total_flops() * 3 == 5 * kept[0].flops

# %% [markdown] tags=["answer"]
# $N$ forward, $N$ to undo, $N$ forward again and $2N$ backward: $5N$, so $5/3$. One evaluation that serves
# both is what makes it $4/3$.

# %% [markdown]
# **3.** *Predict, then run.* Twice the batch. Which of these double for the inverted network: the bytes
# held, the peak, the FLOPs, the FLOPs over ordinary autograd's?

# %% tags=["answer"]
net = rg.trace(Chain(4), *inputs)
net.plan = rg.decide(net.graph, {})
more = [torch.randn(2 * BATCH, WIDTH, requires_grad=True) for _ in range(2)]
once, twice = rg.measure(net, *inputs), rg.measure(net, *more)
for name in ("held_bytes", "peak_bytes", "flops", "flops_ratio"):
    print(f"{name:12} x{getattr(twice, name) / getattr(once, name):.3f}")
assert twice.flops == 2 * once.flops and twice.flops_ratio == once.flops_ratio

# %% [markdown] tags=["answer"]
# All but the ratio; the bytes not quite, for the loss is one number in either case. Weights do not double,
# but they are no activations.

# %% [markdown]
# **4.** 16 blocks with a checkpoint at every fourth: what does a step cost on paper, and what does
# `FlopCounterMode` count? (`checkpoint_sequential` leaves the last part as it is.)

# %% tags=["answer"]
chain = nn.Sequential(*(Block() for _ in range(16)))
counts = []
for parts in (None, 4):
    with FlopCounterMode(display=False) as counter:
        peak(chain, parts)
    counts.append(counter.get_total_flops())
print(f"{counts[1] / counts[0]:.3f} of ordinary training")
assert counts[1] * 96 == counts[0] * (96 + 3 * 7)

# %% [markdown] tags=["answer"]
# On paper three quarters of the blocks run once more: $3 N + \frac{3}{4} N$, which over $3 N$ is 1.25. The
# last part needs no second run, for its backward pass is next. PyTorch does a little better still: each of
# the other three parts has eight products, and the last of them is left out, since nothing reads its result.
# So it is $(96 + 3 \cdot 7) / 96$.

# %% [markdown]
# **5.** From two of the measurements above, find on paper how many blocks fit into 1 MiB if everything is
# kept. Check it with `rg.keep_all(graph).peak_bytes`, which runs nothing. And how many fit if everything is
# inverted?

# %% tags=["answer"]
each = (kept[-1].peak_bytes - kept[-2].peak_bytes) // (depths[-1] - depths[-2])
deepest = depths[-1] + (2**20 - kept[-1].peak_bytes) // each
print(f"{each:,} bytes a block, so {deepest} blocks")
fits = [
    rg.keep_all(rg.trace(Chain(depth), *inputs).graph).peak_bytes <= 2**20
    for depth in (deepest, deepest + 1)
]
print("that many fit, and one more:", fits)
assert fits == [True, False]

# %% [markdown] tags=["answer"]
# As many as you like: the inverted peak does not depend on the depth.

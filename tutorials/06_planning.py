# %% [markdown]
# # 6. What to store, what to undo, what to compute again
#
# After this page you can fit a network into a given memory, say what that costs, and read why a plan does
# what it does.
#
# ## A plan by hand
#
# Five layers in a row, and room for $m$ values between forward and backward, beside the input. Say that a
# layer holds its result to be differentiated: one slot. With five slots this is ordinary training. With
# fewer, some layers run again. What are the fewest runs too many?
#
# Look at a stretch of $n$ layers whose input is there. There are two ways to begin:
#
# - The first layer runs and *keeps* its result. That leaves $n - 1$ layers and $m - 1$ slots.
# - The first $k$ layers run and hold nothing but the last result, in one slot. The $n - k$ layers behind them
#   are done with, forward and backward. Then the slot is free, the input is still there, and the $k$ layers
#   are a stretch of their own: $k$ runs too many.
#
# So the fewest $T(n, m)$ follow from those of shorter stretches, by the better one of the two ways. This is a
# *dynamic programme*:
#
# $$T(n, m) = \min\,(\,\mathrm{keep},\ \mathrm{rerun}\,)$$
#
# $$\mathrm{keep} = T(n - 1, m - 1)$$
#
# $$\mathrm{rerun} = \min_{0 < k < n} k + T(n - k, m - 1) + T(k, m)$$
#
# with $T(1, m) = 0$ for $m \ge 1$, and $T(n, 0) = \infty$: without a slot nothing can be differentiated.
# Take three layers and two slots. To keep the first leaves $T(2, 1)$, which is infinite, for the second
# layer would have no slot. To run one layer and hold its result is no better, and costs a run. To run two:
# $2 + T(1, 1) + T(2, 2) = 2$. Fill in the rows for four and for five layers with a pencil, before you look.

# %%
from functools import cache
from itertools import pairwise
from math import inf

import torch
from torch import nn

import revgraph as rg
from pictures import BLUE, GREEN, ORANGE, chart, picture, show


@cache
def least_runs(n, m):
    """The fewest runs too many of n layers with m slots."""
    if m == 0 or n == 1:
        return 0 if m else inf
    ways = [least_runs(n - 1, m - 1)]
    ways += [k + least_runs(n - k, m - 1) + least_runs(k, m) for k in range(1, n)]
    return min(ways)


print("layers   slots: 1     2     3     4     5")
for n in range(1, 6):
    print(f"{n:6}      ", "".join(f"{least_runs(n, m):6}" for m in range(1, 6)))

# %% [markdown]
# Five layers in three slots take three runs too many: three layers run, and the third result is held; the
# last two layers keep theirs, and are differentiated; then the first three run again, and keep theirs.
#
# What does the planner of the library say to five such layers?

# %%


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return torch.tanh(self.linear(x))  # tanh holds its result


rg.register("Layer", Layer)
five = {
    "inputs": {"x": [32]},
    "layers": [{f"layer{i}": {"Layer": 32}} for i in range(1, 6)],
}
chain = rg.load(five, batch=64).graph
ordinary, slot = rg.keep_all(chain), 64 * 32 * 4
products = 3 * 5 - 1  # in a step: three a layer, but nobody asks for the gradient of x
for m in (5, 4, 3, 2):
    plan = rg.plan(chain, budget=ordinary.peak_bytes - (5 - m) * slot, cost="flops")
    runs = round((plan.flops_ratio - 1) * products)
    print(f"{m} slots: by hand {least_runs(5, m)} runs too many, by the planner {runs}")
    assert runs <= least_runs(5, m)

# %% [markdown]
# The same, but in two slots. There the planner knows something that we left out: the peak is at the turn,
# where the loss and its gradients take room. Once they are gone, there is room for more than two results.
#
# The library's programme goes over stretches in the same way. It counts bytes instead of slots, the true
# cost of each node, and more ways to treat one. For a *coupling* there is a third way above all: what lies
# behind it hands back its output, and that gives its input, with one run too many and no slot. So five
# couplings need five runs, and so it is at any depth, in one slot.
#
# ## Three ways
#
# Between forward and backward, each node of a network has three ways:
#
# - **keep**: its internals stay, as in ordinary training;
# - **invert**: they are dropped, and so is its input, which comes back from its output;
# - **recompute**: they are dropped, and its input is stored or rebuilt, to run it again.
#
# A *plan* decides this for all nodes. Here is a small RevNet: two stages with a boundary between them,
# `down`, which halves the image and cannot be undone.

# %%
net = rg.load(
    {
        "inputs": {"image": [3, 16, 16]},
        "layers": [
            {"stem": {"Stem": {"in_channels": 3, "out_channels": 16}}},
            {"streams": {"Split": 2}},
            {
                "early": {
                    "Additive": {"f": {"BasicFunction": 8}, "g": {"BasicFunction": 8}},
                    "repeat": 2,
                }
            },
            {"down": {"BasicEntry": {"in_channels": 8, "out_channels": 16, "stride": 2}}},
            {
                "late": {
                    "Additive": {"f": {"BasicFunction": 16}, "g": {"BasicFunction": 16}},
                    "repeat": 2,
                }
            },
            {"joined": "Concatenate"},
            {"head": {"Head": {"channels": 32, "classes": 10}}},
        ],
    },
    batch=8,
)

stored = rg.keep_all(net.graph)
least = rg.plan(net.graph, budget="least")
for name, plan in {"ordinary autograd": stored, "the least peak": least}.items():
    print(f"{name:17} {plan.peak_bytes:9,} bytes, FLOPs x{plan.flops_ratio:.3f}")
assert least.peak_bytes < stored.peak_bytes / 3

# %% [markdown]
# ## A budget
#
# Say what you have. The plan that comes back takes as little time as it can within that.

# %%
net.plan = rg.plan(net.graph, budget="800 KiB")
print(net.plan)
assert net.plan.peak_bytes <= 800 * 1024

# %% [markdown]
# The summary compares the plan with ordinary training. In the table below it, the held bytes add up to what
# waits between forward and backward.
#
# The plan is drawn with the streams in lanes. Stored values are filled labels, and dashed arrows go where
# values come back.

# %%
show(rg.draw(net.plan, picture("plan.svg")))

# %% [markdown]
# `explain` says why a node is decided as it is:

# %%
for name in ("early1.f", "down", "head"):
    print(net.plan.explain(name))

# %% [markdown]
# What cannot be done is said as well, with the least that can:

# %%
try:
    rg.plan(net.graph, budget="100 KiB")
except rg.BudgetError as error:
    print(error)
    assert error.least_bytes <= least.peak_bytes

# %% [markdown]
# ## A step on paper
#
# `rg.simulate` goes through a training step, without a tensor. This is the memory over a step, for three
# plans. Up to the turn all nodes run forward; from then on the backward pass eats what was held. The
# planner's aim is the highest point.

# %%
plans = {"keep all": stored, "800 KiB": net.plan, "least peak": least}
moments = {name: rg.simulate(plan) for name, plan in plans.items()}
for name, plan in plans.items():
    assert max(moment.peak_bytes for moment in moments[name]) == plan.peak_bytes

# %% tags=["drawing"]
with chart(
    "timeline.svg", "Live activation bytes over a training step, for three plans"
) as axes:
    for (name, steps), colour in zip(moments.items(), (ORANGE, GREEN, BLUE), strict=True):
        turn = next(
            index for index, moment in enumerate(steps) if moment.step.action == "loss"
        )
        along = [index / turn for index in range(turn)]
        along += [
            1 + (index - turn) / (len(steps) - turn) for index in range(turn, len(steps))
        ]
        axes.plot(
            along, [moment.live_bytes / 1024 for moment in steps], color=colour, label=name
        )
    axes.set(
        xticks=[0, 1, 2],
        xticklabels=["begin", "turn", "end"],
        ylabel="KiB after each step",
        ylim=0,
    )
    axes.grid(alpha=0.35)

# %% [markdown]
# As an `.html` file the plan for 800 KiB is a report to step through, with all its pictures side by side.
# This one asks you first: which step is the peak? Guess from the curve above, then find it with the arrow
# keys.

# %%
show(rg.draw(net.plan, picture("report.html"), question=True))

# %% [markdown]
# ## All budgets at once
#
# `rg.frontier` is the whole trade-off, from the least peak to a plan that computes nothing again. Its *knee*
# is where more memory stops to buy much. Use it if you have no budget in mind.
#
# What is a plan's cost? FLOPs are counted exactly, and only heavy operators have any: by them a BatchNorm
# that runs again is free. It is not, for it reads and writes every element. So plans are compared by
# estimated time, unless you ask for FLOPs, as here.

# %%
frontier = rg.frontier(net.graph, cost="flops")
knee = rg.knee(frontier)
print(
    f"{len(frontier)} plans, the knee at",
    knee.peak_bytes,
    f"bytes, FLOPs x{knee.flops_ratio:.3f}",
)
for before, after in pairwise(frontier):
    assert before.peak_bytes < after.peak_bytes and before.flops_ratio > after.flops_ratio
assert frontier[-1].flops_ratio == 1

# %% tags=["drawing"]
beside = {"the plan above": net.plan, "autograd": stored}
show(rg.draw(frontier, picture("frontier.svg"), budget="800 KiB", beside=beside))

# %% [markdown]
# The right end of the frontier is well below ordinary autograd at the same FLOPs: results of convolutions
# stay, and normalizations and ReLUs run again. How much time is that?

# %%
free = frontier[-1]
print(f"FLOPs x{free.flops_ratio:.3f}, estimated time x{free.time_ratio:.3f}")
fastest = rg.frontier(net.graph)[-1]
print(
    "by time the right end is ordinary autograd:", fastest.peak_bytes == stored.peak_bytes
)
assert free.time_ratio > 1 and fastest.time_ratio == 1

# %% [markdown]
# By time, nothing is free. The estimate is for no device in particular; `rg.profile` measures yours.
#
# ## Prediction and truth
#
# All of this was known before the network ran for the first time. Does it hold?

# %%
measured = rg.measure(net, torch.randn(8, 3, 16, 16))
print("predicted", net.plan.peak_bytes, "measured", measured.peak_bytes)
assert measured.peak_bytes == net.plan.peak_bytes

# %% [markdown]
# !!! info "In the library"
#
#     Bytes and FLOPs of each node come from a run on fake tensors, which have shapes and no numbers
#     (`revgraph/costs/__init__.py`). The search goes over the graph as a line
#     (`revgraph/planning/solver/search.py`), and every plan is checked by the simulator before you get it
#     (`revgraph/planning/simulating.py`).
#
# ## Exercises
#
# **1.** Decide by hand: `rg.decide(net.graph, {...})` takes a decision for any node and inverts what it can
# of the rest. Keep the two nodes of `late1`. Does the peak rise? Why?

# %% tags=["answer"]
nothing = rg.decide(net.graph, {})
hand = rg.decide(net.graph, {"late1.f": "keep", "late1.g": "keep"})
for name, plan in {"all inverted": nothing, "late1 kept": hand}.items():
    print(f"{name}: {plan.peak_bytes:,} at {plan.peak_at}, FLOPs x{plan.flops_ratio:.3f}")
assert nothing.peak_bytes < hand.peak_bytes and nothing.flops_ratio > hand.flops_ratio

# %% [markdown] tags=["answer"]
# It rises, by nearly all that the two keep. The peak of both plans is at the turn, when the head is
# differentiated: what the boundaries hold is still there, and all that is kept comes on top. In exchange,
# fewer FLOPs. The plans of `rg.plan` get far below both, for they recompute the boundaries as well.

# %% [markdown]
# **2.** Which node is it that a budget founders on, and why that one? (`error.node`)

# %% tags=["answer"]
try:
    rg.plan(net.graph, budget="100 KiB")
except rg.BudgetError as error:
    print(error.node, "needs", error.least_bytes, "bytes")
    print(
        net.graph.node[error.node].inputs,
        net.graph.node[error.node].cost.saved_bytes,
        "bytes of internals",
    )

# %% [markdown]
# **3.** *Predict, then run.* Five slots. How many runs too many do 10, 20 and 40 layers take: in proportion
# to the layers, or more? And 40 couplings?

# %% tags=["answer"]
for n in (5, 10, 20, 40):
    runs = least_runs(n, 5)
    print(
        f"{n:2} layers: {runs:3} runs too many, {runs / n:.1f} a layer; {n} if they are couplings"
    )

# %% [markdown] tags=["answer"]
# More: with a fixed number of slots, stretches lie within stretches, and the innermost layers run many times.
# If the slots grow with $\log n$, the runs a layer grow with $\log n$, too. Couplings take one a layer.

# %% [markdown]
# **4.** Have the programme say what to do, not only what it costs: a list such as
# `["run 1-3", "keep 4", "keep 5", "keep 1", "keep 2", "keep 3"]` for five layers and three slots.

# %% tags=["answer"]


def schedule(first, n, m):
    """What to do for n layers from `first` on, in the order in which it is done."""
    if n == 1:
        return [f"keep {first}"]
    if least_runs(n, m) == least_runs(n - 1, m - 1):
        return [f"keep {first}", *schedule(first + 1, n - 1, m - 1)]
    cost = {k: k + least_runs(n - k, m - 1) + least_runs(k, m) for k in range(1, n)}
    k = min(cost, key=cost.get)
    return [
        f"run {first}-{first + k - 1}",
        *schedule(first + k, n - k, m - 1),
        *schedule(first, k, m),
    ]


for m in (3, 2):
    print(f"{m} slots:", schedule(1, 5, m))
assert sum(step.startswith("keep") for step in schedule(1, 5, 2)) == 5

# %% [markdown] tags=["answer"]
# Each layer is kept once, just before it is differentiated; every other run is one too many.

# %% [markdown]
# **5.** The plan for 800 KiB is the fastest by estimated time. Ask for the fewest FLOPs instead. Which nodes
# are decided otherwise, and what does it cost?

# %% tags=["answer"]
thrifty = rg.plan(net.graph, budget="800 KiB", cost="flops")
for name, word in thrifty.decisions.items():
    if word != net.plan.decisions[name]:
        print(f"{name:9} {net.plan.decisions[name]} -> {word}")
for name, plan in {"by time": net.plan, "by FLOPs": thrifty}.items():
    print(f"{name:8} FLOPs x{plan.flops_ratio:.3f}, estimated time x{plan.time_ratio:.3f}")
assert (
    thrifty.flops_ratio <= net.plan.flops_ratio
    and thrifty.time_ratio >= net.plan.time_ratio
)

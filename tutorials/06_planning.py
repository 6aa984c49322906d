# %% [markdown]
# # 6. What to store, what to undo, what to compute again
#
# After this page you can fit a network into a given memory, say what that costs, and read why a plan does
# what it does.
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
from itertools import pairwise

import torch

import revgraph as rg
from pictures import BLUE, GREEN, ORANGE, chart, picture

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
rg.draw(net.plan, picture("plan.svg"))

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
rg.draw(net.plan, picture("report.html"), question=True)

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
rg.draw(
    frontier,
    picture("frontier.svg"),
    budget="800 KiB",
    beside={"the plan above": net.plan, "autograd": stored},
)

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

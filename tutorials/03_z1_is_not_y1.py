# %% [markdown]
# # 3. z1 is not y1
#
# After this page you can derive the backward pass of a reversible block, line by line, and explain to
# somebody why $\bar{z}_1$ and $\bar{y}_1$ differ although $z_1$ and $y_1$ are the same numbers.
#
# This is Algorithm 1 of Gomez, Ren, Urtasun and Grosse, *The Reversible Residual Network* (NIPS 2017). Each
# equation is followed by a cell that checks it against PyTorch.
#
# ## A block with three equations
#
# $$z_1 = x_1 + F(x_2) \qquad\qquad y_2 = x_2 + G(z_1) \qquad\qquad y_1 = z_1$$
#
# The third seems to say nothing. As numbers, $y_1$ is $z_1$. As *nodes of the graph* they are two: $z_1$
# has two children, $y_2$ and $y_1$. And $y_1$ is where the block ends; its children are in the rest of the
# network.

# %%
import torch
from torch import nn

import revgraph as rg
from pictures import BLUE, INK, ORANGE, chart

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def function():
    layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    for weight in layers.parameters():
        nn.init.normal_(weight)
    return layers


F, G = function(), function()
x1, x2 = torch.randn(2, 4, 3)


def rest(y1, y2):
    """Some cost of the block's outputs, in place of the rest of the network."""
    return (y1.sin() * y2 + y1**2).sum()


# What autograd says, with every node kept: these are the numbers to reach.
truth = {"x1": x1.clone().requires_grad_(), "x2": x2.clone().requires_grad_()}
truth["z1"] = truth["x1"] + F(truth["x2"])
truth["y2"] = truth["x2"] + G(truth["z1"])
truth["y1"] = truth["z1"].clone()  # a node of its own
for value in truth.values():
    value.retain_grad()
rest(truth["y1"], truth["y2"]).backward()
bar = {name: value.grad for name, value in truth.items()}
bar_wF, bar_wG = [w.grad for w in F.parameters()], [w.grad for w in G.parameters()]

print("z1 and y1 are equal:", torch.equal(truth["z1"], truth["y1"]))
print("bar z1:", bar["z1"][0].numpy().round(3))
print("bar y1:", bar["y1"][0].numpy().round(3))
assert torch.equal(truth["z1"], truth["y1"]) and not torch.allclose(bar["z1"], bar["y1"])

# %% tags=["drawing"]
names = ["x1", "x2", "z1", "y1", "y2", "cost"]
places = dict(zip(names, [(0, 1), (0, 0), (2, 1), (4, 1), (4, 0), (6, 0.5)], strict=True))
ways = {
    INK: ["x1 z1", "x2 z1", "x2 y2"],
    BLUE: ["z1 y1", "y1 cost"],
    ORANGE: ["z1 y2", "y2 cost"],
}
title = "The block as a graph; two ways lead from z1 to the cost, one from y1"
with chart("block.svg", title, height=3) as axes:
    for colour, edges in ways.items():
        look = {"arrowstyle": "-|>", "color": colour, "lw": 2, "shrinkA": 17, "shrinkB": 17}
        for start, end in map(str.split, edges):
            axes.annotate("", places[end], places[start], arrowprops=look)
    for name, place in {**places, "F": (0.9, 0.6), "G": (3.1, 0.6)}.items():
        axes.text(*place, name, ha="center", va="center", fontsize=13)
    axes.set(xlim=(-0.3, 6.4), ylim=(-0.2, 1.2))
    axes.axis("off")

# %% [markdown]
# Two ways lead from $z_1$ to the cost: the blue one through $y_1$, and the orange one through $G$ and
# $y_2$. A bar adds up all ways. From $y_1$ only the blue one goes on. So $\bar{z}_1$ has a part that
# $\bar{y}_1$ does not have.
#
# ## What the block is given
#
# When the backward pass comes to the block, the rest of the network has left it two values, $y_1$ and
# $y_2$, and their bars, $\bar{y}_1$ and $\bar{y}_2$. Nothing else was stored. It has to hand on the same
# for its inputs, and find the gradients of its weights.

# %%
y1, y2 = truth["y1"].detach(), truth["y2"].detach()
bar_y1, bar_y2 = bar["y1"], bar["y2"]


def same(one, two):
    return torch.allclose(one, two, rtol=1e-12, atol=1e-12)


# %% [markdown]
# ## Lines 1 to 3: the values come back
#
# $$1.\quad z_1 = y_1 \qquad 2.\quad x_2 = y_2 - G(z_1)
# \qquad 3.\quad x_1 = z_1 - F(x_2)$$
#
# This is the inverse of tutorial 2. But here $F$ and $G$ are evaluated *with* gradients, so that PyTorch
# saves what their backward needs. This evaluation will serve twice.

# %%
z1 = y1.clone().requires_grad_()
G_z1 = G(z1)
x2_again = (y2 - G_z1).detach().requires_grad_()
F_x2 = F(x2_again)
x1_again = (z1 - F_x2).detach()
assert same(z1, truth["z1"]) and same(x2_again, x2) and same(x1_again, x1)

# %% [markdown]
# ## Line 4: the bar of z1
#
# The children of $z_1$ are $y_1$ and $y_2$. By the rule of tutorial 1:
#
# $$\bar{z}_1 = (\partial y_1 / \partial z_1)^{\top}\, \bar{y}_1
# + (\partial y_2 / \partial z_1)^{\top}\, \bar{y}_2$$
#
# $y_1 = z_1$, so its derivative is the identity. In $y_2 = x_2 + G(z_1)$, only $G$ depends on $z_1$:
#
# $$4.\quad \bar{z}_1 = \bar{y}_1 + (\partial G / \partial z_1)^{\top}\, \bar{y}_2$$

# %%
through_G, *wG = torch.autograd.grad(G_z1, [z1, *G.parameters()], bar_y2)
bar_z1 = bar_y1 + through_G
assert same(bar_z1, bar["z1"])
print("blue way   ", bar_y1[0].numpy().round(3))
print("orange way ", through_G[0].numpy().round(3))
print("bar z1     ", bar_z1[0].numpy().round(3))

# %% [markdown]
# ## Lines 5 and 6: the bars of the inputs
#
# The children of $x_2$ are $y_2$, directly, and $z_1$, through $F$. The only child of $x_1$ is $z_1$.
#
# $$5.\quad \bar{x}_2 = \bar{y}_2 + (\partial F / \partial x_2)^{\top}\, \bar{z}_1
# \qquad\qquad 6.\quad \bar{x}_1 = \bar{z}_1$$
#
# Here it is $\bar{z}_1$ that goes through $F$, the whole of it. Line 4 had to come first.

# %%
through_F, *wF = torch.autograd.grad(F_x2, [x2_again, *F.parameters()], bar_z1)
bar_x2 = bar_y2 + through_F
bar_x1 = bar_z1
assert same(bar_x2, bar["x2"]) and same(bar_x1, bar["x1"])

# %% [markdown]
# ## Lines 7 and 8: the weights
#
# $$7.\quad \bar{w}_F = (\partial F / \partial w_F)^{\top}\, \bar{z}_1
# \qquad\qquad 8.\quad \bar{w}_G = (\partial G / \partial w_G)^{\top}\, \bar{y}_2$$
#
# The two calls of `grad` above found them along the way.

# %%
assert all(same(one, two) for one, two in zip(wF, bar_wF, strict=True))
assert all(same(one, two) for one, two in zip(wG, bar_wG, strict=True))

# %% [markdown]
# ## What if we take y1 for z1?
#
# It is the classical mistake, and no shape gives it away. Suppose that line 5 sends $\bar{y}_1$ through
# $F$:

# %%
(wrong,) = torch.autograd.grad(F(x2_again), x2_again, bar_y1)
wrong_x2 = bar_y2 + wrong
cosine = torch.cosine_similarity(wrong_x2.flatten(), bar["x2"].flatten(), dim=0)
print(f"bar x2 is off by {torch.rad2deg(cosine.acos()):.0f} degrees")
assert not same(wrong_x2, bar["x2"])

# %% [markdown]
# ## The same from the library
#
# `rg.reference.algorithm1` is the eight lines above as a function. The engine gets there on another way: it
# knows only half-steps. To undo $y_2 = x_2 + G(z_1)$ is one, $z_1 = x_1 + F(x_2)$ another, and between the
# two PyTorch adds up the bar of $z_1$ as it would for any value that is read twice.

# %%
result = rg.reference.algorithm1(F, G, y1, y2, bar_y1, bar_y2)
assert same(result.dx1, bar["x1"]) and same(result.dx2, bar["x2"])
assert all(
    same(one, two)
    for one, two in zip((*result.dwF, *result.dwG), bar_wF + bar_wG, strict=True)
)

net = rg.trace(rg.Additive(F, G), x1, x2)
net.plan = rg.decide(net.graph, dict.fromkeys(net.plan.decisions, "invert"))
one, two = x1.clone().requires_grad_(), x2.clone().requires_grad_()
for weight in net.parameters():
    weight.grad = None
rest(*net(one, two)).backward()
assert same(one.grad, bar["x1"]) and same(two.grad, bar["x2"])
assert all(
    same(w.grad, g)
    for w, g in zip((*F.parameters(), *G.parameters()), bar_wF + bar_wG, strict=True)
)
print("evaluations in a step:", dict(rg.measure(net, one, two).calls))

# %% [markdown]
# Each function runs twice in a step: once forward, once backward. The second run gave both the values
# (lines 2 and 3) and the gradients (lines 4, 5, 7 and 8).
#
# !!! info "In the library"
#
#     `revgraph/reference.py` has Algorithm 1 in these letters; tests hold the engine to it. In the engine,
#     lines 1 to 3 are `revgraph/engine/replay.py`, and lines 4 to 8 are PyTorch's own autograd.
#
# ## Exercises
#
# **1.** Let the cost depend on $y_2$ alone. What is $\bar{y}_1$ now, and what is $\bar{z}_1$? Predict it,
# then compute.

# %% tags=["answer"]
z1 = truth["z1"].detach().requires_grad_()
last = x2 + G(z1)
y1_node = z1.clone()
bars = torch.autograd.grad((last**2).sum() + 0 * y1_node.sum(), [y1_node, z1])
print(
    "bar y1 is",
    bars[0].abs().max().item(),
    "and bar z1 is up to",
    f"{bars[1].abs().max().item():.3f}",
)
assert not bars[0].any() and bars[1].any()

# %% [markdown] tags=["answer"]
# $\bar{y}_1 = 0$: the blue way is closed. $\bar{z}_1 = (\partial G / \partial z_1)^\top \bar{y}_2$ remains.
# Who mixes up the two would here train $F$ not at all.

# %% [markdown]
# **2.** Derive lines 4 to 6 for a block that subtracts: $z_1 = x_1 - F(x_2)$, $y_2 = x_2 - G(z_1)$. Check
# them.

# %% tags=["answer"]
a, b = x1.clone().requires_grad_(), x2.clone().requires_grad_()
z = a - F(b)
out = b - G(z)
rest(z, out).backward()
end1, end2 = z.detach().requires_grad_(), out.detach().requires_grad_()
bar1, bar2 = torch.autograd.grad(rest(end1, end2), [end1, end2])
bar_z = bar1 - torch.autograd.grad(G(end1), end1, bar2)[0]
leaf = x2.clone().requires_grad_()
bar_b = bar2 - torch.autograd.grad(F(leaf), leaf, bar_z)[0]
assert same(a.grad, bar_z) and same(b.grad, bar_b)
print("minus signs before both products, and line 6 as it was")

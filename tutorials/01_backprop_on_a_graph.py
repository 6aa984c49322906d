# %% [markdown]
# # 1. Backprop on a graph
#
# After this page you can write reverse-mode differentiation yourself, for any graph of operations, in some
# 40 lines. You will also see why training takes so much memory. That is what all the other pages are about.
#
# ## The rule
#
# A computation is a graph without cycles. Its nodes are values $v_1, \dots, v_K$, in an order in which every
# value comes after those that it is computed from, by $v_j = f_j(\dots)$. The last one, $v_K$, is the cost
# $C$. Write $\bar{v}$ for the *total* derivative of the cost by $v$, in all ways in which $v$ acts on it:
#
# $$\bar{v} = \frac{\mathrm{d} C}{\mathrm{d} v}$$
#
# A small change of $v_i$ changes the cost through all its *children*, the values that are computed from it
# directly. The chain rule adds up what comes through each:
#
# $$\bar{v}_i = \sum_{j \,\in\, \mathrm{children}(i)}
# (\partial f_j / \partial v_i)^{\top}\, \bar{v}_j$$
#
# The two signs of a derivative are no matter of taste. The round $\partial f_j / \partial v_i$ belongs to one
# function alone: its other arguments are held fixed, even those that depend on $v_i$ themselves. It is a
# matrix, the *Jacobian* of that function. The upright $\mathrm{d} C / \mathrm{d} v$ holds nothing fixed. All
# these pages keep to that, as the paper does: a bar is always a total derivative.
#
# That is all of backprop: begin with $\bar{v}_K = 1$, and go through the nodes in reverse. Nobody ever
# builds a Jacobian. Each operation only needs to know how to multiply a vector by its transpose.
#
# ## By hand
#
# With numbers in place of vectors, a Jacobian is one number and its transpose is the same. Take $x = 2$ and
#
# $$a = 3 x \qquad\qquad C = a x$$
#
# so that $a = 6$ and $C = 12$. The nodes in order are $x$, $a$, $C$, and in reverse:
#
# | node | children | bar |
# |---|---|---|
# | $C$ | none | $\bar{C} = 1$ |
# | $a$ | $C = a x$ | $\bar{a} = x \cdot \bar{C} = 2$ |
# | $x$ | $C = a x$ and $a = 3 x$ | $\bar{x} = a \cdot \bar{C} + 3 \cdot \bar{a} = 6 + 6 = 12$ |
#
# Two ways lead from $x$ to the cost, and each gives 6. The first alone is $\partial C / \partial x = a = 6$,
# the product with $a$ held fixed. The sum is $\mathrm{d} C / \mathrm{d} x = 12$. Is it right? $C = 3 x^2$,
# whose derivative at 2 is $6 x = 12$.
#
# Note the order: $\bar{x}$ needed $\bar{a}$, so $a$ had to come first. A node's bar is finished when all its
# children have had their turn.
#
# ## An autograd of our own
#
# A node has a value, its parents, and a function `pull` from its own bar to what it adds to those of its
# parents. Each operation stands beside its rule.

# %%
from __future__ import annotations

import networkx as nx
import numpy as np
import torch

from pictures import BLUE, ORANGE, chart


class Node:
    def __init__(self, value, parents=(), pull=lambda bar: (), name=""):
        self.value = np.asarray(value, dtype=float)
        self.bar = np.zeros_like(self.value)
        self.parents, self.pull, self.name = parents, pull, name

    def __add__(self, other):
        return Node(self.value + other.value, (self, other), lambda bar: (bar, bar), "+")

    def __mul__(self, other):
        x, y = self.value, other.value
        return Node(x * y, (self, other), lambda bar: (bar * y, bar * x), "*")

    def __matmul__(self, other):
        x, y = self.value, other.value
        return Node(x @ y, (self, other), lambda bar: (bar @ y.T, x.T @ bar), "@")


def tanh(node):
    y = np.tanh(node.value)
    return Node(y, (node,), lambda bar: (bar * (1 - y**2),), "tanh")


def total(node):
    return Node(
        node.value.sum(), (node,), lambda bar: (np.full_like(node.value, bar),), "sum"
    )


def in_order(cost):
    """All nodes that the cost depends on, every one after its parents."""
    found, seen = [], set()

    def visit(node):
        if id(node) not in seen:
            seen.add(id(node))
            for parent in node.parents:
                visit(parent)
            found.append(node)

    visit(cost)
    return found


def backward(cost):
    cost.bar = np.ones_like(cost.value)
    for node in reversed(in_order(cost)):
        for parent, part in zip(node.parents, node.pull(node.bar), strict=True):
            parent.bar = parent.bar + part


# %% [markdown]
# First the example by hand:

# %%
x, three = Node(2), Node(3)
a = three * x
cost = a * x
backward(cost)
print(f"C = {cost.value}, bar a = {a.bar}, bar x = {x.bar}")
assert (cost.value, a.bar, x.bar) == (12, 2, 12)

# %% [markdown]
# ## Does it agree with PyTorch?
#
# Here is a small residual network: $y = x + \tanh(x W_1) W_2$, and the cost $\sum y \cdot y$. Note that $x$
# has two children, and so has $y$.

# %%
rng = np.random.default_rng(0)
arrays = {
    "x": rng.normal(size=(4, 3)),
    "W1": rng.normal(size=(3, 5)),
    "W2": rng.normal(size=(5, 3)),
}


def network(x, w1, w2, tanh, total):
    y = x + tanh(x @ w1) @ w2
    return total(y * y)


ours = [Node(array, name=name) for name, array in arrays.items()]
cost = network(*ours, tanh, total)
backward(cost)

theirs = [torch.tensor(array, requires_grad=True) for array in arrays.values()]
network(*theirs, torch.tanh, torch.sum).backward()

for our, their in zip(ours, theirs, strict=True):
    error = np.abs(our.bar - their.grad.numpy()).max()
    print(f"bar {our.name:2}  largest error {error:.0e}")
    assert error < 1e-12

# %% [markdown]
# The graph that was just walked through. Values run along the arrows, bars run against them.

# %% tags=["drawing"]
nodes = in_order(cost)
graph = nx.DiGraph((id(parent), id(node)) for node in nodes for parent in node.parents)
labels = {id(node): node.name for node in nodes}
for depth, generation in enumerate(nx.topological_generations(graph)):
    for name in generation:
        graph.nodes[name]["layer"] = depth
given = {id(node) for node in ours}

with chart(
    "graph.svg",
    "The graph of the residual network: x goes to a product and to the sum",
    height=2.6,
) as axes:
    places = nx.multipartite_layout(graph, subset_key="layer")
    colours = [BLUE if name in given else ORANGE for name in graph]
    nx.draw_networkx_nodes(graph, places, node_color=colours, node_size=900, ax=axes)
    nx.draw_networkx_edges(
        graph, places, edge_color="#808080", node_size=900, arrowsize=14, ax=axes
    )
    nx.draw_networkx_labels(
        graph, places, labels, font_color="black", font_size=11, ax=axes
    )
    axes.axis("off")

# %% [markdown]
# ## What it costs to remember
#
# Look at `pull` of the product: it uses `x` and `y`. Between the forward and the backward pass they must be
# there. `tanh` needs its result. Only the sum needs nothing. So count the bytes that the rules of a deep
# network hold on to:

# %%


def held_bytes(cost, given):
    """The bytes of the arrays that the rules refer to, without those that the caller holds anyway."""
    arrays = {}
    for node in in_order(cost):
        for cell in node.pull.__closure__ or ():
            array = getattr(cell.cell_contents, "value", cell.cell_contents)
            arrays[id(array)] = array.nbytes
    for node in given:
        arrays.pop(id(node.value), None)
    return sum(arrays.values())


def deep(blocks):
    """A chain of residual blocks, and the leaves that it is made from."""
    x = Node(rng.normal(size=(16, 8)))
    weights = [Node(rng.normal(size=(8, 8)) / 8) for _ in range(2 * blocks)]
    y = x
    for w1, w2 in zip(weights[::2], weights[1::2], strict=True):
        y = y + tanh(y @ w1) @ w2
    return total(y * y), [x, *weights]


depths = [1, 2, 4, 8, 16, 32]
held = [held_bytes(*deep(blocks)) for blocks in depths]
for blocks, size in zip(depths, held, strict=True):
    print(f"{blocks:3} blocks: {size:6,} bytes held")
growth = {
    (later - now) / (more - few)
    for now, later, few, more in zip(held, held[1:], depths, depths[1:], strict=False)
}
assert len(growth) == 1  # the same number of bytes for every block more

# %% tags=["drawing"]
with chart(
    "held.svg", "Bytes held between forward and backward, by depth: a straight line"
) as axes:
    axes.plot(depths, held, "o-", color=BLUE)
    axes.set(xlabel="residual blocks", ylabel="bytes held", ylim=0)
    axes.grid(alpha=0.35)

# %% [markdown]
# A straight line: every block holds its activations until its turn comes in the backward pass, and the
# first block waits longest. The next page has a block that can do without.
#
# !!! info "In the library"
#
#     PyTorch's rules hold tensors in the same way; it calls them *saved tensors*. revgraph leaves all rules
#     to PyTorch. It only stands between a rule and what it saves, with
#     `torch.autograd.graph.saved_tensors_hooks` (`revgraph/engine/saved_tensors.py`): what a reversible block
#     saves is dropped, and comes back when the rule asks.
#
# ## Exercises
#
# **1.** In `backward`, replace `parent.bar + part` by `part`. Which of the three gradients above are wrong
# now, and by how much?

# %% tags=["answer"]
for node in in_order(cost):
    node.bar = np.zeros_like(node.value)
cost.bar = np.ones_like(cost.value)
for node in reversed(in_order(cost)):
    for parent, part in zip(node.parents, node.pull(node.bar), strict=True):
        parent.bar = part
for our, their in zip(ours, theirs, strict=True):
    print(
        f"bar {our.name}: our sum over PyTorch's is {our.bar.sum() / their.grad.numpy().sum():.3f}"
    )

# %% [markdown] tags=["answer"]
# All of them. `y * y` reads $y$ twice, so that one half of $\bar{y}$ is lost, and everything that lies
# before $y$ gets half its gradient. $\bar{x}$ is wrong once more: one of the two ways from $x$ to $y$ is
# lost, too.

# %% [markdown]
# **2.** *By hand:* $x = 3$, $b = x^2$ and $C = b x + b$. Write down $b$, $C$, $\bar{b}$ and $\bar{x}$, then
# check them, with `b = x * x`.

# %% tags=["answer"]
x = Node(3)
b = x * x
cost = b * x + b
backward(cost)
print(f"b = {b.value}, C = {cost.value}, bar b = {b.bar}, bar x = {x.bar}")
assert (b.value, cost.value, b.bar, x.bar) == (9, 36, 4, 33)

# %% [markdown] tags=["answer"]
# $\bar{b}$ has a part from each term: $x + 1 = 4$. $\bar{x}$ has $b = 9$ from the product $b x$, and $2 x
# \cdot \bar{b} = 24$ through $b$. As a check, $C = x^3 + x^2$ has the derivative $3 x^2 + 2 x = 33$.

# %% [markdown]
# **3.** Write `exp` with its rule. Which array does the rule hold: what goes in, or what comes out?

# %% tags=["answer"]


def exp(node):
    y = np.exp(node.value)
    return Node(y, (node,), lambda bar: (bar * y,), "exp")


x = Node(np.array([0.0, 1.0]))
backward(total(exp(x)))
assert np.allclose(x.bar, np.exp(x.value))
print("bar x =", x.bar, "which is exp(x): the rule holds what comes out")

# %% [markdown]
# **4.** *Predict, then run.* After `backward(cost)`, somebody calls `backward(cost)` once more. The example
# by hand had $\bar{a} = 2$ and $\bar{x} = 12$. What will they be?

# %% tags=["answer"]
x, three = Node(2), Node(3)
a = three * x
cost = a * x
for _ in range(2):
    backward(cost)
    print(f"bar a = {a.bar}, bar x = {x.bar}")
assert (a.bar, x.bar) == (4, 30)

# %% [markdown] tags=["answer"]
# Not 24. `backward` adds to what is there, and $a$, which has 2 from the first time, hands on $4 \cdot 3$ the
# second time: $12 + 6 + 12 = 30$. PyTorch adds up in the leaves only, and begins with fresh bars in
# between: there it would be 24. That is why one calls `zero_grad`.

# %% [markdown]
# **5.** A chain of 32 blocks held bytes in a straight line. Which arrays of a block are they? Replace `tanh`
# by a function whose rule needs its input, not its result, and say first what changes.

# %% tags=["answer"]


def soft(node):
    """The softplus log(1 + exp(x)), whose derivative is 1 / (1 + exp(-x))."""
    x = node.value
    return Node(np.log1p(np.exp(x)), (node,), lambda bar: (bar / (1 + np.exp(-x)),), "soft")


def block_bytes(function):
    """What one block more holds."""
    sizes = []
    for blocks in (1, 2):
        x, leaves = Node(rng.normal(size=(16, 8))), []
        y = x
        for _ in range(blocks):
            w1, w2 = (Node(rng.normal(size=(8, 8)) / 8) for _ in range(2))
            leaves += [w1, w2]
            y = y + function(y @ w1) @ w2
        sizes.append(held_bytes(total(y * y), [x, *leaves]))
    return sizes[1] - sizes[0]


array = 16 * 8 * 8
for function in (tanh, soft):
    print(f"{function.__name__}: {block_bytes(function) // array} arrays a block")
assert [block_bytes(each) // array for each in (tanh, soft)] == [2, 3]

# %% [markdown] tags=["answer"]
# The block's input, which the first product holds, and the result of `tanh`, which serves both the rule of
# `tanh` and the second product. A function that needs its input holds that as well: three arrays in place of
# two. (The slope could be held instead of the input; that is one array, too.)

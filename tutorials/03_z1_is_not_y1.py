# %% [markdown]
# # 3. z1 is not y1
#
# After this page you can derive the backward pass of a reversible block, line by line, and explain to
# somebody why $\bar{z}_1$ and $\bar{y}_1$ differ although $z_1$ and $y_1$ are the same numbers.
#
# This is Algorithm 1 of Gomez, Ren, Urtasun and Grosse, *The Reversible Residual Network* (NIPS 2017). Each
# equation is followed by a cell that checks it against PyTorch. Its lines are numbered from the first
# assignment on; the listing in the paper counts the function's header as well, so that its numbers are higher
# by one.
#
# As on the first page, a bar is a total derivative, $\bar{v} = \mathrm{d} C / \mathrm{d} v$, and
# $\partial$ belongs to the Jacobian of one function. Here this is the whole point.
#
# ## A block with three equations
#
# $$z_1 = x_1 + F(x_2) \qquad\qquad y_2 = x_2 + G(z_1) \qquad\qquad y_1 = z_1$$
#
# The third seems to say nothing. As numbers, $y_1$ is $z_1$. As *nodes of the graph* they are two: $z_1$
# has two children, $y_2$ and $y_1$. And $y_1$ is where the block ends; its children are in the rest of the
# network.

# %%
import re
from functools import partial

import networkx as nx
import torch
from torch import nn

import revgraph as rg
from pictures import BLUE, INK, ORANGE, chart, picture, show

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
# $y_1 = z_1$, so its Jacobian is the identity. In $y_2 = x_2 + G(z_1)$, only $G$ depends on $z_1$:
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
# ## Line by line
#
# Now in one go, and with an eye on memory: the equation, the code that carries it out, and beside them the
# *tape*, all activations and their bars that are in memory then. Lines 4 and 8 are one call, and so are 5
# and 7. Click on *next*, or use the arrow keys. Before each step, guess: what will come, and what can go?

# %% tags=["drawing"]
STEPS = [  # lines, equations and code
    ("line 1", "z₁ = y₁", "z1 = y1.detach().requires_grad_()"),
    (
        "line 2",
        "x₂ = y₂ - G(z₁)",
        "G_z1 = G(z1)\nx2 = (y2 - G_z1).detach().requires_grad_()",
    ),
    ("line 3", "x₁ = z₁ - F(x₂)", "F_x2 = F(x2)\nx1 = (z1 - F_x2).detach()"),
    (
        "lines 4, 8",
        "z̄₁ = ȳ₁ + (∂G/∂z₁)ᵀ ȳ₂\nw̄<sub>G</sub> = (∂G/∂w<sub>G</sub>)ᵀ ȳ₂",
        "via_G, *bar_wG = grad(G_z1, [z1, *wG], bar_y2)\nbar_z1 = bar_y1 + via_G",
    ),
    (
        "lines 5, 7",
        "x̄₂ = ȳ₂ + (∂F/∂x₂)ᵀ z̄₁\nw̄<sub>F</sub> = (∂F/∂w<sub>F</sub>)ᵀ z̄₁",
        "via_F, *bar_wF = grad(F_x2, [x2, *wF], bar_z1)\nbar_x2 = bar_y2 + via_F",
    ),
    ("line 6", "x̄₁ = z̄₁", "bar_x1 = bar_z1"),
]
COMPUTED_WITH = {"internals of F": "F_x2", "internals of G": "G_z1"}
RESULTS = {"x1", "x2", "bar_x1", "bar_x2", "bar_wF", "bar_wG"}
tools = {"F": F, "G": G, "wF": [*F.parameters()], "wG": [*G.parameters()]}
weights = {weight.data_ptr() for weight in tools["wF"] + tools["wG"]}
tools["grad"] = torch.autograd.grad


def bytes_of(tape):
    """The bytes by name; what several names have counts for the first, gradients of weights for none."""
    sizes, seen = {}, set(weights)
    for name, value in tape.items():
        tensors = [] if "bar_w" in name else value if isinstance(value, list) else [value]
        new = {
            each.data_ptr(): each.nbytes for each in tensors if each.data_ptr() not in seen
        }
        seen |= new.keys()
        sizes[name] = sum(new.values())
    return sizes


def keep(saved, tensor):
    saved.append(tensor)
    return tensor


def carry_out(steps):
    """Run the code of the steps; what is there at the end, and the bytes before the first and after each."""
    there = {"y1": y1, "y2": y2, "bar_y1": bar_y1, "bar_y2": bar_y2}
    tapes = [bytes_of(there)]
    for number, (_, _, code) in enumerate(steps, start=1):
        saved = []  # by PyTorch, to differentiate F or G
        with torch.autograd.graph.saved_tensors_hooks(partial(keep, saved), lambda t: t):
            exec(code, tools, there)
        if saved:
            there[f"internals of {code[0]}"] = saved
        # Nobody will ask again for what no later code reads. Internals go with what was computed with them.
        read = RESULTS.union(*(re.findall(r"\w+", code) for _, _, code in steps[number:]))
        for name in there.keys() - read:
            if COMPUTED_WITH.get(name) not in read:
                del there[name]
        tapes.append(bytes_of(there))
    return there, tapes


found, tapes = carry_out(STEPS)
assert same(found["bar_x1"], bar["x1"]) and same(found["bar_x2"], bar["x2"])
for one, two in zip(found["bar_wF"] + found["bar_wG"], bar_wF + bar_wG, strict=True):
    assert same(one, two)

SIGNS = {
    "G_z1": "G(z₁)",
    "F_x2": "F(x₂)",
    "bar_wF": "w̄<sub>F</sub>",
    "bar_wG": "w̄<sub>G</sub>",
}
SIGNS |= {f"{v}{i}": f"{v}{'₁₂'[i - 1]}" for v in "xyz" for i in (1, 2)}
SIGNS |= {f"bar_{v}{i}": f"{v}\u0304{'₁₂'[i - 1]}" for v in "xyz" for i in (1, 2)}
rows, before = [], {}
for (lines, equations, code), sizes in zip([("", "given", ""), *STEPS], tapes, strict=True):
    chips = []
    for name, size in sizes.items():
        told, new = f"{size:,} B" if size else "", "" if name in before else "new"
        chips.append(f'<b class="{new}">{SIGNS.get(name, name)} <i>{told}</i></b>')
    chips += [f"<s>{SIGNS.get(name, name)}</s>" for name in before if name not in sizes]
    rows.append(
        f"<section><div><small>{lines}</small><p>{equations}</p></div><pre>{code}</pre>"
        f"<div><small>{sum(sizes.values()):,} B on the tape</small>{' '.join(chips)}</div></section>"
    )
    before = sizes

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="revgraph">
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<title>Algorithm 1, line by line: equation, code and tape</title>
<style>
:root { color-scheme: light dark; --ink: #1d242b; --ground: #fff; --soft: #eef3f8; --edge: #c4ced8;
  --muted: #56616c; --accent: #0b5ba1; font: 15px/1.4 Helvetica, Arial, sans-serif; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --ground: #11161c; --soft: #1b2530;
  --edge: #3a4754; --muted: #a3afba; --accent: #75bbff; } }
body { margin: 0; color: var(--ink); background: var(--ground); }
nav { position: sticky; top: 0; display: flex; gap: .5rem; align-items: center; padding: .5rem;
  background: var(--ground); border-bottom: 1px solid var(--edge); }
button { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--edge);
  border-radius: 6px; }
#step { flex: 1; min-width: 0; accent-color: var(--accent); }
section { display: grid; grid-template-columns: 11rem minmax(0, 1fr) 12rem; gap: .5rem;
  padding: .4rem .6rem;  border-left: 4px solid transparent; border-bottom: 1px solid var(--edge); }
section.now { border-left-color: var(--accent); background: var(--soft); }
section.later > :nth-child(n+2) { visibility: hidden; }
p { margin: 0; white-space: pre-line; font: .93rem/1.4 "STIX Two Text", "DejaVu Serif", serif; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .72rem; }
small { display: block; color: var(--muted); }
b, s { display: inline-block; margin: .1rem 0; padding: 0 .4rem; border: 1px solid var(--edge);
  border-radius: 99px; font-weight: normal; font-size: .85rem; }
b.new { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
i { color: var(--muted); font-style: normal; }
s { color: var(--muted); border-style: dashed; }
section:not(.now) s { display: none; }
@media (max-width: 42rem) { section { grid-template-columns: minmax(0, 1fr); gap: .2rem; }
  section.later > :nth-child(n+2) { display: none; } }
</style></head><body>
<nav><button id="back">back</button> <button id="next">next</button>
<input id="step" type="range" min="0" max="LAST" value="0" aria-label="step"></nav>
ROWS
<script>
const step = document.getElementById("step"), rows = [...document.querySelectorAll("section")];
function show(to) {
  step.value = to;
  rows.forEach((row, at) => {
    row.className = at == step.value ? "now" : at > step.value ? "later" : "";
    row.setAttribute("aria-current", at == step.value ? "step" : "false");
  });
  if (+to) rows[step.value].scrollIntoView({block: "nearest"});
}
step.addEventListener("input", () => show(step.value));
back.addEventListener("click", () => show(+step.value - 1));
next.addEventListener("click", () => show(+step.value + 1));
addEventListener("keydown", event => {
  const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (by) { event.preventDefault(); show(+step.value + by); }
});
show(0);
</script></body></html>
"""
page = PAGE.replace("ROWS", "\n".join(rows)).replace("LAST", str(len(STEPS)))
picture("algorithm.html").write_text(page, encoding="utf-8")
show(picture("algorithm.html"))

# %% [markdown]
# Most is on the tape after line 3: the internals of both functions are there at once. Could it be less?
# Exercise 3 asks for that.
#
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


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g = F, G

    def forward(self, x1, x2):
        z1 = x1 + self.f(x2)
        y2 = x2 + self.g(z1)
        return z1, y2


net = rg.trace(Block(), x1, x2)
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
# This is the library's own view of the step: the plan as a picture, memory, the order of all steps and
# Algorithm 1, with one cursor through them. Find the peak first.

# %%
show(rg.draw(net.plan, picture("block.html"), question=True))

# %% [markdown]
# !!! info "In the library"
#
#     `revgraph/reference.py` has Algorithm 1 in these letters; tests hold the engine to it. In the engine,
#     lines 1 to 3 are `revgraph/engine/replay.py`, and lines 4 to 8 are PyTorch's own autograd.
#
# ## Exercises
#
# **1.** *Predict, then run.* Let the cost depend on $y_2$ alone. What is $\bar{y}_1$ now, and what is
# $\bar{z}_1$?

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

# %% [markdown]
# **3.** Look at the tape after line 3. In which order of the steps are the internals of $F$ and of $G$ never
# there at once? Try it with `carry_out`, the function behind the stepper.

# %% tags=["answer"]
one, two, three, four, five, six = STEPS
half_steps = [one, two, four, three, five, six]
again, lower = carry_out(half_steps)
assert all(same(again[f"bar_x{i}"], bar[f"x{i}"]) for i in (1, 2))
for order in (STEPS, half_steps):
    most = max(sum(sizes.values()) for sizes in carry_out(order)[1])
    print(f"{', '.join(lines for lines, _, _ in order)}: {most:,} B")
assert max(sum(sizes.values()) for sizes in lower) < max(
    sum(sizes.values()) for sizes in tapes
)

# %% [markdown] tags=["answer"]
# With $z_1$ and its bar from lines 1, 2, 4 and 8, nothing of $G$ is needed any more; then $F$ has its turn.
# Each half of the list is the backward pass of one half-step, and this is the order of the engine.

# %% [markdown]
# **4.** Each line needs others before it: line 4 needs line 1, for example, and line 5 needs 2 and 4. Write
# down which need which. In how many orders can the eight lines be carried out?
# (`networkx.all_topological_sorts` lists the orders of a graph.)

# %% tags=["answer"]
needs = {2: [1], 3: [1, 2], 4: [1], 5: [2, 4], 6: [4], 7: [2, 4], 8: [1]}
lines = nx.DiGraph(
    (before, line) for line, all_before in needs.items() for before in all_before
)
orders = list(nx.all_topological_sorts(lines))
print(len(orders), "orders, all of which begin with line", {order[0] for order in orders})

# %% [markdown]
# **5.** A block that also scales: $z_1 = x_1 + F(x_2)$, $y_2 = x_2 \odot e^{G(z_1)}$, element by element.
# Write down its lines 2, 4 and 5, and check them.

# %% tags=["answer"]
a, b = x1.clone().requires_grad_(), x2.clone().requires_grad_()
z = a + F(b)
out = b * G(z).exp()
rest(z, out).backward()
end1, end2 = z.detach().requires_grad_(), out.detach().requires_grad_()
bar1, bar2 = torch.autograd.grad(rest(end1, end2), [end1, end2])

scale = G(end1)
back = (end2 * (-scale).exp()).detach().requires_grad_()  # line 2
bar_z = bar1 + torch.autograd.grad(scale, end1, bar2 * end2.detach())[0]  # line 4
bar_b = bar2 * scale.detach().exp() + torch.autograd.grad(F(back), back, bar_z)[0]  # line 5
assert same(back, x2) and same(a.grad, bar_z) and same(b.grad, bar_b)
print("the same as PyTorch's")

# %% [markdown] tags=["answer"]
# $x_2 = y_2 \odot e^{-G(z_1)}$. The Jacobian of $y_2$ by $G$ is diagonal, with $x_2 \odot e^{G(z_1)} = y_2$
# on it, and that by $x_2$ has $e^{G(z_1)}$:
#
# $$\bar{z}_1 = \bar{y}_1 + (\partial G / \partial z_1)^{\top} (y_2 \odot \bar{y}_2) \qquad\quad
# \bar{x}_2 = e^{G(z_1)} \odot \bar{y}_2 + (\partial F / \partial x_2)^{\top}\, \bar{z}_1$$

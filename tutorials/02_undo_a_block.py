# %% [markdown]
# # 2. Undo a block
#
# After this page you can tell which layers can be undone, write one around any function you like, and undo
# it.
#
# ## A residual block forgets nothing, but will not say what it was
#
# A residual block computes $y = x + F(x)$. To get $x$ back from $y$ you would have to know $F(x)$, and for
# that $x$. In general there is no way round but to solve an equation.
#
# The trick of NICE (Dinh, Krueger and Bengio 2014), which RevNets took over: have two *streams*, and let
# each be changed by a function of the other alone.
#
# $$z_1 = x_1 + F(x_2) \qquad\qquad y_2 = x_2 + G(z_1) \qquad\qquad y_1 = z_1$$
#
# Whoever has $y_1$ and $y_2$ can undo the second line, for $G$ reads only $y_1$; then $x_2$ is known, and
# with it the first:
#
# $$x_2 = y_2 - G(y_1) \qquad\qquad x_1 = y_1 - F(x_2)$$
#
# $F$ and $G$ themselves are never undone, only computed once more. They may be anything.

# %%
import torch
from torch import nn

import revgraph as rg
from pictures import chart

torch.manual_seed(0)


def couple(f, g, x1, x2):
    y1 = x1 + f(x2)
    y2 = x2 + g(y1)
    return y1, y2


def uncouple(f, g, y1, y2):
    x2 = y2 - g(y1)
    x1 = y1 - f(x2)
    return x1, x2


def forgetful(x):
    """Nobody can undo this: first it forgets signs, then all but the mean."""
    return x.abs().mean(1, keepdim=True).expand_as(x).cos()


x1, x2 = torch.randn(2, 5, 3, dtype=torch.float64)
back1, back2 = uncouple(forgetful, torch.relu, *couple(forgetful, torch.relu, x1, x2))
print(f"largest errors {(back1 - x1).abs().max():.0e} and {(back2 - x2).abs().max():.0e}")
assert torch.allclose(back1, x1, atol=1e-14) and torch.allclose(back2, x2, atol=1e-14)

# %% [markdown]
# The order matters. Each half must be undone with what the other stream was *at that time*, so the last
# goes first.
#
# There is one condition: $F(x_2)$ has to have the shape of $x_1$. A convolution of stride 2 makes an image
# smaller and throws information away, so it cannot stand in a coupling by itself. In a RevNet such layers
# are *boundaries* between stretches of couplings, and their inputs are stored.
#
# ## A deep one, seen
#
# Ten blocks move points of the plane: $x_1$ is across, $x_2$ is up. Their functions are small random
# networks.

# %%


def function():
    layers = (
        nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
        .double()
        .requires_grad_(False)
    )
    layers[2].weight *= 3
    return layers


blocks = [(function(), function()) for _ in range(10)]
turn = torch.linspace(0, 4 * torch.pi, 300, dtype=torch.float64)[:, None]
start = turn.cos() * turn / 8, turn.sin() * turn / 8

state = start
for f, g in blocks:
    state = couple(f, g, *state)
end = state
for f, g in reversed(blocks):
    state = uncouple(f, g, *state)

with chart(
    "spiral.svg",
    "A spiral, what ten blocks make of it, and the spiral that undoing gives back",
    count=3,
) as all_axes:
    names = ("in", "after ten blocks", "undone")
    for axes, points, name in zip(all_axes, (start, end, state), names, strict=True):
        axes.scatter(*points, c=turn[:, 0], cmap="viridis", s=6)
        axes.set(title=name, xticks=[], yticks=[])
error = (torch.stack(state) - torch.stack(start)).abs().max()
print(f"largest error {error:.0e}")
assert error < 1e-12

# %% [markdown]
# The spiral comes back, and not one of the ten states in between was stored. To be exact: it comes back up
# to rounding. $(x + t) - t$ need not be $x$ in floating point. Tutorial 7 is about that.
#
# ## The same with the library
#
# `rg.Additive(f, g)` is this block as a module. In a network that `rg.trace` has looked at, whatever is
# undoable can be undone: `net.inverse`. It finds couplings in plain arithmetic as well.

# %%


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = rg.Additive(*blocks[0])
        self.f, self.g = blocks[1]

    def forward(self, x1, x2):
        x1, x2 = self.first(x1, x2)
        x1 = x1 + self.f(x2)
        return x1, x2 + self.g(x1)


net = rg.trace(Chain(), *start)
print([node.name for node in net.graph.nodes if node.kind == "coupling"])
back = net.inverse(net(*start))
assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(back, start, strict=True))

# %% [markdown]
# Four names for two blocks: the half-step $x_1 + F(x_2)$ is what the library calls a *coupling*. The
# paper's block is two of them, and that is more than a matter of taste, as the next page shows.
#
# !!! info "In the library"
#
#     `revgraph/couplings.py` has `couple` and `uncouple` of each kind beside each other; for `Additive`
#     they are `x + term` and `y - term`. What to compute before what when a whole network is undone is
#     found in the graph (`revgraph/engine/inverse_order.py`).
#
# ## Exercises
#
# **1.** Write a block of three streams, in which each is changed by a function of the two others. Undo it.

# %% tags=["answer"]


def mix(p, q):
    return (p * q).sin()


a, b, c = start_three = torch.randn(3, 4, 2, dtype=torch.float64)
a = a + mix(b, c)
b = b + mix(c, a)
c = c + mix(a, b)

c = c - mix(a, b)  # the last goes first
b = b - mix(c, a)
a = a - mix(b, c)
assert torch.allclose(torch.stack([a, b, c]), start_three, atol=1e-14)
print("undone")

# %% [markdown]
# **2.** By how much does a block change volumes? Compute the determinant of the derivative of $(y_1, y_2)$
# by $(x_1, x_2)$ with `torch.autograd.functional.jacobian`, then explain what you find without a computer.

# %% tags=["answer"]
point = torch.randn(2, dtype=torch.float64)
jacobian = torch.autograd.functional.jacobian(
    lambda p: torch.cat(couple(*blocks[0], p[:1, None], p[1:, None])).flatten(), point
)
print("determinant", round(torch.linalg.det(jacobian).item(), 12))
assert abs(torch.linalg.det(jacobian) - 1) < 1e-12

# %% [markdown] tags=["answer"]
# It is 1, anywhere. The derivative of a half-step is a triangular matrix with ones on its diagonal, and a
# block is the product of two of these. *Affine* couplings $y_1 = x_1 \cdot e^{s(x_2)} + t(x_2)$ do change
# volumes, and normalizing [flows](../flows.md) are built from them.

# %% [markdown]
# **3.** How wrong does it go if you undo in forward order, $x_1$ first? Try it on the spiral's first block.

# %% tags=["answer"]
f, g = blocks[0]
y1, y2 = couple(f, g, *start)
wrong1 = y1 - f(y2)  # f read x2, and this is y2
error = (wrong1 - start[0]).abs().max()
print(f"errors up to {error:.2f}, where x1 goes up to {start[0].max():.2f}")
assert error > 1e-3

# %% [markdown]
# **4.** Leave $G$ out: $y_1 = x_1 + F(x_2)$, $y_2 = x_2$. What will a stack of such blocks never do? Mend it
# without a second function in the block, and undo a stack of three.

# %% tags=["answer"]


def turned(f, x1, x2):
    """One half-step, after which the streams change places."""
    return x2, x1 + f(x2)


def back(f, y1, y2):
    return y2 - f(y1), y1


state = start
for f, _ in blocks[:3]:
    state = turned(f, *state)
for f, _ in reversed(blocks[:3]):
    state = back(f, *state)
assert torch.allclose(torch.stack(state), torch.stack(start), atol=1e-13)
print("undone")

# %% [markdown] tags=["answer"]
# It never changes $x_2$. If the streams change places after each half-step, both have their turn, and two
# such layers are a block of the kind above. NICE is built in this way.

# %% [markdown]
# **5.** *Predict, then run.* $y = x + F(x)$ can be solved for $x$ after all if $F$ is tame. Begin with $x =
# y$, and put $x \leftarrow y - F(x)$ again and again. For $F(x) = \sin(x) / 2$, how many rounds will it take
# at most until the error is below $10^{-12}$?

# %% tags=["answer"]
x = torch.linspace(-3, 3, 101, dtype=torch.float64)
y = x + x.sin() / 2
guess, rounds = y, 0
while (guess - x).abs().max() > 1e-12:
    guess, rounds = y - guess.sin() / 2, rounds + 1
print(rounds, "rounds")
assert rounds <= 39

# %% [markdown] tags=["answer"]
# The slope of $F$ is at most 1/2, so each round at least halves the error, which is 1/2 at the beginning:
# $2^{-40} < 10^{-12}$. So 39 rounds at most. Networks are built on this, too; but each takes a whole loop to
# be undone, where a coupling takes one evaluation, and $F$ has to be kept tame.

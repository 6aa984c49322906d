# %% [markdown]
# # 10. Converting a pretrained network
#
# After this page you can turn a residual network that somebody has trained into a reversible one, finetune
# it without its activations, and say what its two coefficients trade for one another.
#
# ## The trouble
#
# A residual block computes $x' = x + F(x)$. Tutorial 2 had to say no to it: $F$ reads what it is added to.
# Here is such a network, trained a little on handwritten digits, as if it came from somewhere else.

# %%
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

import revgraph as rg
from pictures import BLUE, INK, ORANGE, chart


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.narrow(torch.relu(self.wide(self.norm(x))))


images, labels = load_digits(return_X_y=True)
images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
turned = (
    images.unflatten(1, (8, 8)).rot90(1, (1, 2)).flatten(1)
)  # another task: digits that lie
torch.manual_seed(0)
order = torch.randperm(len(images))
train, test = order[:1400], order[1400:]


def learn(net, images, steps, rate, after_each=lambda: None):
    """The losses of some steps of training."""
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr=rate), []
    for _ in range(steps):
        chosen = train[torch.randint(len(train), (100,))]
        loss = nn.functional.cross_entropy(net(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after_each()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def right(net, images):
    return (net(images[test]).argmax(1) == labels[test]).float().mean().item()


blocks = (Residual(64) for _ in range(8))
model = nn.Sequential(nn.Linear(64, 64), *blocks, nn.LayerNorm(64), nn.Linear(64, 10))
learn(model, images, steps=100, rate=3e-3)
print(f"upright digits {right(model, images):.1%}, lying ones {right(model, turned):.1%}")
kinds = {node.kind for node in rg.trace(model, images[:100]).graph.nodes}
assert "coupling" not in kinds

# %% [markdown]
# ## A second stream, and two coefficients
#
# Dr2Net (Zhao et al., CVPR 2024) gives each block a second stream $y$, which carries a little of what came
# before:
#
# $$x' = F(x) + \alpha x + y \qquad\qquad y' = \beta x$$
#
# The second equation is easy to undo, and with it the first:
#
# $$x = y' / \beta \qquad\qquad y = x' - F(x) - \alpha x$$
#
# At $\alpha = 1$ and $\beta = 0$ this is the pretrained network. But then nothing can be undone, for $x$ is
# not in $y'$ any more. So let $\beta$ be small. Take one block in float64, with $y = 0$ at the beginning:

# %%
f = copy.deepcopy(model[1]).double().requires_grad_(False)
x, y = torch.randn(100, 64, dtype=torch.float64), torch.zeros(100, 64, dtype=torch.float64)


def dual(x, y, alpha, beta):
    return f(x) - x + alpha * x + y, beta * x  # f is F with its shortcut


def undual(x, y, alpha, beta):
    before = y / beta
    return before, x - (f(before) - before) - alpha * before


new_x, new_y = dual(x, y, alpha=1.0, beta=0.1)
assert torch.allclose(
    new_x, f(x)
)  # the first block of a run is the pretrained one, whatever beta is
back_x, back_y = undual(new_x, new_y, alpha=1.0, beta=0.1)
print(f"errors {(back_x - x).abs().max():.0e} and {(back_y - y).abs().max():.0e}")
assert torch.allclose(back_x, x) and torch.allclose(back_y, y, atol=1e-12)

# %% [markdown]
# ## Convert it
#
# `rg.dual_residual` finds the blocks in the code and does this to them. The smaller $\beta$ is, the nearer
# to the pretrained network; and the worse can blocks be undone, for their errors of rounding are divided by
# $\beta$ again and again. Both in one chart:

# %%
betas = [0.5, 0.2, 0.1, 0.05, 0.02, 0.01]
net = rg.dual_residual(model, images[:100], alpha=1.0, beta=0.1)
net.plan = rg.decide(net.graph, {})  # every block inverted
away, drift = [], []
some = images[:100]
for beta in betas:
    rg.set_dual_residual(net, beta=beta)
    away.append(((net(some) - model(some)).norm() / model(some).norm()).item())
    drift.append(max(rg.check(net, some).drift.values()))
    print(f"beta {beta:4}: scores {away[-1]:.0e} off, drift up to {drift[-1]:.0e}")
assert away == sorted(away, reverse=True) and drift[-1] > drift[0]

# %% tags=["drawing"]
with chart(
    "beta.svg",
    "By beta: how far the scores are off the pretrained ones, and how far values drift",
) as axes:
    axes.plot(betas, away, "o-", color=BLUE, label="off the pretrained scores")
    axes.plot(betas, drift, "s-", color=ORANGE, label="drift of rebuilt values")
    axes.set(xscale="log", yscale="log", xlabel="beta", ylabel="relative error")
    axes.grid(alpha=0.35)

# %% [markdown]
# ## Finetune it
#
# Begin near the pretrained network, and move on while it learns to where undoing is well conditioned:
# $\alpha$ down, $\beta$ up. Beside it, ordinary finetuning of the same weights with every activation kept.

# %%
ordinary = copy.deepcopy(model)
rg.set_dual_residual(net, alpha=1.0, beta=0.3)
at_start = rg.check(net, turned[:100])
print(f"at the start the gradient is off by {at_start.angle_degrees:.2f} degrees")
assert at_start.angle_degrees < 5
schedule = rg.DualResidualSchedule(net, steps=80, alpha=0.5, beta=0.7)
start = {"ordinary": right(ordinary, turned), "dual-residual": right(net, turned)}
curves = {
    "ordinary": learn(ordinary, turned, 120, 2e-3),
    "dual-residual": learn(net, turned, 120, 2e-3, schedule.step),
}
for name, tuned in (("ordinary", ordinary), ("dual-residual", net)):
    print(
        f"{name:13} lying digits: {start[name]:.1%} before, {right(tuned, turned):.1%} after"
    )
    assert right(tuned, turned) > 0.85

# %% tags=["drawing"]
with chart(
    "finetuning.svg", "The loss while finetuning, ordinary and dual-residual"
) as axes:
    for (name, losses), colour, look in zip(
        curves.items(), (ORANGE, BLUE), ("-", "--"), strict=True
    ):
        axes.plot(losses, look, color=colour, linewidth=2, label=name)
    axes.axvline(80, color=INK, linestyle=":")
    axes.text(81, max(curves["ordinary"]) * 0.8, "coefficients at rest")
    axes.set(xlabel="step", ylabel="loss of the batch", ylim=0)
    axes.grid(alpha=0.35)

# %%
report, measured = rg.check(net, turned[:100]), rg.measure(net, turned[:100])
kept = rg.keep_all(rg.trace(ordinary, turned[:100]).graph)
print(report)
print(f"peak {measured.peak_bytes:,} bytes, of the ordinary one {kept.peak_bytes:,}")
assert report.angle_degrees < 1 and measured.peak_bytes < 0.6 * kept.peak_bytes

# %% [markdown]
# The gradient was off by a little at the start, when $\beta$ was small, and by next to nothing at the end.
# Where a start needs more care, `rg.plan(net.graph, max_drift=...)` stores some states between (tutorial
# 7).
#
# Is it worth it? Not always: the ordinary network can be planned with recomputation, which has no drift and
# changes nothing. Inversion pays in long runs of blocks; [Convert a network](../conversion.md) has figures
# for both.
#
# !!! info "In the library"
#
#     `revgraph/conversion.py` converts, `revgraph/tracing/residual_blocks.py` puts the second stream into
#     the graph, and `revgraph/schedules.py` moves the coefficients.
#
# ## Exercises
#
# **1.** What is a block at $\alpha = 0$, $\beta = 1$? Compare with a half-step of tutorial 2.

# %% tags=["answer"]
new_x, new_y = dual(x, y := torch.randn_like(x), alpha=0.0, beta=1.0)
assert torch.allclose(new_x, y + (f(x) - x)) and torch.equal(new_y, x)
print("y + F(x), and the streams change places")

# %% [markdown] tags=["answer"]
# It is $x' = y + F(x)$, $y' = x$: one half-step of a RevNet, after which the streams change places. Undoing
# it divides by 1.

# %% [markdown]
# **2.** Set `beta=0`, the pretrained network itself. What happens, and why must it?

# %% tags=["answer"]
try:
    rg.set_dual_residual(net, beta=0.0)
except rg.GraphError as error:
    print(error)

# %% [markdown]
# **3.** *Predict, then run.* Eight blocks in a row at $\alpha = 1$, $\beta = 0.1$, in float64, and undone
# again. Rounding begins at about $10^{-16}$. How large is the error of the first block's input?

# %% tags=["answer"]
states = [(torch.randn_like(x), torch.zeros_like(x))]
for _ in range(8):
    states.append(dual(*states[-1], alpha=1.0, beta=0.1))
state = states.pop()
for depth in reversed(range(8)):
    state, (x, _) = undual(*state, alpha=1.0, beta=0.1), states[depth]
    print(f"input of block {depth}: error {(state[0] - x).abs().max() / x.abs().max():.0e}")

# %% [markdown] tags=["answer"]
# About $10^{-8}$: seven blocks multiply the first one's error. Each divides by $\beta = 0.1$, which makes an
# error ten times as large, and then the slope of $F(x) + \alpha x$ comes in, a little above 1.

# %% [markdown]
# **4.** What does the conversion add to the model's state? Load the finetuned weights into the ordinary
# model. Is that as good?

# %% tags=["answer"]
added = net.state_dict().keys() - model.state_dict().keys()
print("added:", sorted(added))
back = copy.deepcopy(model)
back.load_state_dict({name: net.state_dict()[name] for name in model.state_dict()})
print(
    f"lying digits: converted {right(net, turned):.1%}, ordinary {right(back, turned):.1%}"
)

# %% [markdown] tags=["answer"]
# Two numbers, the coefficients. The ordinary model is another network, and yet about as good here. A block
# of the converted one gives $F(x') + \alpha x' + \beta x$, where $x$ is what the block before it was given.
# Where states change little from block to block, that is near $F(x') + 1.2\, x'$; and a factor is not seen
# by the normalization that each block, and the head, begins with.

# %% [markdown]
# **5.** Instead of moving $\beta$, store some states: plan the net at $\alpha = 1$, $\beta = 0.1$ with
# `max_drift=1e-4`, after `rg.estimate_drift`. How many anchors does that take?

# %% tags=["answer"]
rg.set_dual_residual(net, alpha=1.0, beta=0.1)
rg.estimate_drift(net, some)
inverted = rg.decide(net.graph, {})
bounded = rg.plan(net.graph, max_drift=1e-4, effort="quick")
for name, net.plan in {"all inverted": inverted, "bounded": bounded}.items():
    drift = max(rg.check(net, some).drift.values())
    print(f"{name:12} {len(net.plan.anchors)} anchors, drift up to {drift:.0e}")
assert drift < 1e-4

# %% [markdown] tags=["answer"]
# Errors begin at $10^{-7}$ in float32, and each block multiplies them by more than ten. Two or three blocks
# are all that the bound allows, so a state is stored after that many, and little is left of what inversion
# saves. That is why the coefficients move while the network is finetuned.

# %% [markdown]
# # 8. Your own architecture
#
# After this page you can write a reversible network that nobody has written before, as a file or as plain
# code, and have it drawn, planned and trained.
#
# ## An idea
#
# Two streams are a habit, not a law. Take three, and let each be changed by the two others in turn:
#
# $$a \leftarrow a + F(b, c) \qquad\quad b \leftarrow b + G(a, c) \qquad\quad c \leftarrow c + H(a, b)$$
#
# Every arrow is a half-step, undone by a subtraction, last first. Each function reads twice as much as in a
# RevNet of the same width. Whether that is a good idea is for you to find out; here is how to try it.
#
# ## As plain code
#
# Write it as you would write any module. `rg.trace` finds the half-steps.

# %%
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import revgraph as rg
from pictures import BLUE, ORANGE, chart, picture, show


class Mix(nn.Module):
    """Reads two streams, returns what the third gets."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.wide = nn.Linear(2 * width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, one, two):
        return self.narrow(torch.relu(self.wide(self.norm(torch.cat([one, two], 1)))))


class Three(nn.Module):
    def __init__(self, rounds=4, width=32):
        super().__init__()
        self.stem = nn.Linear(64, 3 * width)
        self.rounds = nn.ModuleList(
            nn.ModuleList(Mix(width) for _ in range(3)) for _ in range(rounds)
        )
        self.head = nn.Linear(3 * width, 10)

    def forward(self, x):
        a, b, c = self.stem(x).chunk(3, 1)
        for f, g, h in self.rounds:
            a = a + f(b, c)
            b = b + g(a, c)
            c = c + h(a, b)
        return self.head(torch.cat([a, b, c], 1))


torch.manual_seed(0)
coded = rg.trace(Three(), torch.zeros(100, 64))
kinds = [node.kind for node in coded.graph.nodes]
print(kinds.count("coupling"), "couplings and", kinds.count("boundary"), "boundaries")
assert kinds.count("coupling") == 12 and kinds.count("boundary") == 2

# %% [markdown]
# ## As a file
#
# The same as a specification. Only `Mix` is code; its name is registered, and the file can use it then.
# `target` is the stream that a half-step changes, `others` are those that its function reads.

# %%
SPEC = """\
name: three-streams
parameters: {rounds: 4}
batch: 100
inputs: {x: [64]}
layers:
  - stem: {Linear: [64, 96]}
  - parts: {Split: 3, out: [a, b, c]}
  - round:
      repeat: $rounds
      layers:
        - f: {Additive: {f: {Mix: 32}}, target: a, others: [b, c]}
        - g: {Additive: {f: {Mix: 32}}, target: b, others: [a, c]}
        - h: {Additive: {f: {Mix: 32}}, target: c, others: [a, b]}
  - joined: {Concatenate: [], in: [a, b, c]}
  - head: {Linear: [96, 10]}
"""
rg.register("Mix", Mix)
file = Path(tempfile.mkdtemp(), "three.yaml")
file.write_text(SPEC)
net = rg.load(file)
print([node.name for node in net.graph.nodes if node.kind == "coupling"][:4], "...")

# %% [markdown]
# Are they the same network? Give the one the weights of the other, and show both some images.

# %%
images, labels = load_digits(return_X_y=True)  # handwritten digits, 8 by 8 pixels
images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)

with torch.no_grad():
    for mine, theirs in zip(net.parameters(), coded.parameters(), strict=True):
        mine.copy_(theirs)
assert torch.equal(net(images[:100]), coded(images[:100]))
print("the same scores, to the last bit")

# %% [markdown]
# ## Draw it
#
# One lane for each stream. Solid lines run from a stream to itself; who reads whom is thin.

# %%
show(rg.draw(net.graph, picture("three.svg")))

# %% [markdown]
# ## Plan it

# %%
inverted = rg.decide(net.graph, {})
plans = {"kept": rg.keep_all(net.graph), "inverted": inverted, "least": net.plan}
for name, plan in plans.items():
    print(f"{name:8} {plan.peak_bytes:9,} bytes at the peak, FLOPs x{plan.flops_ratio:.3f}")
net.plan = inverted
report = rg.check(net, images[:100])
print(report)
assert report.angle_degrees < 0.01

# %% [markdown]
# ## Train it
#
# It is a module like any other. Twice from the same weights: once as plain code, once with all activations
# dropped.

# %%
order = torch.randperm(len(images))
train, test = order[:1400], order[1400:]


def learn(model, steps=60):
    losses, optimizer = [], torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = train[torch.randint(len(train), (100,), generator=draw)]
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


plain = Three()
plain.load_state_dict(coded.state_dict())
curves = {"plain PyTorch": learn(plain), "inverted": learn(net)}
net.eval()
right = (net(images[test]).argmax(1) == labels[test]).float().mean()
print(f"{right:.1%} of {len(test)} digits that it has not seen")
assert right > 0.9

# %% tags=["drawing"]
with chart("training.svg", "The loss of both by step: one curve on the other") as axes:
    for (name, losses), colour, look in zip(
        curves.items(), (ORANGE, BLUE), ("-", "--"), strict=True
    ):
        axes.plot(losses, look, color=colour, linewidth=2, label=name)
    axes.set(xlabel="step", ylabel="loss of the batch", ylim=0)
    axes.grid(alpha=0.35)

# %% [markdown]
# !!! info "In the library"
#
#     `revgraph/tracing/find_couplings` finds half-steps in code, `revgraph/specs/grammar.py` reads files.
#     Both make the same thing, a `Graph` (`revgraph/graph.py`), and all the rest knows nothing else. The
#     shipped networks in `revgraph/models` are such files; `revbifpn.yaml` has three streams of different
#     sizes.
#
# ## Exercises
#
# **1.** `Additive` takes three functions as well: `f1`, `f2` and `f3` change three streams in turn, each
# from the newest state of the others. Write the rounds as one layer with that.

# %% tags=["answer"]
head, tail = SPEC.index("  - round:"), SPEC.index("  - joined:")
ROUND = """\
  - round:
      repeat: $rounds
      in: [a, b, c]
      out: [a, b, c]
      Additive: {f1: {Mix: 32}, f2: {Mix: 32}, f3: {Mix: 32}}
"""
file.write_text(SPEC[:head] + ROUND + SPEC[tail:])
short = rg.load(file)
with torch.no_grad():
    for mine, theirs in zip(short.parameters(), net.parameters(), strict=True):
        mine.copy_(theirs)
assert torch.equal(short(images[:100]), net(images[:100]))
print("the same again")

# %% [markdown]
# **2.** What if someone writes `a = a + f(a, b)`? Try `rg.trace` on a module with that line, and look at
# the graph.

# %% tags=["answer"]


class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g = Mix(4), Mix(4)

    def forward(self, a, b):
        a = a + self.f(a, b)
        return a, b + self.g(a, a)


wrong = rg.trace(Wrong(), torch.zeros(2, 4), torch.zeros(2, 4))
print(wrong.graph)
try:
    wrong.inverse((torch.zeros(2, 4), torch.zeros(2, 4)))
except rg.GraphError as error:
    print(error)

# %% [markdown] tags=["answer"]
# F reads what it is added to, so that line cannot be undone: it is a boundary. That makes one stream of two,
# for what the second line adds is computed from $b$ as well, by way of the first. The graph's last lines say
# which sums were looked at, and why they are no couplings. The network trains all the same, and what
# boundaries read is stored or recomputed.

# %% [markdown]
# **3.** *Predict, then run.* Eight rounds in place of four: `rg.load(file, rounds=8)`. By what factor do the
# peaks of the kept and of the inverted network grow?

# %% tags=["answer"]
file.write_text(SPEC)
deeper = rg.load(file, rounds=8).graph
before = {"kept": plans["kept"].peak_bytes, "inverted": inverted.peak_bytes}
after = {
    "kept": rg.keep_all(deeper).peak_bytes,
    "inverted": rg.decide(deeper, {}).peak_bytes,
}
for name, peak in after.items():
    print(f"{name:8} x{peak / before[name]:.2f}")
assert after["inverted"] == before["inverted"] and after["kept"] > 1.7 * before["kept"]

# %% [markdown] tags=["answer"]
# The kept one nearly doubles: all but the stem, the head and the loss is in the rounds. The inverted one
# holds three streams at the end, whatever lies before.

# %% [markdown]
# **4.** Take the stem and the head away: a network that gets three streams and returns three. Give it back
# what it returned, with `net.inverse`, and see that it is undone from end to end.

# %% tags=["answer"]


class Rounds(nn.Module):
    def __init__(self, rounds):
        super().__init__()
        self.rounds = rounds

    def forward(self, a, b, c):
        for f, g, h in self.rounds:
            a = a + f(b, c)
            b = b + g(a, c)
            c = c + h(a, b)
        return a, b, c


streams = torch.randn(3, 100, 32)
middle = rg.trace(Rounds(Three().rounds), *streams)
back = middle.inverse(middle(*streams))
error = max((one - two).abs().max() for one, two in zip(back, streams, strict=True))
print(f"largest error {error:.0e}")
assert error < 1e-4

# %% [markdown]
# **5.** A half-step of your own: $y = 2 x + F(\dots)$. Inherit from `rg.Coupling`, give `couple` and
# `uncouple`, and let `rg.check` say whether training through it is right. Then make a mistake in `uncouple`.
# Who notices?

# %% tags=["answer"]


class Doubling(rg.Coupling):
    def couple(self, x, term):
        return 2 * x + term

    def uncouple(self, y, term):
        return (y - term) / 2


class Mistaken(Doubling):
    def uncouple(self, y, term):
        return y - term


class Own(nn.Module):
    def __init__(self, coupling):
        super().__init__()
        self.block = coupling(Mix(32), Mix(32), Mix(32))

    def forward(self, a, b, c):
        return self.block(a, b, c)


for coupling in (Doubling, Mistaken):
    try:
        own = rg.trace(Own(coupling), *streams)
        own.plan = rg.decide(own.graph, {})
        print(coupling.__name__, rg.check(own, *streams))
    except rg.RevgraphError as error:
        print(type(error).__name__, error)

# %% [markdown] tags=["answer"]
# The trace does: it undoes every coupling that is not the library's own, and compares.

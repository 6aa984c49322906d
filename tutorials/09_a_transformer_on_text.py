# %% [markdown]
# # 9. A reversible transformer on real text
#
# After this page you can train a language model that drops its activations, tell what it has learned from
# what counting alone would give, and let it write.
#
# ## A block of a transformer is a coupling
#
# A transformer adds what attention makes of the tokens, then what a small network makes of each token. On
# two streams these two additions are the block of tutorial 2 (Kitaev et al. 2020, *Reformer*):
#
# $$y_1 = x_1 + \mathrm{Attention}(x_2) \qquad\qquad y_2 = x_2 + \mathrm{FeedForward}(y_1)$$
#
# So nothing new is needed. The shipped specification `reversible-lm` is this, with an embedding before and
# a head after it. A token is a byte. Here it is made small, so that this page takes seconds.

# %%
import math
import zlib
from collections import Counter
from itertools import pairwise

import torch
from torch import nn

import revgraph as rg
from pictures import BLUE, GREEN, INK, ORANGE, chart
from revgraph.training.generating import generate
from revgraph.training.text import load_text

LENGTH, BATCH, STEPS = 64, 16, 200
torch.manual_seed(0)
sizes = {"batch": BATCH, "width": 64, "length": LENGTH}
net = rg.load("reversible-lm", depth=2, **sizes)
net.plan = rg.decide(net.graph, {})  # every coupling inverted
print([node.name for node in net.graph.nodes if node.kind == "coupling"])

# %% [markdown]
# ## What it saves
#
# Predicted for deeper ones, without running them: the peak of a step, kept and inverted.

# %%
graphs, peaks = {2: net.graph}, {"kept": [], "inverted": []}
for depth in (4, 8):
    graphs[depth] = rg.load("reversible-lm", depth=depth, **sizes).graph
for depth, graph in graphs.items():
    for name, plan in (("kept", rg.keep_all(graph)), ("inverted", rg.decide(graph, {}))):
        peaks[name].append(plan.peak_bytes / 2**20)
    print(
        f"{depth} blocks: kept {peaks['kept'][-1]:5.1f} MiB, inverted {peaks['inverted'][-1]:4.1f} MiB"
    )
assert peaks["inverted"][-1] < 1.1 * peaks["inverted"][0]
assert peaks["kept"][-1] > 2 * peaks["kept"][0]

# %% [markdown]
# ## The text
#
# Python comes with its documentation inside. The last tenth of it is set aside for the test.

# %%
text = load_text(length=LENGTH)
print(
    f"{len(text.train.bytes):,} bytes to train, {len(text.test.bytes):,} to test, beginning with"
)
print(bytes(text.train.bytes[:76].tolist()).decode())

# %% [markdown]
# How well can a byte be guessed by counting? From how often each occurs; and from how often each follows
# another. The measure is bits per byte: how long the text would be, packed with these guesses. Knowing
# nothing it is 8.

# %%


def counted(train, test):
    """Bits per byte of the test, by the bytes of the training text and by its pairs."""
    single, pairs = Counter(train), Counter(pairwise(train))
    alone = [(single[b] + 1) / (len(train) + 256) for b in test]
    after = [(pairs[a, b] + 0.1) / (single[a] + 25.6) for a, b in pairwise(test)]
    return [-sum(map(math.log2, chances)) / len(chances) for chances in (alone, after)]


single, pairs = counted(text.train.bytes.tolist(), text.test.bytes.tolist())
print(f"by single bytes {single:.2f} bits, by pairs {pairs:.2f} bits")

# %% [markdown]
# ## Train it

# %%
optimizer = torch.optim.AdamW(net.parameters(), lr=6e-3, weight_decay=0.1)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=STEPS)
places = torch.Generator().manual_seed(0)


def bits(tokens, following):
    scores = net(tokens).flatten(0, 1)
    return nn.functional.cross_entropy(scores, following.flatten()) / math.log(2)


losses = []
for _ in range(STEPS):
    starts = torch.randint(len(text.train.bytes) - LENGTH, (BATCH,), generator=places)
    loss = bits(*text.train.windows(starts))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())

net.eval()
with torch.no_grad():
    found = bits(*text.tested(slice(0, len(text.test)))).item()
print(f"after {STEPS} steps: {found:.2f} bits per byte of the test")
assert found < pairs < single

# %% tags=["drawing"]
with chart(
    "learning.svg",
    "Bits per byte by step, falling below what counting single bytes and pairs gives",
) as axes:
    axes.plot(losses, color=BLUE, linewidth=1, label="batches")
    axes.plot([STEPS], [found], "D", color=GREEN, label="the whole test")
    axes.axhline(single, color=INK, linestyle=":", label="counting bytes")
    axes.axhline(pairs, color=ORANGE, linestyle="--", label="counting pairs")
    axes.set(xlabel="step", ylabel="bits per byte")
    axes.grid(alpha=0.35)

# %% [markdown]
# Better than pairs: it looks further back than one byte. Is the gradient still right after training, and
# does memory keep to the plan?

# %%
net.train()
tokens, _ = text.train.windows(torch.arange(BATCH) * LENGTH)
report, measured = rg.check(net, tokens), rg.measure(net, tokens)
print(report)
print("predicted", net.plan.peak_bytes, "measured", measured.peak_bytes)
assert report.angle_degrees < 0.01 and measured.peak_bytes == net.plan.peak_bytes

# %% [markdown]
# ## Let it write
#
# What it writes after some seconds of training is no English, but its words and spaces look it.

# %%
print(
    generate(net, b"The statement ", 160, length=LENGTH, temperature=0.7).decode(
        errors="replace"
    )
)

# %% [markdown]
# `revgraph train reversible-lm --data text` trains the full one, with checkpoints and figures:
# [Transformers](../transformers.md) shows what it learns in some minutes.
#
# !!! info "In the library"
#
#     `revgraph/blocks/attention.py` has the two functions, `revgraph/models/reversible-lm.yaml` the network
#     in under thirty lines, and `revgraph/training/text.py` the windows of text.
#
# ## Exercises
#
# **1.** Which nodes are boundaries, and why can they not be couplings?

# %% tags=["answer"]
for node in net.graph.nodes:
    if node.kind == "boundary":
        print(
            node.name,
            [net.graph.value[name].shape for name in (*node.inputs, *node.outputs)],
        )

# %% [markdown] tags=["answer"]
# The embedding turns whole numbers into vectors and the head vectors into scores. Each changes the shape,
# and neither adds to a stream. `x1` and `x2` only name the embedding once more for each stream, which holds
# no memory.

# %% [markdown]
# **2.** What do you expect of temperature 0.2, and of 1.5? Let it write with both.

# %% tags=["answer"]
for temperature in (0.2, 1.5):
    written = generate(net, b"The statement ", 80, length=LENGTH, temperature=temperature)
    print(temperature, repr(written.decode(errors="replace")))

# %% [markdown] tags=["answer"]
# Below 1, likely bytes become more likely: it repeats itself. Above 1, all become more alike: it spells
# worse.

# %% [markdown]
# **3.** *Predict, then run.* Windows of 128 bytes in place of 64, in batches of half as many, so that a step
# reads as many bytes. What happens to the peak of the inverted network?

# %% tags=["answer"]
longer = rg.load(
    "reversible-lm", batch=BATCH // 2, width=64, depth=2, length=2 * LENGTH
).graph
for name, graph in {"64": net.graph, "128": longer}.items():
    plan = rg.decide(graph, {})
    print(f"length {name:3}: {plan.peak_bytes / 2**20:.2f} MiB at the peak, {plan.peak_at}")

# %% [markdown] tags=["answer"]
# Nothing. The peak is at the turn, where the scores of all bytes and their gradients are in memory: as many
# bytes were read, so there are as many scores. What attention needs inside, it needs for one block at a
# time, and that is less.

# %% [markdown]
# **4.** Is it any good? Pack the test text with `zlib` at its best, and compare in bits per byte.

# %% tags=["answer"]
whole = bytes(text.test.bytes.tolist())
packed = 8 * len(zlib.compress(whole, 9)) / len(whole)
print(f"zlib {packed:.2f}, counting pairs {pairs:.2f}, ours {found:.2f} bits per byte")

# %% [markdown] tags=["answer"]
# Packing programs find whole phrases again, at any distance within 32 KiB. A network of this size that has
# learned for some seconds does not.

# %% [markdown]
# **5.** Activations are not everything. How many bytes do the weights, their gradients and AdamW's two
# averages take, and how much of the whole is saved by inverting?

# %% tags=["answer"]
count = sum(weight.numel() for weight in net.parameters())
fixed = 4 * count * 4  # weight, gradient and two averages, of four bytes each
kept_peak, inverted_peak = rg.keep_all(net.graph).peak_bytes, net.plan.peak_bytes
print(f"{fixed / 2**20:.2f} MiB besides activations")
print(f"activations: {1 - inverted_peak / kept_peak:.0%} saved")
print(f"of the whole: {1 - (fixed + inverted_peak) / (fixed + kept_peak):.0%} saved")

# %% [markdown] tags=["answer"]
# The fixed part does not depend on the batch, activations grow with it. So the larger the batch and the
# longer the text, the nearer the two numbers come.

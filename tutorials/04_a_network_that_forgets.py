# %% [markdown]
# # 4. A network that forgets
#
# After this page you can build RevNet-38 by hand, make its blocks forget their activations with thirty
# lines of PyTorch, and say what those lines still lack. Then the same network as a file, with the same
# numbers.
#
# ## Blocks that forget
#
# PyTorch lets us write the forward and the backward of an operation ourselves. Let a whole stretch of
# blocks be one operation. Its forward stores what comes out at the end. Its backward goes up from there,
# block by block, with Algorithm 1 of tutorial 3: each block gets its outputs and their bars, and hands its
# inputs and theirs to the one before.

# %%
from pathlib import Path

import torch
from torch import nn

import revgraph as rg
from pictures import BLUE, GREEN, ORANGE, chart
from revgraph.blocks import BasicEntry, BasicFunction, Head, Stem
from revgraph.storages import StorageTracker

torch.manual_seed(0)


class Forgetting(torch.autograd.Function):
    @staticmethod
    def forward(ctx, blocks, x1, x2, *weights):
        for block in blocks:
            x1 = x1 + block.f(x2)
            x2 = x2 + block.g(x1)
        ctx.blocks = blocks
        ctx.save_for_backward(x1, x2)
        return x1, x2

    @staticmethod
    def backward(ctx, bar1, bar2):
        (y1, y2), bars = ctx.saved_tensors, []
        for block in reversed(ctx.blocks):
            done = rg.reference.algorithm1(block.f, block.g, y1, y2, bar1, bar2)
            y1, y2, bar1, bar2 = done.x1, done.x2, done.dx1, done.dx2
            bars = [*done.dwF, *done.dwG, *bars]
        return None, bar1, bar2, *bars


# %% [markdown]
# ## RevNet-38
#
# The network of the paper for images of 32 by 32 pixels: a stem, three stages of three units, a head. The
# first unit of a stage changes the shape, so it is a boundary. The other two are blocks as above. Its
# parts, such as the function (BatchNorm, ReLU, convolution, twice), come from the library's building
# blocks.

# %%


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.f, self.g = BasicFunction(channels), BasicFunction(channels)

    def forward(self, x1, x2):
        y1 = x1 + self.f(x2)
        return y1, x2 + self.g(y1)


class RevNet38(nn.Module):
    def __init__(self, forgets, classes=10):
        super().__init__()
        self.forgets = forgets
        self.stem = Stem(3, 32)
        widths, before = (16, 32, 56), 16
        for number, width in enumerate(widths, start=1):
            entry = BasicEntry(
                before, width, stride=1 if number == 1 else 2, preactivate=number > 1
            )
            units = {"unit0": entry, "unit1": Block(width), "unit2": Block(width)}
            self.add_module(f"stage{number}", nn.ModuleDict(units))
            before = width
        self.head = Head(2 * before, classes)

    def forward(self, image):
        x1, x2 = self.stem(image).chunk(2, 1)
        for stage in (self.stage1, self.stage2, self.stage3):
            x1, x2 = stage["unit0"](x1, x2)
            blocks = nn.ModuleList([stage["unit1"], stage["unit2"]])
            if self.forgets:
                x1, x2 = Forgetting.apply(blocks, x1, x2, *blocks.parameters())
            else:
                for block in blocks:
                    x1, x2 = block(x1, x2)
        return self.head(torch.cat([x1, x2], 1))


plain, forgetful = RevNet38(forgets=False), RevNet38(forgets=True)
forgetful.load_state_dict(plain.state_dict())
count = sum(weight.numel() for weight in plain.parameters())
print(f"{count:,} parameters; the paper's network has 464,890")
assert count == 464_890

# %% [markdown]
# ## As a file
#
# This is all of the library's RevNet-38. `BasicEntry` is the boundary, `Additive` the block.

# %%
print(Path(rg.__file__).with_name("models").joinpath("revnet-38.yaml").read_text())

# %% [markdown]
# The names of the weights are the same, so they can go from one to the other. So are the numbers:

# %%
spec = rg.load("revnet-38", batch=8)
spec.load_state_dict(plain.state_dict())
boundaries = [node.name for node in spec.graph.nodes if node.kind == "boundary"]
spec.plan = rg.decide(spec.graph, dict.fromkeys(boundaries, "keep"))
images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
scores, bars, peaks = {}, {}, {}
for name, net in (("plain", plain), ("forgetful", forgetful), ("spec", spec)):
    with StorageTracker([images, *net.parameters(), *net.buffers()]) as tracker:
        out = net(images)
        nn.functional.cross_entropy(out, labels).backward()
    gradients = [weight.grad for weight in net.parameters()]
    scores[name], peaks[name] = out.detach(), tracker.peak(without=gradients)
    bars[name] = torch.cat([gradient.flatten() for gradient in gradients])
for name in ("forgetful", "spec"):
    error = (bars[name] - bars["plain"]).abs().max() / bars["plain"].abs().max()
    print(
        f"{name:9} scores equal: {torch.equal(scores[name], scores['plain'])}, gradients off by {error:.0e}"
    )
    assert torch.equal(scores[name], scores["plain"]) and error < 1e-3

# %% [markdown]
# A step of the network that remembers, and of the two that forget. Boundaries are kept in all three, so
# that the stretches between them make the difference. To the right, what the planner finds if it may
# recompute the boundaries, too.

# %%
peaks["spec, planned"] = rg.plan(spec.graph, budget="least").peak_bytes
for name, peak in peaks.items():
    print(f"{name:14} {peak / 2**20:5.1f} MiB at the peak")
assert peaks["forgetful"] < 0.7 * peaks["plain"]

# %% tags=["drawing"]
with chart(
    "peaks.svg", "Activation memory at the peak of a step of RevNet-38, batch 8", height=3
) as axes:
    axes.bar(
        peaks.keys(),
        [peak / 2**20 for peak in peaks.values()],
        color=[ORANGE, BLUE, BLUE, GREEN],
    )
    axes.set(ylabel="MiB at the peak")

# %% [markdown]
# One reason why the library needs less than our operation: it works in half-steps. Algorithm 1 as we call
# it evaluates both $G$ and $F$ before it differentiates either, so that the internals of both are there at
# once.
#
# ## What our thirty lines lack
#
# Every block ran twice in that step. BatchNorm keeps running averages, and counts:

# %%
for name, net in (("plain", plain), ("forgetful", forgetful), ("spec", spec)):
    norm = net.get_submodule("stage2.unit1.f.norm1")
    print(f"{name:9} BatchNorm counts {norm.num_batches_tracked.item()} steps")
assert forgetful.stage2["unit1"].f.norm1.num_batches_tracked == 2
assert spec.get_submodule("stage2.unit1.f.norm1").num_batches_tracked == 1

# %% [markdown]
# The forgetful one has counted one step twice, so its averages move twice as fast. Dropout would be worse:
# the second run draws another mask, and the gradient is wrong. Nor does our operation know autocast, hooks
# inside it, or second derivatives, and two streams that meet in the middle of a stretch are beyond it.
#
# !!! info "In the library"
#
#     `revgraph/engine/state.py` puts back what a second run must find as the first one did: buffers,
#     random numbers, autocast. The engine is no `autograd.Function`: it leaves PyTorch's graph as it is and
#     only replaces what that saves (`revgraph/engine/saved_tensors.py`), so that hooks and second derivatives
#     are PyTorch's own.
#
# ## Exercises
#
# **1.** Mend the counting. (A BatchNorm with `momentum = 0` does not move its averages.)

# %% tags=["answer"]


def quietly(f, x):
    """F of x as in training, with all running averages left alone."""
    before = {name: buffer.clone() for name, buffer in f.named_buffers()}
    y = f(x)
    for name, buffer in f.named_buffers():
        buffer.data.copy_(before[name])
    return y


f = BasicFunction(4)
f(torch.randn(2, 4, 8, 8))
quietly(f, torch.randn(2, 4, 8, 8))
assert f.norm1.num_batches_tracked == 1
print("one step counted")

# %% [markdown] tags=["answer"]
# Putting the buffers back is the general way: it serves any module that changes its buffers, not BatchNorm
# alone. Use it in `backward` in place of plain calls.

# %% [markdown]
# **2.** How far off is the gradient of the hand-made operation if $F$ has dropout? And the library's?

# %% tags=["answer"]
block = rg.Additive(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), nn.Linear(8, 8))
x1, x2, bar = torch.randn(3, 32, 8)
net = rg.trace(block, x1, x2)
net.plan = rg.decide(net.graph, {})
found = []
for run in (
    block,
    net,
    lambda x1, x2: Forgetting.apply([block], x1, x2, *block.parameters()),
):
    torch.manual_seed(1)
    leaf = x2.clone().requires_grad_()
    y1, y2 = run(x1, leaf)
    found += torch.autograd.grad((y1 * bar + y2 * bar).sum(), leaf)
for name, bar_x2 in zip(("library", "hand-made"), found[1:], strict=True):
    print(f"{name:9} off by {(bar_x2 - found[0]).abs().max() / found[0].abs().max():.0e}")
assert torch.allclose(found[0], found[1], atol=1e-5) and not torch.allclose(
    found[0], found[2], atol=0.1
)

# %% [markdown]
# **3.** *Predict, then run.* Eight blocks as one `Forgetting`, or as eight of one block each: what does each
# way hold between forward and backward, counted in streams?

# %% tags=["answer"]
blocks = nn.ModuleList(rg.Additive(nn.Linear(64, 64), nn.Linear(64, 64)) for _ in range(8))
x1, x2 = torch.randn(2, 32, 64)
for name, parts in {"one": [blocks], "eight": [[block] for block in blocks]}.items():
    with StorageTracker([x1, x2, *blocks.parameters()]) as tracker:
        streams = x1, x2
        for part in parts:
            weights = [weight for block in part for weight in block.parameters()]
            streams = Forgetting.apply(part, *streams, *weights)
        print(f"{name:5} {tracker.live() // x1.nbytes:2} streams held")

# %% [markdown] tags=["answer"]
# Each operation stores what comes out of it: two streams, or sixteen. That is why a stretch has to be one
# operation, from one boundary to the next.

# %% [markdown]
# **4.** Ask the hand-made operation for a second derivative, with `create_graph=True`. Is it right? What is
# missing?

# %% tags=["answer"]
block = rg.Additive(
    *(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(2))
)
x1, x2 = torch.randn(2, 32, 8)
net = rg.trace(block, x1, x2)
net.plan = rg.decide(net.graph, {})
second = []
for run in (
    block,
    net,
    lambda x1, x2: Forgetting.apply([block], x1, x2, *block.parameters()),
):
    leaf = x2.clone().requires_grad_()
    y1, y2 = run(x1, leaf)
    (first,) = torch.autograd.grad((y1 * y2).sum(), leaf, create_graph=True)
    second += torch.autograd.grad(first.square().sum(), leaf)
for name, found in zip(("library", "hand-made"), second[1:], strict=True):
    print(f"{name:9} off by {(found - second[0]).abs().max() / second[0].abs().max():.0e}")
assert torch.allclose(second[0], second[1], rtol=1e-3, atol=1e-4)
assert not torch.allclose(second[0], second[2], rtol=0.1, atol=0.1)

# %% [markdown] tags=["answer"]
# It is wrong, and says nothing. `backward` computes with numbers that PyTorch does not see depend on the
# input: only what goes through the incoming bars is differentiated once more. Decorated with
# `torch.autograd.function.once_differentiable`, it would refuse at least.

# %% [markdown]
# **5.** RevNet-110 has nine units a stage instead of three, and filters 32; 32, 64, 128. Count its
# parameters from the parts above, without building the network. The paper has 1.73 million.

# %% tags=["answer"]
parts, before = [Stem(3, 32)], 16
for number, width in enumerate((16, 32, 64), start=1):
    parts.append(
        BasicEntry(before, width, stride=1 if number == 1 else 2, preactivate=number > 1)
    )
    parts += [Block(width) for _ in range(8)]
    before = width
parts.append(Head(2 * before, 10))
count = sum(weight.numel() for part in parts for weight in part.parameters())
print(f"{count:,}")
assert count == 1_729_194

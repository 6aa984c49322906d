# %% [markdown]
# # 11. An engine in sixty lines
#
# After this page you can write an engine for reversible networks that leaves all derivatives to PyTorch, and
# find your way about the library's own, which works in the same way.
#
# ## Two ways to forget
#
# Tutorial 4 made a stretch of blocks one `autograd.Function`, with Algorithm 1 as its backward. So it had to
# know how to differentiate a block, and PyTorch did not see what was inside. This page goes the other way.
# PyTorch builds its graph of the forward pass as ever, with all its rules. Only what these rules *save* is
# replaced, by a promise: a note from which the tensor can be had when the rule asks for it.
#
# `torch.autograd.graph.saved_tensors_hooks(pack, unpack)` is made for that. While it is on, `pack` is called
# with every tensor that a rule wants to save, and whatever it returns is saved instead. In the backward pass
# `unpack` gets that, and must return the tensor. A hook that looks on:

# %%
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import revgraph as rg
from pictures import BLUE, GREEN, ORANGE, chart
from revgraph.storages import StorageTracker

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def pack(tensor):
    print("pack  ", tuple(tensor.shape))
    return tensor


def unpack(tensor):
    print("unpack", tuple(tensor.shape))
    return tensor


function = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
x = torch.randn(4, 3, requires_grad=True)
with saved_tensors_hooks(pack, unpack):
    y = function(x)
y.sum().backward()

# %% [markdown]
# The first product saves its input and its weight, `tanh` saves its result, and the last product saves that
# and its weight. In the backward pass they are asked for in reverse.
#
# ## The engine
#
# The network is a sequence of half-steps, which change one stream and the other in turn:
#
# $$x_{i} \leftarrow x_{i} + F_k(x_{1 - i}) \qquad\qquad i = k \bmod 2$$
#
# In the forward pass, `pack` drops what the functions save, and leaves a number: the third tensor that
# half-step 7 saved. Weights are there anyway, so they are saved as they are. Of the streams only the last
# ones are stored.
#
# In the backward pass the first question is for a tensor of the last half-step, since PyTorch goes through
# its graph in reverse. The tape then evaluates the function once more, with a hook that *collects* what the
# rules save this time: the same tensors in the same order, for the same function ran on the same input. With
# the result it undoes the half-step, $x_i \leftarrow x_i - F_k(x_{1 - i})$, and has the streams for the
# half-step before. These are lines 1 to 3 of Algorithm 1. Lines 4 to 8 are not here at all: they are
# PyTorch's.

# %%


class Tape:
    """What one forward pass leaves behind: its outputs, from which all else comes back."""

    def __init__(self, functions):
        self.functions = functions
        self.weights = {w.untyped_storage().data_ptr() for w in functions.parameters()}
        self.outputs = None  # both streams, at the end
        self.streams = None  # both streams, before the half-step `place`
        self.place, self.collected = len(functions), []

    def dropping(self, number):
        """Hooks for the forward of a half-step, which drop what it saves and count."""
        count = 0

        def pack(tensor):
            nonlocal count
            if tensor.untyped_storage().data_ptr() in self.weights:
                return tensor
            count += 1
            return number, count - 1

        def unpack(packed):
            return packed if isinstance(packed, torch.Tensor) else self.fetch(*packed)

        return saved_tensors_hooks(pack, unpack)

    def fetch(self, number, index):
        """The tensor with this index among those that a half-step saved."""
        if self.place < number or self.streams is None:  # a backward pass begins
            self.place, self.streams = len(self.functions), list(self.outputs)
        while self.place > number:
            self.place -= 1
            self.undo(self.place)
        return self.collected[index]

    def undo(self, number):
        """Evaluate a function once more: for what its rules save, and to take its term away."""
        self.collected = collected = []
        target = number % 2

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in self.weights:
                collected.append(tensor.detach())

        with torch.enable_grad(), saved_tensors_hooks(pack, lambda packed: None):
            term = self.functions[number](
                self.streams[1 - target].detach().requires_grad_()
            )
        self.streams[target] = self.streams[target] - term.detach()


class Reversible(nn.Module):
    def __init__(self, functions, tape=Tape):
        super().__init__()
        self.functions, self.tape = nn.ModuleList(functions), tape

    def forward(self, x1, x2):
        tape = self.tape(self.functions)
        # As in `undo`, for the rules to save the same.
        streams = [x if x.requires_grad else x.detach().requires_grad_() for x in (x1, x2)]
        for number, function in enumerate(self.functions):
            target = number % 2
            with tape.dropping(number):
                streams[target] = streams[target] + function(streams[1 - target])
        tape.outputs = [stream.detach() for stream in streams]
        return tuple(streams)


# %% [markdown]
# That is all. Two details are worth a look. `collected` has the tensors of one half-step only: when the
# rules of the one before ask for theirs, those of this one are gone. And `pack` returns nothing while it
# collects: the graph of the second evaluation is never used, so it need not hold anything.
#
# ## Check it
#
# Sixteen half-steps: by plain PyTorch, by our engine, and by the library.

# %%
WIDTH, BATCH = 32, 64


def functions(count):
    torch.manual_seed(1)
    return [
        nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.Tanh(), nn.Linear(2 * WIDTH, WIDTH))
        for _ in range(count)
    ]


class Plain(nn.Module):
    def __init__(self, functions):
        super().__init__()
        self.functions = nn.ModuleList(functions)

    def forward(self, x1, x2):
        for f, g in zip(self.functions[::2], self.functions[1::2], strict=True):
            x1 = x1 + f(x2)
            x2 = x2 + g(x1)
        return x1, x2


def gradients(net, x1, x2):
    """The gradients of inputs and weights, and the activation bytes at the peak of the step."""
    x1, x2 = x1.clone().requires_grad_(), x2.clone().requires_grad_()
    with StorageTracker([x1, x2, *net.parameters()]) as tracker:
        y1, y2 = net(x1, x2)
        (y1.sin() * y2).sum().backward()
    found = [x1.grad, x2.grad, *(weight.grad for weight in net.parameters())]
    return found, tracker.peak(without=found)


x1, x2 = torch.randn(2, BATCH, WIDTH)
library = rg.trace(Plain(functions(16)), x1, x2)
library.plan = rg.decide(library.graph, {})  # everything inverted
nets = {
    "plain": Plain(functions(16)),
    "ours": Reversible(functions(16)),
    "library": library,
}
found, peaks = {}, {}
for name, net in nets.items():
    found[name], peaks[name] = gradients(net, x1, x2)
    off = max(
        (a - b).abs().max().item() for a, b in zip(found[name], found["plain"], strict=True)
    )
    print(f"{name:8} {peaks[name]:9,} bytes at the peak, gradients off by {off:.0e}")
    assert off < 1e-11
assert peaks["ours"] < peaks["plain"] / 4

# %% [markdown]
# The same gradients, up to rounding. And at any depth, the same memory:

# %%
depths = [4, 8, 16, 32]
by_depth = {
    kind.__name__: [gradients(kind(functions(depth)), x1, x2)[1] for depth in depths]
    for kind in (Plain, Reversible)
}
print(by_depth)
assert len(set(by_depth["Reversible"])) == 1

# %% tags=["drawing"]
with chart(
    "depth.svg", "Bytes at the peak of a step by depth, plain and with our engine"
) as axes:
    for (name, sizes), colour, mark in zip(
        by_depth.items(), (ORANGE, BLUE), ("s-", "o-"), strict=True
    ):
        axes.plot(depths, [size / 1024 for size in sizes], mark, color=colour, label=name)
    axes.plot(16, peaks["library"] / 1024, "D", color=GREEN, label="the library")
    axes.set(xlabel="half-steps", ylabel="KiB at the peak", ylim=0)
    axes.grid(alpha=0.35)

# %% [markdown]
# What did it cost? `rg.measure` counts the library's evaluations; ours are counted by a hook on the
# functions.

# %%
calls = []
for function in nets["ours"].functions:
    function.register_forward_hook(lambda *_: calls.append(1))
gradients(nets["ours"], x1, x2)
print(len(calls), "evaluations in a step of ours, of 16 functions")
print(sum(rg.measure(library, x1, x2).calls.values()), "in a step of the library")
assert len(calls) == 32

# %% [markdown]
# Two each: one evaluation in the backward pass serves both the inverse and the gradients, so that a step
# takes $4 N$ (tutorial 5).
#
# ## What the library's has more
#
# | ours | the library's |
# |---|---|
# | a sequence of half-steps of one kind | any graph, found in code or declared |
# | everything is inverted | a plan: keep, invert or recompute, node by node |
# | a second evaluation finds things as they are then | random state, buffers, modes as they were |
# | weights that change before `backward` go unnoticed | they are noticed, and refused |
#
# The exercises go through some of these.
#
# !!! info "In the library"
#
#     Our `dropping` is `revgraph/engine/saved_tensors.py`, `Tape` is `revgraph/engine/tape.py`, and `undo` is
#     `revgraph/engine/replay.py`. What is carried out when it is asked for, and what is let go, is not
#     decided there but read from the plan's schedule, `revgraph/planning/schedule.py`.
#
# ## Exercises
#
# **1.** *Predict, then run.* Ask for the gradients of the last function's weights only, with
# `torch.autograd.grad`. How many functions are evaluated in the backward pass? And for those of the first?

# %% tags=["answer"]
ours = nets["ours"]
for place in (-1, 0):
    y1, y2 = ours(x1, x2)
    calls.clear()
    torch.autograd.grad((y1.sin() * y2).sum(), [*ours.functions[place].parameters()])
    print(f"for function {place}: {len(calls)} evaluations")
    assert len(calls) == (1 if place else 16)

# %% [markdown] tags=["answer"]
# PyTorch only runs the rules on the way from the loss to what is asked for. The last function's rules are
# the first of these. To get to the first function, all others have to be undone.

# %% [markdown]
# **2.** Put a `nn.Dropout(0.5)` into the functions. How wrong do the gradients go, and why are even the
# values? Mend it: let the tape note `torch.get_rng_state()` before each function, and go back to it.

# %% tags=["answer"]


class Careful(Tape):
    def __init__(self, functions):
        super().__init__(functions)
        self.states = {}

    def dropping(self, number):
        self.states[number] = torch.get_rng_state()
        return super().dropping(number)

    def undo(self, number):
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.states[number])
            super().undo(number)


def random_functions():
    return [nn.Sequential(function, nn.Dropout(0.5)) for function in functions(4)]


drop = {
    "plain": Plain(random_functions()),
    "ours": Reversible(random_functions()),
    "mended": Reversible(random_functions(), Careful),
}
bars = {}
for name, net in drop.items():
    torch.manual_seed(2)  # the same masks in each
    bars[name] = gradients(net, x1, x2)[0][0]
    off = (bars[name] - bars["plain"]).abs().max() / bars["plain"].abs().max()
    print(f"{name:6} bar x1 off by {off:.0e}")
assert torch.allclose(bars["mended"], bars["plain"])
assert not torch.allclose(bars["ours"], bars["plain"])

# %% [markdown] tags=["answer"]
# The second evaluation draws another mask. Then the rules multiply by the wrong mask, and the term that is
# taken away is not the one that was added, so that all streams before are wrong as well.

# %% [markdown]
# **3.** Are second derivatives right? Take a gradient with `create_graph=True`, and differentiate its
# square, with plain PyTorch, with ours and with the library. How many evaluations does ours take?

# %% tags=["answer"]


def twice(net):
    """The derivative by x1 of the square of the gradient by x1."""
    leaf = x1.clone().requires_grad_()
    y1, y2 = net(leaf, x2)
    (first,) = torch.autograd.grad((y1.sin() * y2).sum(), leaf, create_graph=True)
    return torch.autograd.grad(first.square().sum(), leaf)[0]


calls.clear()
second = {name: twice(net) for name, net in nets.items()}
for name in ("ours", "library"):
    off = (second[name] - second["plain"]).abs().max() / second["plain"].abs().max()
    print(f"{name:8} off by {off:.0e}")
    assert torch.allclose(second[name], second["plain"])
print(len(calls), "evaluations of ours")

# %% [markdown] tags=["answer"]
# They are right. PyTorch puts what `unpack` returns where the saved tensor was in the graph, with all that
# it was computed from; so the second pass goes through the same graph, and asks once more. The evaluations:
# 16 forward, and 15 in each of the two passes back, for function 0 reads $x_2$ alone. But memory is not
# saved as before: the graph of the first gradient holds what it was given.
# %% [markdown]
# **4.** Change a weight between forward and backward, as an optimizer in the wrong place would. What do plain
# PyTorch, ours and the library say?

# %% tags=["answer"]
for name, net in nets.items():
    y1, y2 = net(x1, x2)
    *_, weight, _ = net.parameters()  # of the last product
    with torch.no_grad():
        weight.add_(1e-3)
    try:
        (y1 * y2).sum().backward()
        print(f"{name}: no complaint")
    except (RuntimeError, rg.ReplayError) as error:
        print(f"{name}: {type(error).__name__}: {str(error).partition(': ')[0]}")
    with torch.no_grad():
        weight.sub_(1e-3)

# %% [markdown] tags=["answer"]
# PyTorch compares the number of writes to a tensor when it is saved and when it is used, but not of tensors
# that have gone through hooks. Ours undoes the half-steps with weights that are not those of the forward
# pass. The library counts itself.

# %% [markdown]
# **5.** What the tape has as its outputs, the caller has, too. Does that take memory twice? And what if the
# caller writes into $y_1$ before `backward`? Compare with plain PyTorch, then have the tape notice it:
# `tensor._version` is the number of writes.

# %% tags=["answer"]


class Watchful(Tape):
    def fetch(self, number, index):
        if any(output._version for output in self.outputs):
            raise RuntimeError("an output was written to before the backward pass")
        return super().fetch(number, index)


for net in (
    Plain(functions(4)),
    Reversible(functions(4)),
    Reversible(functions(4), Watchful),
):
    y1, y2 = net(x1, x2)
    y1.mul_(2)
    try:
        (y1 * y2).sum().backward()
        print("no complaint")
    except RuntimeError as error:
        print(str(error).partition(":")[0])

# %% [markdown] tags=["answer"]
# No: what `detach` returns shares the memory, and the count of writes as well. For that very reason what the
# caller writes is what the tape reads. PyTorch complains, for a function has saved $y_1$. Ours undoes a block
# that never gave such an output, and says nothing, until the tape looks.

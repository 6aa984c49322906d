"""Tracing: from an ordinary model and an example call to the program of its graph.

What comes in: a `torch.nn.Module`, the arguments of an example call. What goes out: a `Program`
(`revgraph/program.py`), which holds the graph as data, one operation for each node, and the guards under
which both are right. `loading` and `conversion` call `trace`, and a net does again when its guards do not
hold; the engine runs what it returns.

    trace           the steps in order, and once more with other means where one way fails
    tracer          runs the forward on proxies, into the modules: an fx.Graph, and what was opened on the way
    scopes, results its module calls and how one is taken back; the form of what the forward returns
    wiring/         which calls only rearrange tensors; slices that partition a tensor become one call
    find_couplings/ which calls are half-steps `y = x + F(others)` that can be undone; why the others are not
    fold            modules without a coupling become single calls again
    lower/          the fx.Graph as a revgraph Graph and Program

    proxies, evaluator, patches, in_place   what the tracer runs code on
    export/         `torch.export` for code at which fx stops
    guards/         what the code read of the model and of its surroundings, and whether that still holds
    arguments       calls as forms: which arguments are tensors, and what the others were
    questions       what a graph asks of its inputs alone, asked before anything of it runs
    hooks           forward hooks of opened modules, as calls of the graph
    residual_blocks a trace rewritten to a dual-residual network, for `conversion`
    user_code       the line of the user's code that runs, and what its code objects tell
    modes           gradient mode, inference mode and autocast around a call

Kept from torch.fx: `Proxy`, `Tracer`, `Graph` and `Node`, with the meaning that they have there; a node's
calls are run again as `fx.Interpreter` would, one after another (`revgraph/expressions.py`). An fx trace is
symbolic; this one knows the value of each node for the example input, nearly always as a fake tensor (a
shape, a dtype and a device without memory). What is added, and why fx alone is not enough:

- `FakeProxy` answers for the example: `if x.shape[0] > 1` goes on, and a guard in the graph holds other
  inputs to the answer. What depends on the numbers in a tensor is refused.
- Module calls are gone into, however deep. Where the code of a module cannot be traced, the trace is rolled
  back to before the call, and the module becomes one node.
- Arithmetic in place becomes out of place, so that values have one definition each.
- Guards. fx bakes what code reads (flags, numbers, configuration) into the graph and forgets it. Here each
  read is compared at each call, and a change traces the model anew.
- Couplings, wiring and folding, which are revgraph's own.
- `torch.export` reads the code of modules that fx cannot, if they are most of the model.
"""

from revgraph.tracing.trace import trace

__all__ = ["trace"]

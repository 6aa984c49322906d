"""Compiling: a net whose forward and backward are one compiled graph each, under the net's plan.

In comes a net, out comes its other face, which runs compiled steps. From the top:

    backend     `compile`, and what runs a form of call: torch.compile, with a partition of our own
      marking     the program as one function, whose values pass marker operators
      partition   the joint graph of forward and backward that AOTAutograd made of it, cut in two by the
                  schedule of the plan (`revgraph.planning.schedule`), and without marks
        regions   which of its operators belong to which node
        demands   what the backward asks of each node (`choices`: within a kept one)
        copies    the new graph, its nodes by those of the joint graph that they stand for
        replays   what brings values back: operators once more, and inverses (`inverses`)
        gradients each node's backward
      inductor    the partition as torch's own compiler takes it
      refusals    what cannot be compiled, and what is said of it; the eager engine runs it
      progress    a line on the terminal meanwhile

A step: `CompiledModule._ran` finds the `CompiledForm` of the executable; torch's guards find what it has
compiled, or it calls the backend, AOTAutograd traces, and `partition` lowers. What the engine does by hand
on each call (values by number, handles for saved tensors, replays on demand) is all in the graphs then.

The eager engine runs instead where no graph would do: under transforms of torch.func, for log-determinants,
for whoever watches a step, and under dispatch modes.
"""

from revgraph.compiling.backend import compile

__all__ = ["compile"]

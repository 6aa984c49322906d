"""Compiling: a net whose forward and backward are one compiled graph each, under the net's plan.

In comes a net, out comes its other face, which runs compiled steps. From the top:

    module        `compile` and the net's other face: which calls run compiled, which on the engine
    compiled_form one form of call, compiled for each shape and mode that comes
      refusals    what cannot be compiled, and what is said of it; the eager engine runs it
      marking     the program as one function, whose values pass marker operators
    backend       what torch.compile calls: `partition`, and what runs the two graphs that come of it
      partition   the joint graph of forward and backward that AOTAutograd made of it, cut in two by the
                  schedule of the plan (`revgraph.planning.schedule`), and without marks
        regions   which of its operators belong to which node
        demands   what the backward asks of each node (`choices`: within a kept one)
        copies    the new graph, its nodes by those of the joint graph that they stand for
        replays   what brings values back: operators once more, and inverses (`inverses`)
        barriers  rebuilt values that a compiler which fuses is to write to memory
        gradients each node's backward
      inductor    the partition as torch's own compiler takes it

A step: `CompiledModule._ran` finds the `CompiledForm` of the executable; torch's guards find what it has
compiled, or it calls the `backend`, AOTAutograd traces, and `partition` lowers. What the engine does by hand
on each call (values by number, handles for saved tensors, replays on demand) is all in the graphs then.

The eager engine runs instead where no graph would do: under transforms of torch.func, for log-determinants,
for whoever watches a step, and under dispatch modes.
"""

from revgraph.compiling.module import compile

__all__ = ["compile"]

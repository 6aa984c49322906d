"""`torch.export` where torch.fx stops: the code of a module as a graph of operators, put into the trace.

In: a module that fx cannot go into, with traced arguments. Out: traced values, as if the tracer had run the
code itself. `trace` chooses the modules (`with_exports`), the tracer calls `export_call` for those.

    selection        which modules are exported: the model if fx stops at its code, else large opaque ones
    capture          runs `torch.export`, module calls inside left out; refuses what it would freeze
    recording        the exported graph, call by call, in the trace around it
    operators        operators of torch's dispatcher as calls that can be copied and pickled
    tensor_places    trees of arguments with their tensors taken out

fx stays the first choice, for export makes constants of shapes, dtypes and flags: a program with exported
parts is right only for inputs of the example's form (`guards.Forms`), and others are traced anew.
"""

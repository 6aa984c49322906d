"""From a traced fx.Graph to revgraph's own Graph, as data, and the Program that runs it.

In: the graph after folding, the half-steps in it, the report. Out: a `Program`, and those couplings of the
user's that are to be tried. Only `trace` calls `lower`.

    lowering        each node of the trace as an input, a coupling, a wiring, a boundary or a number
    packing         streams of a bijection side by side in one value, and apart again
    graph_builder   the nodes, values and operations written so far, with their names
    expressions     traced calls as an `Expression`, the form in which programs run them

The order of the trace is kept, but for one thing: what reads a further result of a coupling's function waits
until that coupling is written.
"""

"""Wiring in a traced graph: calls that only rearrange tensors, and can be undone exactly.

In: an fx.Graph with the value of each node for the example. Out: for a call, the `Rearrangement`
(`revgraph/rearrangements.py`) that undoes it. `trace` calls `gather_slices` once, before couplings are looked
for; the search for couplings, folding and lowering ask `is_wiring`, lowering asks `rearrangement`.

    recognize   splits, joins, reshapes, transposes, shuffles, flips and rolls, by their functions and modules
    slices      parts of one tensor that together cover it, as one call: `x[:, :3]` and `x[:, 3:]`

A single slice forgets the rest of its tensor and cannot be undone. So slices are gathered first, and what is
not gathered stays a call like any other.
"""

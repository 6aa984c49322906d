"""Half-steps in a traced graph: the sums `y = x + F(others)` and the like that can be undone.

In: an fx.Graph with the value of each node for the example, and the nodes known to lie on streams (results of
coupling modules). Out: `HalfStep`s by their last call, a report on all other sums, and a check that couplings
of the user's are undone by their inverses. `trace` calls `find_half_steps` before modules are folded,
`refine_half_steps` after it; `lower` writes the half-steps down.

    readings         how one call, or a few in a row, can be read as a target and terms
    flow             what each value rests on and who reads it; which sums lie on a stream
    half_steps       the search for F: the nodes that serve the terms alone; can the target be had back
    draw_order       half-steps that would draw random numbers in another order than the code are given up
    find             these four in turns until nothing changes
    report           which sums are couplings and why the others are not: the last lines of `print(net.graph)`
    check_inverses   couplings of the user's, tried on random numbers
"""

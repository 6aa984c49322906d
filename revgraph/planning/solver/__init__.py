"""Solver: planning problems as plain numbers, and the search for their solutions.

    problem                what goes in (`Problem`), and what comes out (`Solution`)
    search                 all of it, by effort: the pool of judged solutions of a problem, from
      textbook             ordinary autograd, and segments of every count, as in books
      once_programme       a programme node by node, for plans that run nothing more than once again
      segment_programme    a programme over segments, with reruns within reruns
      filling              what these leave unused of a budget, spent where it saves most
      improver             a mixed integer programme, below the best that these have found
      neighbours           in small problems, single decisions that are better otherwise
    pool                   what was judged, without what something else beats

    line                   the problem along its nodes: states between them, ways through each
    segments               the line cut into fewer stretches, with ways through each
    slots                  bytes counted in units, as both programmes do
    unrolling              a programme's schedule as a solution
    merging                values that wiring only renames are one
    formulation            the mixed integer programme: events (stages that matter to a value), memory_rows
                           (what is held when), linear_model (columns and rows), milp_process (HiGHS, apart)

Nothing here knows a graph, a plan or the simulator: the caller poses the problem, and judges solutions by
what their plans do. Nothing looks at a clock: all limits are counts, so that a problem has one pool.
"""

from revgraph.planning.solver.pool import Pool, thinned
from revgraph.planning.solver.problem import Item, Judging, Option, Problem, Solution
from revgraph.planning.solver.search import TOLERANCE, Effort, search

__all__ = [
    "TOLERANCE",
    "Effort",
    "Item",
    "Judging",
    "Option",
    "Pool",
    "Problem",
    "Solution",
    "search",
    "thinned",
]

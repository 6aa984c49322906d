"""One training step of the same networks, run by revgraph, by plain autograd and by other libraries."""

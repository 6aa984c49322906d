"""Parts of the frontier benchmark: memory against computation, revgraph beside what torch offers itself."""

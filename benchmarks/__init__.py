"""Benchmarks of revgraph: what it costs and saves, measured. They pass no judgement; tests do."""

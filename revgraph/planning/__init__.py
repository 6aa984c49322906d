"""Planning: what to keep, invert and recompute, and what that costs."""

from revgraph.planning.deciding import decide, keep_all, plan
from revgraph.planning.plans import DECISIONS, Decision, Plan, Source, human_bytes

__all__ = ["DECISIONS", "Decision", "Plan", "Source", "decide", "human_bytes", "keep_all", "plan"]

"""Planning: what to keep, invert and recompute within a budget, and what that costs."""

from revgraph.planning.budgets import (
    budget_bytes,
    check_budget,
    check_effort,
    frontier,
    knee,
    parse_bytes,
    plan,
)
from revgraph.planning.deciding import decide, keep_all
from revgraph.planning.plans import DECISIONS, Decision, Plan, Source, human_bytes
from revgraph.planning.profiles import GENERIC, PROFILES, DeviceProfile, profile_of
from revgraph.planning.schedule import EVALUATING
from revgraph.planning.simulating import Moment, simulate

__all__ = [
    "DECISIONS",
    "EVALUATING",
    "GENERIC",
    "PROFILES",
    "Decision",
    "DeviceProfile",
    "Moment",
    "Plan",
    "Source",
    "budget_bytes",
    "check_budget",
    "check_effort",
    "decide",
    "frontier",
    "human_bytes",
    "keep_all",
    "knee",
    "parse_bytes",
    "plan",
    "profile_of",
    "simulate",
]

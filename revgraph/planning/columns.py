"""A mixed integer programme under construction: columns, and rows over them, gathered and then solved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from revgraph.planning.quieting import quieted

Terms = Iterable[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What HiGHS found: the columns' values if any, whether proved, and the dual bound on the objective."""

    values: np.ndarray[Any, np.dtype[np.float64]] | None
    proved: bool
    infeasible: bool
    bound: float


@dataclass
class Programme:
    """Columns with bounds, some of them whole numbers, and rows `low <= sum of terms <= high`."""

    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    row_low: list[float] = field(default_factory=list)
    row_high: list[float] = field(default_factory=list)
    _columns: list[int] = field(default_factory=list)
    _values: list[float] = field(default_factory=list)
    _starts: list[int] = field(default_factory=lambda: [0])
    _rows: set[tuple[tuple[tuple[int, float], ...], float, float]] = field(default_factory=set)
    _matrix: scipy.sparse.csr_array | None = None

    def column(self, low: float = 0, high: float = 1, *, whole: bool = False) -> int:
        """A new column's index."""
        self._matrix = None
        self.low.append(low)
        self.high.append(high)
        self.whole.append(whole)
        return len(self.low) - 1

    def row(self, terms: Terms, low: float = -np.inf, high: float = np.inf) -> None:
        """A new row, unless there is the same already; terms of one column are added up."""
        summed: dict[int, float] = {}
        for column, value in terms:
            summed[column] = summed.get(column, 0.0) + value
        filled = [(column, value) for column, value in summed.items() if value]
        if not filled:
            return
        signature = (tuple(sorted(filled)), low, high)
        if signature in self._rows:
            return
        self._rows.add(signature)
        self._matrix = None
        for column, value in filled:
            self._columns.append(column)
            self._values.append(value)
        self._starts.append(len(self._columns))
        self.row_low.append(low)
        self.row_high.append(high)

    def at_most(self, terms: Terms, high: float) -> None:
        self.row(terms, high=high)

    def implies(self, column: int, by: Iterable[int]) -> None:
        """The column is at most the sum of the columns `by`."""
        self.row([(column, 1.0), *((each, -1.0) for each in by)], high=0)

    def minimise(
        self,
        objective: Mapping[int, float],
        *,
        upper: Mapping[int, float] | None = None,
        fixed: Mapping[int, float] | None = None,
        seconds: float = 60,
        gap: float = 1e-4,
    ) -> Outcome:
        """The least objective, with some columns' upper bounds replaced or columns fixed for this time."""
        if self._matrix is None:
            self._matrix = scipy.sparse.csr_array(
                (self._values, self._columns, self._starts), shape=(len(self.row_low), len(self.low))
            )
        costs = np.zeros(len(self.low))
        for column, value in objective.items():
            costs[column] = value
        low, high = np.array(self.low, dtype=float), np.array(self.high, dtype=float)
        for column, value in (upper or {}).items():
            high[column] = value
        for column, value in (fixed or {}).items():
            low[column] = high[column] = value
        with quieted():
            found = milp(
                costs,
                integrality=np.array(self.whole, dtype=int),
                bounds=Bounds(low, high),
                constraints=LinearConstraint(self._matrix, np.array(self.row_low), np.array(self.row_high)),
                options={"time_limit": max(seconds, 0.05), "mip_rel_gap": gap, "presolve": True},
            )
        bound = found.mip_dual_bound
        if bound is None:
            bound = found.fun if found.fun is not None else -np.inf
        return Outcome(found.x, found.status == 0, found.status == 2, float(bound))

    def least(self, column: int, values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        """The least that a column may be which rows bound from below, beside these values of the others."""
        assert self._matrix is not None
        factors = self._matrix[:, [column]].toarray().ravel()
        rest = self._matrix @ values - factors * values[column] - np.array(self.row_high)
        return float(np.max(rest[factors < 0] / -factors[factors < 0]))

"""A mixed integer programme under construction: columns, and rows over them, gathered and then solved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from revgraph.planning.solver.milp_process import solve

Terms = Iterable[tuple[int, float]]


Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class LinearModel:
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

    def column(self, low: float = 0, high: float = 1, *, whole: bool = False) -> int:
        """A new column's index."""
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
        self, objective: Mapping[int, float], *, upper: Mapping[int, float], nodes: int, gap: float
    ) -> Values | None:
        """The values of the least objective found in so many nodes of branch and bound.

        Some columns' upper bounds are replaced for this time. None where nothing was found.
        """
        costs = np.zeros(len(self.low))
        for column, value in objective.items():
            costs[column] = value
        high = np.array(self.high, dtype=float)
        for column, value in upper.items():
            high[column] = value
        found = solve(
            {
                "costs": costs,
                "whole": np.array(self.whole, dtype=int),
                "low": np.array(self.low, dtype=float),
                "high": high,
                "row_low": np.array(self.row_low),
                "row_high": np.array(self.row_high),
                "values": np.array(self._values),
                "columns": np.array(self._columns),
                "starts": np.array(self._starts),
                "nodes": np.array(nodes),
                "gap": np.array(gap),
            }
        )
        return found["x"] if len(found["x"]) else None

    def least(self, column: int, values: Values) -> float:
        """The least that a column may be which rows bound from below, beside these values of the others."""
        import scipy.sparse  # takes a while to import, and few need it

        matrix = scipy.sparse.csr_array(
            (self._values, self._columns, self._starts), shape=(len(self.row_low), len(self.low))
        )
        factors = matrix[:, [column]].toarray().ravel()
        rest = matrix @ values - factors * values[column] - np.array(self.row_high)
        return float(np.max(rest[factors < 0] / -factors[factors < 0]))

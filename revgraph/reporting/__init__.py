"""Reports: graphs, plans, simulations and measurements as tables for people and as JSON for programs."""

from revgraph.reporting.data import as_json
from revgraph.reporting.kinds import Reportable
from revgraph.reporting.tables import Report, report, table

__all__ = ["Report", "Reportable", "as_json", "report", "table"]

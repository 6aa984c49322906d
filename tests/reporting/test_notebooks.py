"""In a notebook a graph, a plan and a report show themselves."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import revgraph as rg
from revgraph.drawing.rendering import find_graphviz
from revgraph.reporting import report


@pytest.fixture(scope="module")
def net() -> rg.ReversibleModule:
    torch.manual_seed(0)
    half = torch.nn.Linear(4, 4)
    return rg.trace(rg.Additive(half, torch.nn.Linear(4, 4)), *torch.randn(2, 3, 4))


@pytest.mark.skipif(find_graphviz() is None, reason="neither dot nor graphviz-pure is installed")
def test_graphs_and_plans_are_pictures(net: rg.ReversibleModule) -> None:
    for drawn in (net.graph, net.plan):
        shown: Any = drawn
        assert ElementTree.fromstring(shown._repr_svg_()).tag.endswith("svg")


def test_without_graphviz_they_are_plain_text(
    net: rg.ReversibleModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> bytes:
        raise rg.GraphError("no graphviz")

    monkeypatch.setattr("revgraph.drawing.render", missing)
    shown: Any = net.plan
    assert shown._repr_svg_() is None


def test_measurements_and_reports_are_tables(net: rg.ReversibleModule) -> None:
    inputs = torch.randn(2, 3, 4)
    measured: Any = rg.measure(net, *inputs)
    checked: Any = rg.check(net, *inputs)
    table: Any = report(net.plan)
    for each in (measured, checked, table):
        made = report(each) if each is not table else table
        root = ElementTree.fromstring(each._repr_html_())
        assert root.tag == "table"
        assert len(root.findall("tr")) == 1 + len(made.rows)
        assert [cell.text for cell in root.findall("tr")[0]] == list(made.head)


def test_a_table_escapes_what_it_holds() -> None:
    made: Any = type(report(rg.keep_all(rg.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).graph)))(
        "<b>", ("a",), (("<i>",),)
    )
    assert "<b>" not in made._repr_html_()
    assert "&lt;i&gt;" in made._repr_html_()

"""The page is one file that asks for nothing and holds the picture as it is."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from drawing.samples import Sketch, plan_for, revnet

from revgraph.drawing import draw
from revgraph.drawing.rendering import find_graphviz

pytestmark = pytest.mark.skipif(find_graphviz() is None, reason="neither dot nor graphviz-pure is installed")


class Reader(HTMLParser):
    """Collects the tags, their attributes, and the page's title."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.title = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")
        ]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["title"] and not self.title:
            self.title = data


def test_it_holds_the_same_svg_and_no_request(tmp_path: Path) -> None:
    plan = plan_for(revnet())
    text = draw(plan, tmp_path / "plan.html").read_text(encoding="utf-8")
    assert draw(plan, tmp_path / "plan.svg").read_text(encoding="utf-8") in text
    reader = Reader()
    reader.feed(text)
    assert reader.title == "revgraph: plan of revnet-38"
    assert reader.links == ["data:,"]
    assert reader.tags.count("svg") == 3
    assert not {"img", "iframe", "object"} & set(reader.tags)
    assert "default-src 'none'" in text
    assert '<meta name="color-scheme" content="light dark">' in text


def test_its_scripts_are_its_own(tmp_path: Path) -> None:
    """What the policy lets run is the one script whose digest it names."""
    text = draw(plan_for(revnet()), tmp_path / "plan.html").read_text(encoding="utf-8")
    policy = re.search(r"script-src '(sha256-[^']+)'", text)
    assert policy is not None
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy[1] == f"sha256-{digest}"


def test_hostile_names_in_a_report_are_escaped(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    sketch = Sketch(evil)
    x = sketch.add("x", "input", (), ((2, 3),))
    y = sketch.add(evil, "boundary", x, ((2, 3),))
    sketch.add("output", "output", y)
    text = draw(plan_for(sketch.graph()), tmp_path / "net.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in text
    assert text.count("<script") == 2


def test_a_hostile_title_is_escaped(tmp_path: Path) -> None:
    sketch = Sketch("</title><script>alert(1)</script>")
    sketch.add("output", "output", sketch.add("x", "input", (), ((2, 3),)))
    text = draw(sketch.graph(), tmp_path / "net.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<title>revgraph: graph of &lt;/title&gt;&lt;script&gt;" in text

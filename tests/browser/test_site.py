"""The documentation's site: it asks nothing of another host, and every picture and equation is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser.chromium import FOUND, Page, browsing

ROOT = Path(__file__).parents[2]
browser = pytest.mark.skipif(FOUND is None, reason="no Chromium is installed")
# Of these, whose pictures are drawn on the spot or follow the reader's scheme, both schemes are opened.
IN_BOTH = ("tutorials", "pictures", "gallery", "flows", "index")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built from a cache of what the tutorials did."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def origin(site: Path) -> Iterator[str]:
    """Where a server on this machine has the site, for its search does not open from a folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browsing() as page:
        yield page


def pages(site: Path) -> list[Path]:
    """The site's own pages, without reports, which have tests of their own."""
    found = [each for each in site.rglob("*.html") if each.name != "404.html"]
    found = sorted(set(found) - set(reports(site)))
    assert len(found) > 25
    return found


def reports(site: Path) -> list[Path]:
    """The pages that revgraph drew."""
    made = '<meta name="generator" content="revgraph">'
    return sorted(each for each in site.rglob("*.html") if made in each.read_text(encoding="utf-8"))


def test_nothing_on_a_page_is_of_another_host(site: Path) -> None:
    for each in site.rglob("*.html"):
        text = each.read_text()
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]* src="?(?:https?:)?//', text), each
        assert not re.findall(r'<link[^>]* href="?(?:https?:)?//[^>]*>', text), each
        assert 'class="arithmatex"' not in text, f"{each.name} has an equation that is not set"
        assert 'class="mermaid"' not in text, f"{each.name}: the theme would load mermaid from another host"


@browser
def test_pages_open_without_errors(site: Path, origin: str, page: Page) -> None:
    for each in pages(site):
        schemes = ("light", "dark") if {each.stem, *each.parts} & set(IN_BOTH) else ("light",)
        for scheme in schemes:
            page.open(origin + each.relative_to(site).as_posix(), scheme)
            place = f"{each.relative_to(site)} in {scheme}"
            outside = [url for url in page.requests if not url.startswith((origin, "data:", "blob:"))]
            assert outside == [], place
            assert page.errors == [], place


@browser
def test_pictures_are_seen_and_equations_are_set(site: Path, page: Page) -> None:
    equations = 0
    for each in pages(site):
        page.open(each.as_uri())
        # What is folded away is opened, and what loads only when it is seen is loaded.
        page.run("document.querySelectorAll('details').forEach(each => each.open = true)")
        broken = page.run(
            "Promise.all([...document.querySelectorAll('article img')].map("
            "async each => { each.loading = 'eager';"
            "try { await each.decode(); } catch { return each.src; }"
            "const box = each.getBoundingClientRect();"
            "return each.naturalWidth && box.width > 20 && box.height > 20 ? null : each.src; }))"
            ".then(found => found.filter(Boolean))"
        )
        assert broken == [], each.name
        small = page.run(
            "[...document.querySelectorAll('math')].filter(each => each.getBoundingClientRect().height < 6)"
            ".map(each => each.textContent)"
        )
        assert small == [], each.name
        equations += page.run("document.querySelectorAll('math').length")
    assert equations > 20


@browser
def test_every_picture_is_described(site: Path, page: Page) -> None:
    for each in pages(site):
        page.open(each.as_uri())
        silent = page.run("[...document.images].filter(each => !each.alt).map(each => each.src)")
        assert silent == [], each.name


@browser
def test_reports_of_the_site_can_be_stepped_through(site: Path, page: Page) -> None:
    found = reports(site)
    assert {each.stem for each in found} == {
        *("block", "revnet-38", "revnet-110", "three-streams", "report", "algorithm"),
    }
    for each in found:
        page.open(each.as_uri(), "dark")
        page.press("ArrowRight")
        assert page.run("document.getElementById('step').value") == "1"
        assert page.errors == []


@browser
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_runs_out_of_a_tutorial(site: Path, page: Page, width: int) -> None:
    for each in sorted((site / "tutorials").glob("*.html")):
        page.open(each.as_uri(), size=(width, 900))
        page.run("document.querySelectorAll('details').forEach(each => each.open = true)")
        # What scrolls by itself may be wider inside.
        outside = page.run(
            "(() => { const room = document.documentElement.clientWidth; const scrolls = each => {"
            "for (let at = each.parentElement; at; at = at.parentElement)"
            "if (getComputedStyle(at).overflowX != 'visible') return true; return false; };"
            "return [...document.querySelectorAll('article *')].filter(each =>"
            "each.getBoundingClientRect().right > room + 1 && !scrolls(each))"
            ".map(each => each.tagName + ' ' + each.textContent.slice(0, 40)); })()"
        )
        assert outside == [], each.name
        assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), (
            each.name
        )


@browser
@pytest.mark.parametrize("width", [400, 1400])
def test_algorithm_1_is_stepped_through_in_its_tutorial(origin: str, page: Page, width: int) -> None:
    page.open(f"{origin}tutorials/03_z1_is_not_y1.html", size=(width, 900))
    inside = "document.querySelector('iframe.algorithm').contentDocument"
    page.run("document.querySelector('iframe.algorithm').scrollIntoView()")
    page.run(
        "new Promise(done => { const wait = setInterval(() => {"
        f"if ({inside}?.querySelector('section.now')) {{ clearInterval(wait); done(); }} }}, 20); }})"
    )
    for _ in range(3):
        page.run(f"{inside}.getElementById('next').click()")
    row = page.run(f"{inside}.querySelector('section.now').innerText")
    assert all(part in row for part in ("line 3", "x₁ = z₁ - F(x₂)", "F_x2 = F(x2)", "internals of F"))
    later = page.run(f"{inside}.querySelector('section.later').innerText")
    assert "line" in later and "grad" not in later
    assert page.run(f"{inside}.documentElement.scrollWidth <= {inside}.documentElement.clientWidth")


def test_every_tutorial_can_be_downloaded_as_a_notebook(site: Path) -> None:
    tutorials = sorted((site / "tutorials").glob("[0-9]*.html"))
    assert tutorials
    for each in tutorials:
        (link,) = re.findall(r"<a ([^>]*)>Download as notebook", each.read_text())
        assert set(link.split()) == {f'{name}="{each.stem}.ipynb"' for name in ("href", "download")}
        assert json.loads(each.with_suffix(".ipynb").read_text())["nbformat"] == 4

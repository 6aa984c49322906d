"""The documentation's site: it asks nothing of another host, and every picture and equation is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser.chromium import FOUND, LEGIBILITY, Page, browsing

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # for the site is built once for all of them
browser = pytest.mark.skipif(FOUND is None, reason="no Chromium is installed")
WIDE, NARROW = (1400, 900), (400, 900)
# Pictures that cannot be seen, the number of equations, and those that came out too small. What loads only
# when it is seen is loaded.
CONTENTS = """\
Promise.all([...document.querySelectorAll('article img')].map(async each => {
    each.loading = 'eager';
    try { await each.decode(); } catch { return each.src; }
    const box = each.getBoundingClientRect();
    return each.naturalWidth && box.width > 20 && box.height > 20 ? null : each.src;
})).then(found => {
    const equations = [...document.querySelectorAll('math')];
    const small = equations.filter(each => each.getBoundingClientRect().height < 6);
    return [found.filter(Boolean), equations.length, small.map(each => each.textContent)];
})
"""
# Pictures whose letters, most of them, are smaller here than can be read. A link shows its picture large.
TINY = """\
(async () => {
    const found = [];
    for (const image of document.querySelectorAll('article img[src$=".svg"]')) {
        if (image.closest('a')) continue;
        const text = await (await fetch(image.src)).text();
        const drawn = new DOMParser().parseFromString(text, 'image/svg+xml');
        const own = each => /font(?:-size)?:[^;]*?([0-9.]+)px/.exec(each.getAttribute('style') ?? '')?.[1];
        const sizes = [...drawn.querySelectorAll('text')]
            .map(each => Number(each.getAttribute('font-size') ?? own(each) ?? NaN))
            .filter(Number.isFinite).sort((one, other) => one - other);
        const inside = drawn.documentElement.viewBox.baseVal.width || image.naturalWidth;
        const size = sizes[sizes.length >> 1] * image.getBoundingClientRect().width / inside;
        if (size < 8) found.push(`${size.toFixed(1)} ${image.src}`);
    }
    return found;
})()
"""
# What the search box of the theme finds, page by page in its order: the addresses of each page's hits. The
# box is emptied first, so that what is read belongs to this question.
SEARCH = """\
(async question => {
    const box = document.querySelector('.md-search__input');
    const meta = document.querySelector('.md-search-result__meta');
    const type = text => {
        box.focus();
        box.value = text;
        box.dispatchEvent(new Event('keyup', {bubbles: true}));
        box.dispatchEvent(new Event('input', {bubbles: true}));
    };
    const until = async wanted => {
        while (!wanted()) await new Promise(done => setTimeout(done, 20));
    };
    document.querySelector('#__search').checked = true;
    type('');
    await until(() => meta.textContent.includes('Type to start'));
    type(question);
    await until(() => meta.textContent.includes('matching'));
    return [...document.querySelectorAll('.md-search-result__item')].map(
        item => [...item.querySelectorAll('a')].map(link => new URL(link.href))
            .map(url => url.pathname.slice(1) + url.hash));
})(QUESTION)
"""
# What newcomers ask, in a sentence and in the words that one types, and the page that answers it.
ASKED = {
    "reading.html": (
        "What does a plan store for RevNet-110, and why?",
        "what is stored for RevNet-110 and why",
        "RevNet-110",
        "What does it take to train in 500 MiB?",
        "500 MiB",
    ),
    "reading.html#does-batchnorm-count-a-step-twice": ("Does BatchNorm count a step twice?",),
    "howto.html#use-batchnorm-and-dropout": ("BatchNorm",),
    "howto.html#write-a-coupling-of-my-own": (
        "How do I write a coupling of my own?",
        "coupling of my own",
        "own coupling",
    ),
    "hugging_face.html": ("Does it take my Hugging Face model?", "my Hugging Face model", "Hugging Face"),
    "lightning.html": ("How do I train with Lightning?", "Lightning", "PyTorch Lightning"),
    "own_loop.html": ("How do I train on my own data?", "my data", "own data set"),
    "devices.html": ("How do I use a GPU?", "one GPU", "GPU"),
    "compiling.html": ("How do I compile the step?", "compile", "torch.compile"),
    "concepts.html#coupling": ("coupling",),
    "planning.html": ("budget",),
    "distributed.html": ("several processes",),
}


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


def test_every_picture_is_described(site: Path) -> None:
    for each in pages(site):
        silent = [
            tag for tag in re.findall(r"<img[^>]*>", each.read_text()) if not re.search(r'alt="?[^" >]', tag)
        ]
        assert silent == [], each.name


def test_nothing_on_a_page_is_of_another_host(site: Path) -> None:
    for each in site.rglob("*.html"):
        text = each.read_text()
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]* src="?(?:https?:)?//', text), each
        assert not re.findall(r'<link[^>]* href="?(?:https?:)?//[^>]*>', text), each
        assert 'class="arithmatex"' not in text, f"{each.name} has an equation that is not set"
        assert 'class="mermaid"' not in text, f"{each.name}: the theme would load mermaid from another host"


@dataclass
class Visit:
    """What was found on a page, a report or a picture by itself, whose folded parts were opened."""

    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    equations: int = 0
    small: list[str] = field(default_factory=list)
    tiny: list[str] = field(default_factory=list)
    faint: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def visits(site: Path, origin: str, page: Page) -> dict[str, Visit]:
    """All that the site has, each loaded once, and seen wide and narrow, in light and in dark."""
    found: dict[str, Visit] = {}
    for path in sorted(each for each in site.rglob("*") if each.suffix in (".html", ".svg")):
        name = path.relative_to(site).as_posix()
        visit = found[name] = Visit()
        page.open(origin + name, "light", WIDE)
        page.run(LEGIBILITY)
        page.run("document.querySelectorAll('details').forEach(each => each.open = true)")
        for scheme in ("light", "dark"):
            page.prefer(scheme)
            for size in (WIDE, NARROW) if path.suffix == ".html" else (WIDE,):
                page.resize(size)
                faint, wide = page.run("[legibility.faint(), legibility.wide()]")
                place = f", in {scheme} at {size[0]}"
                visit.faint += [line + place for line in faint]
                visit.wide += [line + place for line in wide]
        visit.broken, visit.equations, visit.small = page.run(CONTENTS)
        if path.suffix == ".svg":
            continue  # by itself it has no icon, and the browser asks for one
        visit.tiny = page.run(TINY)
        visit.outside = [url for url in page.requests if not url.startswith((origin, "data:", "blob:"))]
        visit.errors = list(page.errors)
    return found


def told(problems: Mapping[str, Sequence[object]]) -> str:
    """What is wrong with each page, if anything is, line by line."""
    return "\n".join(f"{name}: {each}" for name, found in problems.items() for each in found)


@browser
def test_pages_open_without_errors(visits: dict[str, Visit]) -> None:
    assert told({name: visit.outside for name, visit in visits.items()}) == ""
    assert told({name: visit.errors for name, visit in visits.items()}) == ""


@browser
def test_pictures_are_seen_and_equations_are_set(visits: dict[str, Visit]) -> None:
    assert told({name: visit.broken for name, visit in visits.items()}) == ""
    assert told({name: visit.small for name, visit in visits.items()}) == ""
    assert sum(visit.equations for visit in visits.values()) > 20


@browser
def test_letters_of_pictures_can_be_read_on_a_phone(visits: dict[str, Visit]) -> None:
    assert told({name: visit.tiny for name, visit in visits.items()}) == ""


@browser
def test_text_can_be_read_on_its_ground(visits: dict[str, Visit]) -> None:
    assert told({name: visit.faint for name, visit in visits.items()}) == ""


@browser
def test_nothing_is_wider_than_the_window(visits: dict[str, Visit]) -> None:
    assert told({name: visit.wide for name, visit in visits.items()}) == ""


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


@browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_site_follows_the_system_at_later_visits_too(origin: str, page: Page, scheme: str) -> None:
    """The theme notes in the browser what it chose; a page that is open follows at once."""
    other = "light" if scheme == "dark" else "dark"
    ground = "getComputedStyle(document.body).backgroundColor"
    page.open(origin + "start.html", other)
    before = page.run(ground)
    page.prefer(scheme)
    after = page.run(ground)
    page.open(origin + "index.html", scheme)
    assert before != after == page.run(ground)


@browser
@pytest.mark.parametrize(
    ("style", "faint", "wide"),
    [
        ("color: #888", ["3.54"], 0),
        ("color: #777; font-size: 24px", [], 0),
        ("opacity: 0.5; color: #000", ["3.98"], 0),
        ("width: 500px", [], 500),
        ("width: 500px; overflow-x: auto; position: absolute; left: 0", [], 500),
    ],
)
def test_what_cannot_be_read_is_found(page: Page, style: str, faint: list[str], wide: int) -> None:
    page.open(
        f"data:text/html,<body style='margin: 0'><p style='{style.replace('#', '%23')}'>words",
        size=(400, 900),
    )
    page.run(LEGIBILITY)
    assert [each.partition(" ")[0] for each in page.run("legibility.faint()")] == faint
    assert bool(page.run("legibility.wide()")) == bool(wide)


def test_what_is_asked_most_is_one_click_from_the_start_page(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    asked = start[start.index('<div class="asked"') : start.index('id="three-doors"')]
    links = re.findall(r'<a href="([^"]+)">(.*?)</a>', asked)
    said = " ".join(text for _, text in links)
    assert len(links) == 9
    for word in (
        "RevNet-110",
        "BatchNorm",
        "coupling",
        "500 MiB",
        "Hugging Face",
        "Lightning",
        "data",
        "GPU",
    ):
        assert word in said
    for link, text in links:
        name, _, anchor = link.partition("#")
        answer = (site / name).read_text(encoding="utf-8")
        assert not anchor or f'id="{anchor}"' in answer, text


@browser
def test_what_is_asked_comes_first_in_the_search(site: Path, origin: str, page: Page) -> None:
    page.open(origin + "index.html")
    start = (site / "index.html").read_text(encoding="utf-8")
    asked = re.findall(r"<li><a href=[^>]*>(.*?)</a></li>", start[start.index('<div class="asked"') :])
    assert set(asked) <= {question for questions in ASKED.values() for question in questions}
    missed: dict[str, list[str]] = {}
    for answer, questions in ASKED.items():
        for question in questions:
            found = page.run(SEARCH.replace("QUESTION", json.dumps(question)))
            if not found or answer not in found[0]:
                missed[question] = found[0] if found else []
    assert missed == {}
    assert page.errors == []


# A sign that stands alone, a sign within a word, and nothing that there is.
@browser
@pytest.mark.parametrize("typed", ["rg.plan(", "?", "(", "x1 + f(x2)", "torch.nn.Linear", '"own coupling"'])
def test_the_search_takes_whatever_is_typed(origin: str, page: Page, typed: str) -> None:
    page.open(origin + "index.html")
    page.run(SEARCH.replace("QUESTION", '"budget"'))
    page.run(f"document.querySelector('.md-search__input').value = {json.dumps(typed)}")
    page.run("document.querySelector('.md-search__input').dispatchEvent(new Event('keyup'))")
    assert page.run(SEARCH.replace("QUESTION", '"budget"'))[0][0].startswith("planning.html")
    assert page.errors == []


@browser
def test_the_stepper_works_on_the_start_page(origin: str, page: Page) -> None:
    page.open(origin + "index.html")
    ready = page.run(
        "new Promise(done => { const frame = document.querySelector('iframe.stepper');"
        "const inside = () => frame.contentDocument?.getElementById('step');"
        "const look = () => inside() ? done(true) : setTimeout(look, 20);"
        "frame.scrollIntoView({block: 'center'}); look(); })"
    )
    assert ready
    seen = (
        "(() => { const inside = document.querySelector('iframe.stepper').contentDocument;"
        "const cursors = [...inside.querySelectorAll('.cursor')].map(each => Number(each.getAttribute('x')));"
        "return [Number(inside.getElementById('step').value), inside.getElementById('what').textContent,"
        "inside.querySelector('g.here')?.dataset.node ?? null, cursors]; })()"
    )
    page.click("iframe.stepper")  # so that its keys are the stepper's
    start, told, _, places = page.run(seen)
    page.press("ArrowRight")
    step, now, node, cursors = page.run(seen)
    assert step == start + 1
    assert now != told and node in now
    assert len(cursors) == 2 and all(new > old for new, old in zip(cursors, places, strict=True))
    page.press("ArrowLeft")
    assert page.run(seen)[:2] == [start, told]
    page.resize(NARROW)
    assert page.run("document.querySelector('iframe.stepper').getBoundingClientRect().right") <= NARROW[0]
    assert page.errors == []

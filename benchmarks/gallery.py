"""`python -m benchmarks.gallery`: every shipped network, drawn, with its spec, parameters, bytes and FLOPs.

Writes docs/gallery.md, and its pictures and gallery.json into benchmarks/results/gallery. Bytes and FLOPs are
those that plans predict on fake tensors, so that nothing is allocated.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

import revgraph as rg
from benchmarks.shared import machine, write_json, write_text
from revgraph import specs

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "benchmarks" / "results" / "gallery"
IMAGENET_BATCH = 32
MODELS = "revgraph/models"
SVG = "{http://www.w3.org/2000/svg}"
THUMBNAIL = 0.8  # height over width
ABOVE = 6.0  # what is left of the ground above a thumbnail's first node
TITLES = {
    "The paper": ("revnet",),
    "Its ordinary counterparts": ("resnet",),
    "Invertible up to the head": ("i-revnet", "haar"),
    "One function a step": ("momentum", "midpoint", "leapfrog"),
    "Transformers": ("reversible", "revvit"),
    "Flows": ("nice", "realnvp", "glow"),
    "Several resolutions, steps in time, graphs": ("revbifpn", "revgru", "revgnn"),
}
INTRODUCTION = """\
# Gallery

Every network that comes with revgraph: its graph, its specification, and what a training step holds. Load
one with `rg.load("revnet-38")`, show it with `revgraph show revnet-38`, or copy its text and change it.

Bytes are activation bytes at the peak of a training step, FLOPs its operations over those of ordinary
autograd. "Stored" is ordinary autograd; "inverted" inverts every coupling and keeps every boundary; "least"
is the plan of the least peak, whatever it computes again for that. Between the two,
`rg.frontier(net.graph)` has the others, the default plan among them. `make gallery` writes this page from the
planner's predictions, without allocating activations.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan and draw all networks and write the page; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gallery", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("names", nargs="*", help="networks to show (all that are shipped)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write (docs/gallery.md)")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder of the pictures")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures: dict[str, dict[str, Any]] = {}
    for name in chosen.names or specs.shipped():
        print(name, file=sys.stderr, flush=True)
        figures[name] = shown(name, chosen.pictures)
    write_json(chosen.pictures / "gallery.json", {"machine": machine(), "networks": figures})
    write_text(chosen.page, page(figures))
    print(table(figures))
    return 0


def shown(name: str, pictures: Path) -> dict[str, Any]:
    """Draw a network, and return its figures."""
    with torch.device("meta"):
        built = specs.build(name)
    on_imagenet = any(each.shape[-1] > 100 for each in built.inputs if len(each.shape) == 4)
    net = rg.load(name, batch=IMAGENET_BATCH if on_imagenet else None)
    pictures.mkdir(parents=True, exist_ok=True)
    picture = rg.draw(net.graph, pictures / f"{name}.svg")
    stored, inverted = rg.keep_all(net.graph), rg.decide(net.graph, {})
    least = rg.plan(net.graph, budget="least")
    kinds = [node.kind for node in net.graph.nodes]
    return {
        "description": built.description,
        "parameters": sum(each.numel() for each in net.parameters() if each.requires_grad),
        "inputs": {value: list(net.graph.value[value].shape) for value in net.graph.inputs},
        "couplings": kinds.count("coupling"),
        "boundaries": kinds.count("boundary"),
        "stored_bytes": stored.peak_bytes,
        "inverted_bytes": inverted.peak_bytes,
        "inverted_flops": inverted.flops_ratio,
        "least_bytes": least.peak_bytes,
        "least_flops": least.flops_ratio,
        "drawing": drawn_size(picture),
    }


def page(figures: dict[str, dict[str, Any]]) -> str:
    """The page: a table, then each network by family."""
    parts = [INTRODUCTION, thumbnails(figures), table(figures), ""]
    for title, families in TITLES.items():
        parts.append(f"## {title}\n")
        parts += [section(name, each) for name, each in figures.items() if name.startswith(families)]
    return "\n".join(parts)


def drawn_size(picture: Path) -> list[float]:
    """Width and height of a drawing, in its own units, and how far down its first node is."""
    root = ElementTree.parse(picture).getroot()
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    graph = next(each for each in root.iter(f"{SVG}g") if each.get("class") == "graph")
    down = float(graph.attrib["transform"].rpartition(" ")[2].rstrip(")"))
    shapes = [shape for node in graph.iter(f"{SVG}g") if node.get("data-node") for shape in node]
    outlines = [shape.get("points") or shape.get("d") or "" for shape in shapes]
    tops = [float(y) for outline in outlines for y in re.findall(r",(-?[\d.]+)", outline)]
    return [width, height, round(down + min(tops), 2)]


def thumbnails(figures: dict[str, dict[str, Any]]) -> str:
    """A picture of each network's beginning, which links to its section."""
    lines = ['<div class="thumbnails">']
    for name, each in figures.items():
        width, height, top = each["drawing"]
        # As wide as its frame, a drawing is cut below; this moves it up past its title and legend.
        spare = height - THUMBNAIL * width
        place = min(100.0, 100 * (top - ABOVE) / spare) if spare > 0 else 0.0
        lines.append(
            f'<a href="#{name}"><img src="results/gallery/{name}.svg" loading="lazy" '
            f'alt="The graph of {name}, from its inputs" style="object-position: 50% {place:.1f}%">{name}</a>'
        )
    return "\n".join([*lines, "</div>\n"])


def table(figures: dict[str, dict[str, Any]]) -> str:
    """All networks in a Markdown table."""
    rows = [
        "| Network | Parameters | Stored | Inverted | FLOPs | Least | FLOPs |",
        "| :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for name, each in figures.items():
        rows.append(
            f"| [{name}](#{name}) | {each['parameters']:,} | {mebibytes(each['stored_bytes'])} | "
            f"{mebibytes(each['inverted_bytes'])} | x{each['inverted_flops']:.2f} | "
            f"{mebibytes(each['least_bytes'])} | x{each['least_flops']:.2f} |"
        )
    return "\n".join(rows)


def section(name: str, figures: dict[str, Any]) -> str:
    """One network: what it is, its figures, its drawing and its spec."""
    stored = figures["stored_bytes"]
    shapes = ", ".join(f"{key} {' x '.join(map(str, each))}" for key, each in figures["inputs"].items())
    return f"""\
### {name}

{figures["description"]}

{figures["parameters"]:,} parameters, {figures["couplings"]} couplings, {figures["boundaries"]} boundaries;
inputs: {shapes}.
Stored {mebibytes(stored)}; inverted {mebibytes(figures["inverted_bytes"])}, which is
{figures["inverted_bytes"] / stored:.0%}, at x{figures["inverted_flops"]:.2f} FLOPs.

??? note "The graph"

    ![The graph of {name}](results/gallery/{name}.svg)

??? note "The specification"

    ```yaml
    --8<-- "{MODELS}/{name}.yaml"
    ```
"""


def mebibytes(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


if __name__ == "__main__":
    sys.exit(main())

"""SVG as graphviz writes it, made right for dark grounds, screen readers, any font, and for use in a page."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from revgraph.drawing.dot import Caption, Drawing
from revgraph.drawing.lettering import legal, line_height
from revgraph.drawing.palette import PAINTS, stylesheet

SCOPE = "revgraph"
BASELINE = 0.35
"""How far below its middle a line of text stands, in sizes of its font."""

_SVG = "http://www.w3.org/2000/svg"
_ROLES = {paint.light: role for role, paint in PAINTS.items()}
_SHAPES = (f"{{{_SVG}}}path", f"{{{_SVG}}}polygon")


def finish(raw: bytes, drawing: Drawing) -> str:
    """The finished SVG text of a drawing that graphviz rendered.

    Colours get classes, which follow the viewer's preference for light or dark; parts are named after the
    nodes and values they show (`data-node`, `data-value`, and a `<title>`); text is centred in any font.
    """
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(raw)
    _name(root, drawing)
    canvas = root.find(f"{{{_SVG}}}g")
    assert canvas is not None
    canvas.attrib.pop("id", None)
    ground = canvas.find(f"{{{_SVG}}}polygon")
    if ground is not None:
        for text in canvas.findall(f"{{{_SVG}}}text"):
            _centre(text, _middle(ground)[0])
    for group in root.iter(f"{{{_SVG}}}g"):
        _caption(group, drawing.captions)
    for element in root.iter():
        _paint(element)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _name(root: Element, drawing: Drawing) -> None:
    root.set("class", SCOPE)
    root.set("role", "img")
    root.set("lang", "en")
    for place, (tag, text) in enumerate(
        (("title", drawing.title), ("desc", drawing.description), ("style", stylesheet(SCOPE)))
    ):
        element = Element(f"{{{_SVG}}}{tag}")
        element.text = text
        root.insert(place, element)


def _caption(group: Element, captions: Mapping[str, Caption]) -> None:
    """Name a part of the drawing after what it shows; graphviz named it after its place in the DOT text."""
    identity = group.attrib.pop("id", "")
    title = group.find(f"{{{_SVG}}}title")
    caption = captions.get(identity)
    if title is not None:
        group.remove(title)
    if caption is None:
        return
    if caption.node is not None:
        group.set("data-node", legal(caption.node))
    if caption.value is not None:
        group.set("data-value", legal(caption.value))
    title = SubElement(group, f"{{{_SVG}}}title")
    title.text = caption.text
    group.remove(title)
    group.insert(0, title)
    shape = next((child for child in group if child.tag in _SHAPES), None)
    if shape is not None and "node" in group.get("class", "").split():
        _stack(group.findall(f"{{{_SVG}}}text"), *_middle(shape))


def _middle(shape: Element) -> tuple[float, float]:
    """The middle of a box that graphviz drew as a polygon or a path."""
    numbers = shape.get("points") or shape.get("d", "").translate(str.maketrans("MCL", "   "))
    points = [tuple(map(float, pair.split(","))) for pair in numbers.split()]
    across, down = [point[0] for point in points], [point[1] for point in points]
    return (min(across) + max(across)) / 2, (min(down) + max(down)) / 2


def _stack(texts: list[Element], x: float, y: float) -> None:
    """Put a node's lines one under another around its middle, which renderers do not agree on."""
    heights = [line_height(float(text.get("font-size", "0"))) for text in texts]
    top = y - sum(heights) / 2
    for text, height in zip(texts, heights, strict=True):
        _centre(text, x)
        text.set("y", f"{top + height / 2 + BASELINE * float(text.get('font-size', '0')):.2f}")
        top += height


def _centre(text: Element, x: float) -> None:
    text.set("x", f"{x:.2f}")
    text.set("text-anchor", "middle")


def _paint(element: Element) -> None:
    """Add the classes that the stylesheet repaints an element by."""
    default = "#000000" if element.tag == f"{{{_SVG}}}text" else ""
    roles = (
        ("fill", _ROLES.get(element.get("fill", default))),
        ("line", _ROLES.get(element.get("stroke", ""))),
    )
    classes = [element.get("class", ""), *(f"{kind}-{role}" for kind, role in roles if role is not None)]
    if any(classes):
        element.set("class", " ".join(filter(None, classes)))

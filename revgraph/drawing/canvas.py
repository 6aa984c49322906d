"""A canvas for pictures that are no graphs: SVG in the palette's roles, right in light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from revgraph.drawing.lettering import clean, legal
from revgraph.drawing.palette import light, stylesheet

SVG = "http://www.w3.org/2000/svg"
SCOPE = "revgraph"


class Canvas:
    """An SVG of so many points; colours are given as roles of the palette."""

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        size = {"width": f"{width:g}pt", "height": f"{height:g}pt", "viewBox": f"0 0 {width:g} {height:g}"}
        self._root = Element("svg", {"xmlns": SVG, **size, "class": SCOPE, "role": "img", "lang": "en"})
        for tag, text in (("title", title), ("desc", description), ("style", stylesheet(SCOPE))):
            SubElement(self._root, tag).text = clean(text)
        self.box(0, 0, width, height, fill="ground")

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = "",
        line: str = "",
        about: str = "",
        data: Mapping[str, str] | None = None,
    ) -> None:
        """A rectangle; `about` is what a reader gets on request, `data` names what it shows."""
        place = {"x": f"{x:.2f}", "y": f"{y:.2f}", "width": f"{width:.2f}", "height": f"{height:.2f}"}
        self._add("rect", place, fill, line, about=about, data=data)

    def diamond(
        self, x: float, y: float, radius: float, *, fill: str, line: str, data: Mapping[str, str]
    ) -> None:
        """A diamond around a point."""
        corners = ((x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y))
        points = " ".join(f"{across:.2f},{down:.2f}" for across, down in corners)
        self._add("polygon", {"points": points}, fill, line, data=data)

    def disc(
        self,
        x: float,
        y: float,
        radius: float,
        *,
        fill: str,
        line: str = "",
        data: Mapping[str, str] | None = None,
    ) -> None:
        """A disc around a point."""
        place = {"cx": f"{x:.2f}", "cy": f"{y:.2f}", "r": f"{radius:.2f}"}
        self._add("circle", place, fill, line, data=data)

    def area(self, points: Sequence[tuple[float, float]], *, fill: str, about: str = "") -> None:
        """A closed shape."""
        self._add("path", {"d": _steps(points) + "Z"}, fill, "", about=about)

    def line(
        self, points: Sequence[tuple[float, float]], *, line: str, width: float = 1.0, dash: str = ""
    ) -> None:
        """A line through points."""
        form = {"d": _steps(points), "stroke-width": f"{width:g}"}
        if dash:
            form["stroke-dasharray"] = dash
        self._add("path", form, "", line)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 10.0,
        role: str = "muted",
        anchor: str = "start",
        bold: bool = False,
        halo: bool = False,
        data: Mapping[str, str] | None = None,
    ) -> None:
        """One line of text, on its baseline; a halo of the ground's colour keeps lines behind it away."""
        form = {"x": f"{x:.2f}", "y": f"{y:.2f}", "font-size": f"{size:g}", "text-anchor": anchor}
        if bold:
            form["font-weight"] = "bold"
        if halo:
            form |= {"stroke-width": "3", "paint-order": "stroke"}
        self._add("text", form, role, "ground" if halo else "", data=data).text = clean(text)

    def svg(self) -> str:
        """The finished text."""
        return ElementTree.tostring(self._root, encoding="unicode") + "\n"

    def _add(
        self,
        tag: str,
        form: Mapping[str, str],
        fill: str,
        line: str,
        *,
        about: str = "",
        data: Mapping[str, str] | None = None,
    ) -> Element:
        paint = {"fill": light(fill) if fill else "none", "stroke": light(line) if line else "none"}
        roles = [f"fill-{fill}" if fill else "", f"line-{line}" if line else ""]
        classes = " ".join(filter(None, roles))
        named = {f"data-{key}": legal(value) for key, value in (data or {}).items()}
        element = SubElement(
            self._root, tag, {**form, **paint, **({"class": classes} if classes else {}), **named}
        )
        if about:
            SubElement(element, "title").text = clean(about)
        return element


def _steps(points: Sequence[tuple[float, float]]) -> str:
    """A path through points, level and upright pieces written short."""
    parts: list[str] = []
    last: tuple[str, str] = ("", "")
    for x, y in points:
        here = f"{x:.2f}", f"{y:.2f}"
        if not parts:
            parts.append(f"M{here[0]},{here[1]}")
        elif here[1] == last[1]:
            parts.append(f"H{here[0]}")
        elif here[0] == last[0]:
            parts.append(f"V{here[1]}")
        else:
            parts.append(f"L{here[0]},{here[1]}")
        last = here
    return "".join(parts)

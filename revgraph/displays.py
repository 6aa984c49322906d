"""How notebooks find what shows an object: graphs and plans as pictures, measurements and reports as tables.

The methods stand here, below the classes that have them; what draws stands above all of these, and is
imported, by its name, when a notebook asks.
"""

from __future__ import annotations

from importlib import import_module


class ShownAsPicture:
    """Gives a class the method that IPython looks for, and takes for an SVG picture."""

    __slots__ = ()

    def _repr_svg_(self) -> str | None:
        return import_module("revgraph.notebooks").picture(self)


class ShownAsTable:
    """Gives a class the method that IPython looks for, and takes for HTML."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return import_module("revgraph.notebooks").table(self)

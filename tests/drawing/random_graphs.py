"""Random graphs of every kind of node, with skips, fan-out, views and dead ends, for hypothesis."""

from __future__ import annotations

from drawing.samples import Sketch
from hypothesis import strategies as st

from revgraph.graph import Graph

SHAPE = (2, 4)


@st.composite
def graphs(draw: st.DrawFn, most: int = 14) -> Graph:
    """A graph of one to three inputs and up to `most` nodes between them and the output."""
    sketch = Sketch("random")
    values = [sketch.add(f"x{index}", "input", (), (SHAPE,))[0] for index in range(draw(st.integers(1, 3)))]
    for index in range(draw(st.integers(0, most))):
        stage = f"stage{draw(st.integers(0, 2))}." if draw(st.booleans()) else ""
        name = f"{stage}node{index}"
        picked = draw(st.lists(st.sampled_from(values), min_size=1, max_size=4, unique=True))
        kind = draw(st.sampled_from(["coupling", "coupling", "boundary", "wiring"]))
        if kind == "coupling":
            values.append(sketch.couple(name, *picked))
        else:
            count = draw(st.integers(1, 3))
            twice = tuple(picked[:1]) if draw(st.booleans()) else ()
            values += sketch.add(name, kind, (*picked, *twice), (SHAPE,) * count)
    ends = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
    sketch.add("output", "output", tuple(ends))
    return sketch.graph()

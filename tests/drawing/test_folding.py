"""Repeated equal blocks are drawn once, with their number; whatever differs is drawn by itself."""

from __future__ import annotations

from drawing.samples import Sketch, chain, plan_for, revnet, three_streams

from revgraph.drawing.stages import frames, short_names
from revgraph.drawing.subject import FOLD_ABOVE, subject
from revgraph.folding import Fold, find_folds
from revgraph.graph import Graph, verify

NONE: frozenset[str] = frozenset()


def folds(graph: Graph) -> list[tuple[str, int, int]]:
    return [(graph.nodes[fold.start].name, fold.period, fold.count) for fold in find_folds(graph, {}, NONE)]


def test_a_chain_folds_to_one_block() -> None:
    assert folds(chain(9)) == [("blocks.0.f", 2, 9)]
    about = subject(chain(9), fold=True)
    assert [node.name for node in about.graph.nodes] == ["x1", "x2", "blocks.8.f", "blocks.8.g", "output"]
    assert [(frame.name, frame.count) for frame in frames(about)] == [("blocks.0–8", 9)]  # noqa: RUF001
    assert short_names(about)["blocks.8.f"] == "f"


def test_the_drawn_block_reads_what_the_first_one_read() -> None:
    about = subject(chain(9), fold=True)
    verify(about.graph)
    f, g = about.graph.node["blocks.8.f"], about.graph.node["blocks.8.g"]
    assert (f.inputs, f.target) == (("x1", "x2"), "x1")
    assert (g.inputs, g.target) == (("x2", "blocks.8.f"), "x2")
    assert about.shown["blocks.3.g"] == "blocks.8.g"


def test_each_stage_of_a_revnet_folds_by_itself() -> None:
    graph = revnet(units=10)
    assert folds(graph) == [(f"stage{stage}.unit1.f", 2, 9) for stage in (1, 2, 3)]
    about = subject(graph)
    assert [(frame.name, frame.count) for frame in frames(about)] == [
        ("stage1", 1),
        ("stage2", 1),
        ("stage3", 1),
        *[("unit1–9", 9)] * 3,  # noqa: RUF001
    ]


def test_only_big_graphs_fold_by_themselves() -> None:
    assert len(revnet().nodes) < FOLD_ABOVE < len(revnet(units=10).nodes)
    assert not subject(revnet()).blocks
    assert subject(revnet(), fold=True).blocks
    assert subject(revnet(units=10)).blocks
    assert not subject(revnet(units=10), fold=False).blocks


def test_a_different_decision_or_a_stored_value_is_not_folded_away() -> None:
    graph = chain(12)
    kept = plan_for(graph, lambda node: "keep" if node.name == "blocks.5.f" else "invert")
    counts = [block.count for block in subject(kept, fold=True).blocks]
    assert sum(counts) < 12
    assert "blocks.5.f" in subject(kept, fold=True).graph.node
    anchor = plan_for(graph, lambda _: "invert", stored=("blocks.7.g",))
    about = subject(anchor, fold=True)
    assert [block.count for block in about.blocks] == [7, 3]  # the last one's outputs are stored
    assert "blocks.7.g" in about.graph.node
    assert len(about.stored["blocks.7.g"]) == 1


def test_stored_values_of_folded_blocks_are_counted() -> None:
    graph = chain(12)
    stored = tuple(f"blocks.{block}.g" for block in range(12))
    about = subject(plan_for(graph, stored=stored, decide=lambda _: "invert"), fold=True)
    assert len(about.stored["blocks.10.g"]) == 11
    assert len(about.stored["blocks.11.g"]) == 1  # and so is what its f gave


def test_the_peak_of_a_hidden_block_shows_on_the_drawn_one() -> None:
    plan = plan_for(chain(12), lambda _: "invert", peak_at="backward of blocks.4.g", stored=())
    assert subject(plan, fold=True).peak_nodes == {"blocks.10.g"}


def test_a_value_read_from_outside_keeps_its_block_unfolded() -> None:
    sketch = Sketch("leak")
    x1, x2 = (sketch.add(name, "input", (), ((2, 8),))[0] for name in ("x1", "x2"))
    for block in range(8):
        x1 = sketch.couple(f"blocks.{block}.f", x1, x2)
        x2 = sketch.couple(f"blocks.{block}.g", x2, x1)
    sketch.add("output", "output", (x1, x2, "blocks.3.f"))
    assert folds(sketch.graph()) == [("blocks.0.f", 2, 4), ("blocks.4.f", 2, 4)]


def test_a_mask_that_all_blocks_read_does_not_keep_them_from_folding() -> None:
    sketch = Sketch("masked")
    x1, x2, mask = (sketch.add(name, "input", (), ((2, 8),))[0] for name in ("x1", "x2", "mask"))
    for block in range(6):
        x1 = sketch.couple(f"blocks.{block}.f", x1, x2, mask)
        x2 = sketch.couple(f"blocks.{block}.g", x2, x1, mask)
    sketch.add("output", "output", (x1, x2))
    assert folds(sketch.graph()) == [("blocks.0.f", 2, 6)]
    verify(subject(sketch.graph(), fold=True).graph)


def test_blocks_that_read_from_ever_farther_back_are_not_folded() -> None:
    sketch = Sketch("skips")
    values = [sketch.add("x", "input", (), ((2, 8),))[0]]
    for block in range(8):
        values.append(sketch.add(f"layer{block}", "boundary", (values[-1], values[block // 2]), ((2, 8),))[0])
    sketch.add("output", "output", (values[-1],))
    assert folds(sketch.graph()) == []


def test_streams_that_change_places_are_not_taken_for_equal_blocks() -> None:
    sketch = Sketch("swapped")
    a, b = (sketch.add(name, "input", (), ((2, 8),))[0] for name in ("a", "b"))
    for block in range(6):
        a = sketch.couple(f"blocks.{block}.f", a, b)
        b = sketch.couple(f"blocks.{block}.g", b, a)
        if block == 2:
            a, b = b, a
    sketch.add("output", "output", (a, b))
    assert [fold.count for fold in find_folds(sketch.graph(), {}, NONE)] == [3, 3]


def test_nothing_repeats_in_three_streams() -> None:
    assert find_folds(three_streams(), {}, NONE) == ()
    assert Fold(3, 2, 4).end == 11

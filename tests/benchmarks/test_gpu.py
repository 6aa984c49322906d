"""`make gpu` without a GPU: what it says, its search, its rows on the CPU, its page of made-up figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import needed
from benchmarks.gpu import rows as module
from benchmarks.gpu.__main__ import LIMIT, ROOT, asked, main, problems, write
from benchmarks.gpu.networks import SUBJECTS, specification
from benchmarks.gpu.page import NOT_RUN, page, tables
from benchmarks.gpu.rows import LEAST, ORDINARY, most, sized, steps, taken

MACHINE = {
    "cpu": "a processor",
    "python": "3.11.7",
    "libraries": {"torch": "2.13.0+cu130", "triton": None},
    "gpu": {"name": "Some GPU", "bytes": 80 * 2**30, "driver": "580.1", "cuda": "13.0", "cudnn": 91002},
}
STEPS = {
    "title": "A network, batch 2",
    "rows": [
        {
            "way": "plain, eager",
            "seconds": 0.2,
            "first_step_seconds": 1,
            "predicted_bytes": 4e9,
            "peak_bytes": 5e9,
        },
        {
            "way": "torch.compile",
            "seconds": 0.1,
            "first_step_seconds": 9,
            "predicted_bytes": None,
            "peak_bytes": 4e9,
        },
        {"way": "inductor", "problem": "RuntimeError: no compiler"},
    ],
    "problem": None,
}
FOUND = {
    "state": "run",
    "machine": MACHINE,
    "tests": {
        "total": {"passed": 7, "failed": 1},
        "promises": {"Gradients are right": {"passed": 7, "failed": 1}},
        "failed": ["engine/test_x.py::test_y"],
        "left_out": ["engine/test_random_graphs.py"],
    },
    "steps": {"net": STEPS},
    "limits": {
        "a": {
            "network": "net", "of": "depth", "way": LEAST, "deep": "blocks", "most": 1234,
            "always_bytes": 1e9, "predicted_bytes": 2e9, "peak_bytes": 3e9,
        },
        "b": {"network": "net", "of": "batch", "way": ORDINARY, "problem": "stopped after 9 s"},
        "c": {"network": "net", "of": "batch", "way": LEAST, "most": 0},
    },
}  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    assert main(["--docs", str(tmp_path), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "has written nothing" in said and ("a CUDA build of torch" in said or "an NVIDIA GPU" in said)
    assert not list(tmp_path.iterdir())


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        needed, "find_spec", lambda name: None if name in ("yaml", "pytest", "torch") else name
    )
    assert [each.partition(":")[0] for each in needed.missing()] == ["torch", "PyYAML", "pytest"]
    assert "PyYAML: not installed" in needed.refusal(needed.missing())


@pytest.mark.parametrize("of", ["batch", "depth"])
@pytest.mark.parametrize("limit", [0, 1, 7, 33, 100, 5000])
def test_bisection_finds_the_most_that_fits(of: str, limit: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    assert most(fits, SUBJECTS["revnet-104"], of) == limit
    assert len(tried) == len(set(tried)) <= 28


def test_sizes_are_batch_and_depth() -> None:
    subject = SUBJECTS["transformer"]
    assert sized(subject, "batch", 5) == (5, subject.depth)
    assert sized(subject, "depth", 5) == (subject.batch, 5)
    deep = next(layer["stage3"] for layer in specification(77)["layers"] if "stage3" in layer)
    assert deep[1]["unit1"]["repeat"] == 77


@pytest.mark.slow
@pytest.mark.parametrize("way", [ORDINARY, LEAST])
def test_a_step_of_the_search_takes_what_is_predicted_on_the_cpu(way: str) -> None:
    found = taken(SUBJECTS["small"], 3, 2, way, "cpu")
    assert found["peak_bytes"] == found["predicted_bytes"]
    assert found["always_bytes"] > 0


@pytest.mark.slow
def test_a_way_that_fails_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(torch.nn.Module):
        def forward(self, *_: Any) -> Any:
            raise ValueError("no compiler\nand more")

    def ways(net: Any, compiled: bool) -> Any:
        yield "broken", Broken(), None
        yield "eager", net, net.plan.peak_bytes

    monkeypatch.setattr(module, "ways", ways)
    told: list[dict[str, Any]] = []
    steps("small", "cpu", 2, False, told.append)
    assert told[1] == {"way": "broken", "problem": "ValueError: no compiler"}
    assert told[2]["peak_bytes"] == told[2]["predicted_bytes"] > 0


@pytest.mark.slow
def test_steps_on_the_cpu_from_the_command_to_the_page(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--only", "steps", "--network", "small", "--rounds", "2", "--eager"]
    docs, out = tmp_path / "docs", tmp_path / "results"
    assert main([*options, "--docs", str(docs), "--out", str(out)]) == 0
    found = json.loads((out / "gpu.json").read_text())
    assert [each["way"] for each in found["steps"]["small"]["rows"]] == ["plain, eager", "revgraph, eager"]
    assert (docs / "gpu.md").read_text().endswith((out / "gpu.md").read_text())
    assert (out / "gpu.md").read_text().count(NOT_RUN) == 2  # tests and limits


@pytest.mark.slow
def test_variants_of_the_trust_tests_run_and_are_counted_by_promise() -> None:
    chosen = argparse.Namespace(device="cpu", rounds=1, limit=LIMIT, seconds=300)
    told, problem = asked(chosen, "tests", "-k", "test_batchnorm_counts_one_step or precision")
    assert problem is None and len(told) == 1
    (found,) = told
    assert found["status"] == 0 and found["failed"] == [] and found["total"].keys() == {"passed"}
    assert any(text.startswith("BatchNorm") for text in found["promises"])
    assert any(text.startswith("Autocast") for text in found["promises"])


def test_the_page_has_every_figure_and_every_failure(tmp_path: Path) -> None:
    out = tmp_path / "results"
    write(FOUND, argparse.Namespace(docs=tmp_path, out=out, limit=LIMIT))
    text = (tmp_path / "gpu.md").read_text()
    assert json.loads((out / "gpu.json").read_text()) == FOUND
    for each in (
        "Some GPU, 80.0 GiB, driver 580.1, CUDA 13.0", "torch 2.13.0+cu130", "1 failed, 7 passed in all",
        "`engine/test_x.py::test_y`", "hypothesis is not installed: `engine/test_random_graphs.py`",
        "| plain, eager  |  200.0 |     1.00 |        4000.0 |       5000.0 |                1.250 |",
        "inductor: RuntimeError: no compiler", "net, depth (blocks)", "1,234",
        "net, batch, ordinary autograd: stopped after 9 s", "fit in 16 GiB",
    ):  # fmt: skip
        assert each in text, each
    assert NOT_RUN not in text
    assert len(problems(FOUND)) == 3


def test_parts_that_were_not_run_say_so() -> None:
    assert tables({"machine": MACHINE}).count(NOT_RUN) == 3
    assert NOT_RUN in page(None, LIMIT)


def test_the_page_in_the_documentation_is_made_of_the_results() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "gpu.json").read_text())
    text = (ROOT / "docs" / "gpu.md").read_text()
    assert text == page(None if found["state"] == "not run" else found, LIMIT)

"""Exports say what the simulator says, and other tools' readers take them."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from drawing.samples import plan_for, revnet
from torch import Tensor, nn
from torch.cuda import _memory_viz

import revgraph as rg


class Net(nn.Module):
    """Two streams with BatchNorm, a boundary, and a head: nodes of every kind that holds memory."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()

        def function() -> nn.Module:
            return nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))

        self.stem = nn.Linear(6, 16)
        self.blocks = nn.ModuleList(rg.Additive(function(), function()) for _ in range(blocks))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        for block in self.blocks:
            a, b = block(a, b)
        return self.head(torch.relu(torch.cat([a, b], 1)))


@pytest.fixture(scope="module")
def net() -> rg.ReversibleModule:
    torch.manual_seed(0)
    return rg.trace(Net(), torch.randn(5, 6))


def plans(net: rg.ReversibleModule) -> dict[str, rg.Plan]:
    graph = net.graph
    couplings = [node.name for node in graph.planned if node.kind == "coupling"]
    found = {f"frontier {index}": plan for index, plan in enumerate(rg.frontier(graph))}
    found |= {
        "usual": net.plan,
        "all kept": rg.keep_all(graph),
        "least": rg.plan(graph, budget="least"),
        "recomputed": rg.decide(graph, dict.fromkeys(couplings, "recompute")),
    }
    return found


def test_the_suffix_leads_to_the_export(net: rg.ReversibleModule, tmp_path: Path) -> None:
    assert "traceEvents" in json.loads(rg.draw(net.plan, tmp_path / "deep" / "plan.Trace.JSON").read_text())
    assert set(unpickled(rg.draw(net.plan, tmp_path / "plan.pickle"))) == {"segments", "device_traces"}
    for name in ("plan.json", ".trace.json"):
        with pytest.raises(ValueError, match=r"Use one of .*, \.trace\.json, \.pickle\."):
            rg.draw(net.plan, tmp_path / name)


@pytest.mark.parametrize("name", ["step.trace.json", "step.pickle"])
def test_only_a_plan_has_a_step(net: rg.ReversibleModule, tmp_path: Path, name: str) -> None:
    with pytest.raises(rg.GraphError, match=r"only a plan has a training step .* give net\.plan"):
        rg.draw(net.graph, tmp_path / name)
    with pytest.raises(ValueError, match=r"the memory of a plan is drawn as \.svg"):
        rg.draw(net.plan, tmp_path / name, show="memory")
    with pytest.raises(ValueError, match=r"Use one of \.svg, \.png\."):
        rg.draw([net.plan], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_same_plan_gives_the_same_bytes(net: rg.ReversibleModule, tmp_path: Path) -> None:
    for name in ("step.trace.json", "step.pickle"):
        first = rg.draw(net.plan, tmp_path / name).read_bytes()
        assert rg.draw(rg.Plan.from_json(net.plan.to_json()), tmp_path / name).read_bytes() == first


# The trace.


def traced(plan: rg.Plan, path: Path, **options: Any) -> list[dict[str, Any]]:
    data = json.loads(rg.draw(plan, path / "plan.trace.json", **options).read_text())
    assert data["displayTimeUnit"] in ("ms", "ns")
    assert data["otherData"]["peak_bytes"] == plan.peak_bytes
    return data["traceEvents"]


def nanoseconds(event: dict[str, Any], key: str) -> int:
    return round(event[key] * 1000)


def test_a_trace_keeps_to_the_format(net: rg.ReversibleModule, tmp_path: Path) -> None:
    for plan in plans(net).values():
        events = traced(plan, tmp_path, budget="1 MiB")
        needed = {"M": {"tid"}, "X": {"tid", "dur", "cat"}, "C": set()}
        for event in events:
            keys = {"ph", "name", "pid", "ts", "args"} | needed[event["ph"]]
            assert set(event) == keys
            assert isinstance(event["name"], str) and event["name"]
            assert event["ts"] >= 0 and event.get("dur", 0) >= 0
            if event["ph"] == "C":
                assert all(isinstance(each, int) for each in event["args"].values())
        times = [event["ts"] for event in events]
        assert times == sorted(times)
        for name in ("live bytes", "held after the step"):
            own = [event["ts"] for event in events if event["ph"] == "C" and event["name"] == name]
            assert len(own) == len(set(own))


def test_slices_nest_and_are_the_schedule(net: rg.ReversibleModule, tmp_path: Path) -> None:
    for plan in plans(net).values():
        moments = rg.simulate(plan)
        slices = [event for event in traced(plan, tmp_path) if event["ph"] == "X"]
        open_until: list[int] = []
        depths: Counter[int] = Counter()
        for event in slices:
            start = nanoseconds(event, "ts")
            end = start + nanoseconds(event, "dur")
            while open_until and open_until[-1] <= start:
                open_until.pop()
            assert all(end <= each for each in open_until)
            depths[len(open_until)] += 1
            open_until.append(end)
        assert depths[0] == 2 and max(depths) <= 2
        steps = [event for event in slices if "step" in event["args"]]
        assert [event["cat"] for event in steps] == [each.step.action for each in moments]
        assert [event["args"]["node"] for event in steps] == [each.step.node for each in moments]
        assert [event["args"]["most bytes during it"] for event in steps] == [
            each.peak_bytes for each in moments
        ]
        stages = {event["name"] for event in slices if event["cat"] == "stage"}
        assert stages == {
            each.step.stage for each in moments if each.step.stage not in ("", each.step.node)
        } | {each.step.node for each in moments if each.step.action in ("invert", "recompute")}


def test_the_counter_reaches_the_predicted_peak_and_the_measured_one(
    net: rg.ReversibleModule, tmp_path: Path
) -> None:
    for plan in plans(net).values():
        net.plan = plan
        dots = rg.track(net, torch.randn(5, 6))
        events = traced(plan, tmp_path, measured=dots, budget=12345)
        counters = [event for event in events if event["ph"] == "C"]
        live = [event["args"]["bytes"] for event in counters if event["name"] == "live bytes"]
        assert max(live) == plan.peak_bytes
        moments = rg.simulate(plan)
        held = [sum(event["args"].values()) for event in counters if event["name"] == "held after the step"]
        assert held == [each.live_bytes for each in moments]
        measured = [event["args"]["bytes"] for event in counters if event["name"] == "measured live bytes"]
        assert measured == [count for _, count in dots]
        assert {each["args"]["bytes"] for each in counters if each["name"] == "budget"} == {12345}
        assert max(measured) == plan.peak_bytes  # the prediction is exact here


# The snapshot.


def unpickled(path: Path) -> dict[str, Any]:
    return pickle.loads(path.read_bytes())


def snapshot(plan: rg.Plan, path: Path) -> dict[str, Any]:
    return unpickled(rg.draw(plan, path / "plan.pickle"))


def test_replayed_allocations_reach_the_predicted_peak(net: rg.ReversibleModule, tmp_path: Path) -> None:
    for plan in plans(net).values():
        data = snapshot(plan, tmp_path)
        (events,) = data["device_traces"]
        assert events[0]["action"] == "segment_alloc"
        begin, end = events[0]["addr"], events[0]["addr"] + events[0]["size"]
        live: dict[int, int] = {}
        asked: list[int] = []
        most = 0
        for event in events[1:]:
            address, size = event["addr"], event["size"]
            if event["action"] == "alloc":
                assert begin <= address and address + size <= end
                assert all(address + size <= each or each + live[each] <= address for each in live)
                live[address] = size
                most = max(most, sum(live.values()))
            elif event["action"] == "free_requested":
                assert live[address] == size
                asked.append(address)
            else:
                assert event["action"] == "free_completed" and asked.pop() == address
                del live[address]
        assert most == plan.peak_bytes
        assert sum(live.values()) == rg.simulate(plan)[-1].live_bytes
        (segment,) = data["segments"]
        active = {each["address"]: each["size"] for each in segment["blocks"] if each["state"] != "inactive"}
        assert active == live
        assert sum(each["size"] for each in segment["blocks"]) == segment["total_size"] == end - begin


def test_live_bytes_after_each_step_are_the_simulators(net: rg.ReversibleModule, tmp_path: Path) -> None:
    for plan in plans(net).values():
        moments = rg.simulate(plan)
        allocated: Counter[int] = Counter()
        lines = []
        for event in snapshot(plan, tmp_path)["device_traces"][0][1:]:
            if event["action"] == "alloc":
                lines.append(event["frames"][0]["line"])
                allocated[lines[-1]] += event["size"]
        assert lines == sorted(lines)
        assert set(lines) <= set(range(1, len(moments) + 1))
        for line, size in allocated.items():  # what is allocated in a step covers what it adds
            before = moments[line - 2].live_bytes if line > 1 else 0
            assert before + size >= moments[line - 1].peak_bytes


def test_frames_say_what_lies_there_and_when(net: rg.ReversibleModule, tmp_path: Path) -> None:
    plan = plans(net)["least"]
    events = snapshot(plan, tmp_path)["device_traces"][0][1:]
    names = {event["frames"][0]["name"] for event in events}
    assert "value stem" in names or any(name.startswith("value ") for name in names)
    assert any(name.startswith("gradient of ") for name in names)
    assert any(name.startswith("internals of ") for name in names)
    assert "" not in names
    assert {event["frames"][2]["name"] for event in events} == {"forward", "backward"}
    moments = rg.simulate(plan)
    for event in events:
        if event["action"] == "alloc" and event["frames"][0]["name"].startswith("value "):
            step = moments[event["frames"][0]["line"] - 1].step
            made = {
                *step.makes,
                *(plan.graph.node[step.node].outputs if step.node in plan.graph.node else ()),
            }
            made |= {plan.graph.loss.name} if plan.graph.loss is not None else set()
            assert event["frames"][0]["name"].removeprefix("value ") in made


def test_torchs_own_functions_take_a_snapshot(net: rg.ReversibleModule, tmp_path: Path) -> None:
    for plan in plans(net).values():
        data = snapshot(plan, tmp_path)
        left = sum(block["requested_size"] for block in data["segments"][0]["blocks"])
        for function in (_memory_viz.memory, _memory_viz.segments):
            lines = function(data, format_flamegraph=lambda text: text).splitlines()
            assert lines
            stacks = [line.rpartition(" ") for line in lines]
            assert sum(int(size) for stack, _, size in stacks if "active_allocated" in stack) == left
        assert "total_allocated: " in _memory_viz.segsum(data)
        assert _memory_viz.trace(data).startswith("Device 0")
        for plot in (_memory_viz.trace_plot, _memory_viz.segment_plot):
            page = plot(data)
            assert "snapshot.pickle" in page
        assert "snapshot.pickle" in _memory_viz.trace_plot(data, filter_freed=True)


def test_the_pickle_has_only_what_the_viewers_own_reader_knows(
    net: rg.ReversibleModule, tmp_path: Path
) -> None:
    """The page reads pickles with JavaScript of its own: plain data in protocol 2 to 4."""
    import pickletools

    known = {
        *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NEWTRUE", "NEWFALSE", "NONE"),
        *("BINUNICODE", "SHORT_BINUNICODE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "DICT", "LIST"),
        *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS"),
    }
    operations = list(pickletools.genops(rg.draw(net.plan, tmp_path / "plan.pickle").read_bytes()))
    assert {operation.name for operation, _, _ in operations} <= known
    assert operations[0][1] == 4


def test_a_plan_without_known_costs_is_exported_empty(tmp_path: Path) -> None:
    plan = plan_for(revnet())
    data = snapshot(plan, tmp_path)
    assert data == {"segments": [], "device_traces": [[]]}
    assert _memory_viz.memory(data, format_flamegraph=lambda text: text) == ""
    assert any(
        event["ph"] == "X"
        for event in json.loads(rg.draw(plan, tmp_path / "plan.trace.json").read_text())["traceEvents"]
    )

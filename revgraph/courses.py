"""Courses: how the memory of one node runs, forward and backward, as a list of events."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

# What an event says; the words after it are its operands.
#   use PEAK NET     storages of the node's own come and go: PEAK bytes more at most, NET at the end
#   born LABEL SIZE  a storage that others may hold begins, held by the node
#   laid LABEL SIZE  likewise, but only where the value is asked for: a copy with the strides of the forward's
#   same LABEL OTHER LABEL is the storage OTHER
#   state SIZE       what the forward notes for replays, copies of buffers that it writes: it goes with the
#                    node's last replay, and with the whole forward where there is none
#   identity OUTPUT INPUT  an output is the very tensor of an input, by indices: they share their gradient
#   drop LABEL       the node lets go of a storage
#   grad INDEX LABEL a gradient for the input of this index, which lies in the storage LABEL; further indices
#                    are those of parameters that other nodes use too
#   replay           the values that a replay reads must be there from here on
#   done             the replay has ended
Event = tuple[Any, ...]
OPERANDS: dict[str, tuple[type, ...]] = {
    "use": (int, int),
    "born": (str, int),
    "laid": (str, int),
    "same": (str, str),
    "state": (int,),
    "identity": (int, int),
    "drop": (str,),
    "grad": (int, str),
    "replay": (),
    "done": (),
}
REPLAY, DONE = ("replay",), ("done",)
PLACED = re.compile(r"(in|out|go)([0-9]{1,6})")
# Bytes, FLOPs and sizes stay below this, so that sums over thousands of nodes fit into 64 bits.
LARGEST = 2**48


class Work(NamedTuple):
    """What running something takes: FLOPs, bytes that operators read and write, and how many operators.

    Views are no operators here: they touch no element.
    """

    flops: int = 0
    moved_bytes: int = 0
    operators: int = 0

    def plus(self, other: Work) -> Work:
        return Work(*(one + two for one, two in zip(self, other, strict=True)))

    def minus(self, other: Work) -> Work:
        return Work(*(one - two for one, two in zip(self, other, strict=True)))


NOTHING = Work()


class Brief(NamedTuple):
    """Events to the same end as a node's own, and fewer, where all that they make is asked for.

    What a node reads is held until it has run, and so is what is asked for of it: a node that lets go of
    these while it runs need not hold them at all. So the labels in `passing` are not held, and what begins
    under those in `making` is "made": whoever asks for it is the first to hold it. All that comes and goes
    between two events of another kind is one "use", in which the bytes of what is "made" or "begun" count;
    and a gradient that the node lets go of at once is one to "give".
    """

    events: tuple[Event, ...]
    passing: frozenset[str] = frozenset()
    making: tuple[str, ...] = ()

    @classmethod
    def of_run(cls, events: tuple[Event, ...]) -> Brief:
        """Of events in which the node's function runs."""
        said = Counter(part for event in events for part in event[1:] if isinstance(part, str))
        dropped = {event[1] for event in events if event[0] == "drop"}
        passing = {label for label in dropped if said[label] == 1 and label.startswith(("in", "out"))}
        making = tuple(
            event[1]
            for event in events
            if event[0] == "born"
            and event[1] in dropped
            and said[event[1]] == 2
            and (event[1] == "target" or PLACED.fullmatch(event[1]))
        )
        kept = [
            ("made", *event[1:]) if event[0] == "born" and event[1] in making else event
            for event in events
            if event[0] != "drop" or event[1] not in passing.union(making)
        ]
        return cls(_summed(kept), frozenset(passing), making)

    @classmethod
    def of_backward(cls, events: tuple[Event, ...]) -> Brief:
        return cls(_summed(events))


def _summed(events: Sequence[Event]) -> tuple[Event, ...]:
    """Events with what comes and goes between two others as one, and gradients that are given away."""
    found: list[Event] = []
    begun: list[Event] = []
    most = net = 0

    def close() -> None:
        nonlocal most, net
        if most or net:
            found.append(("use", most, net))
        found.extend(begun)
        begun.clear()
        most = net = 0

    for event in events:
        if event[0] == "use":
            most, net = max(most, net + event[1]), net + event[2]
        elif event[0] in ("born", "made"):
            net += event[2]
            most = max(most, net)
            begun.append(("begun" if event[0] == "born" else "made", *event[1:]))
        else:
            close()
            if event[0] == "drop" and found and found[-1][0] == "grad" and found[-1][2] == event[1]:
                found[-1] = ("give", *found[-1][1:])
            else:
                found.append(event)
    close()
    return tuple(found)


@dataclass(frozen=True)
class Course:
    """The events of a node's forward and backward under one decision, with their work.

    Labels name storages: `in0`, `out0`, `go0` are those of the node's inputs, outputs and output gradients by
    index, `target` is a rebuilt target, and other labels are the node's own. What the node holds past its
    forward has no `drop` in `forward`. `replay_work` is part of neither `forward_work` nor `backward_work`.
    `release` are the events of a node that no gradient reaches, when autograd's graph of it goes: with its
    outputs, and with the graphs of what was made of them.
    """

    forward: tuple[Event, ...] = ()
    backward: tuple[Event, ...] = ()
    forward_work: Work = NOTHING
    replay_work: Work = NOTHING
    backward_work: Work = NOTHING
    release: tuple[Event, ...] = ()

    @cached_property
    def replays(self) -> bool:
        """Whether the backward asks for a replay by itself."""
        return REPLAY in self.backward

    @property
    def held_bytes(self) -> int:
        """Bytes of the node's own storages that it holds from its forward to its backward."""
        noted = sum(event[1] for event in self.forward if event[0] == "state") if self.replays else 0
        return max(0, own_bytes(self.forward) + noted)

    @cached_property
    def before_replay(self) -> tuple[Event, ...]:
        """The backward's events up to the replay; none where there is no replay."""
        return self.backward[: self.backward.index(REPLAY)] if self.replays else ()

    @cached_property
    def in_replay(self) -> tuple[Event, ...]:
        """The events of the replay."""
        if not self.replays:
            return ()
        return self.backward[self.backward.index(REPLAY) + 1 : self.backward.index(DONE)]

    @cached_property
    def after_replay(self) -> tuple[Event, ...]:
        """The backward's events after the replay, all of them where there is none."""
        return self.backward[self.backward.index(DONE) + 1 :] if self.replays else self.backward

    @cached_property
    def forward_in_brief(self) -> Brief:
        return Brief.of_run(self.forward)

    @cached_property
    def replay_in_brief(self) -> Brief:
        return Brief.of_run(self.in_replay)

    @cached_property
    def before_in_brief(self) -> Brief:
        return Brief.of_backward(self.before_replay)

    @cached_property
    def after_in_brief(self) -> Brief:
        return Brief.of_backward(self.after_replay)

    @cached_property
    def identities(self) -> tuple[tuple[int, int], ...]:
        """Outputs that are the very tensor of an input, by indices."""
        return tuple((event[1], event[2]) for event in self.forward if event[0] == "identity")

    @cached_property
    def gradients(self) -> tuple[int, ...]:
        """For each gradient that the backward gives, the index of its input or parameter."""
        return tuple(event[1] for event in self.backward if event[0] == "grad")

    @cached_property
    def dropped_after_replay(self) -> frozenset[str]:
        """The labels of what is held until after the replay."""
        return frozenset(event[1] for event in self.after_replay if event[0] == "drop")


FIELDS = tuple(each.name for each in fields(Course))


def own_bytes(events: Iterable[Event]) -> int:
    """Bytes of the node's own storages that stay when these events are over."""
    return sum(event[2] for event in events if event[0] == "use")


def verify_course(course: Course, inputs: int, outputs: int, shared: int) -> None:
    """Nothing, where the course fits a node of so many inputs, outputs and shared parameters.

    Raises:
        ValueError: an event names an input, output, parameter or storage that is not there, or a replay that
            has no end.
    """
    known: set[str] = set()
    for event in (*course.forward, *course.backward, *course.release):
        labels = [part for part in event[1:] if isinstance(part, str)]
        begun = event[1] if event[0] in ("born", "laid", "same") else None
        for label in labels:
            place = PLACED.fullmatch(label)
            if place is None and label.startswith(("in", "out", "go")):
                raise ValueError(f"the label {label!r:.60} is none of a storage")
            if place is not None and int(place[2]) >= (inputs if place[1] == "in" else outputs):
                raise ValueError(f"the label {label!r} is of no input or output of the node")
            if place is None and label not in ("target", begun) and label not in known:
                raise ValueError(f"event {event!r:.60} names a storage that has not begun")
        known.update(labels)
        if event[0] == "identity" and not (0 <= event[1] < outputs and 0 <= event[2] < inputs):
            raise ValueError(f"event {event!r:.60} is of no input or output of the node")
        if event[0] == "grad" and not 0 <= event[1] < inputs + shared:
            raise ValueError(f"event {event!r:.60} is of no input or shared parameter of the node")
    marks = [event[0] for event in course.backward if event[0] in ("replay", "done")]
    if marks not in ([], ["replay", "done"]):
        raise ValueError(f"its replays begin and end as {', '.join(marks)}, not once each")


def course_from(item: Any) -> Course:
    """The course in a JSON object.

    Raises:
        ValueError: a field is missing, unknown or of the wrong type.
    """
    if not isinstance(item, dict) or {*item, "release"} != set(FIELDS):
        raise ValueError(f"a Course is an object with {', '.join(FIELDS)}, not {item!r:.60}")
    work = [_work(item[key]) for key in ("forward_work", "replay_work", "backward_work")]
    release = _events(item.get("release", []))
    return Course(_events(item["forward"]), _events(item["backward"]), *work, release=release)


def _work(item: Any) -> Work:
    if not isinstance(item, list) or len(item) != len(Work._fields):
        raise ValueError(f"work is a list of {', '.join(Work._fields)}, not {item!r:.60}")
    for count in item:
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < LARGEST:
            raise ValueError(f"{count!r:.60} should be a whole number from 0 to {LARGEST - 1}")
    return Work(*item)


def _events(items: Any) -> tuple[Event, ...]:
    if not isinstance(items, list):
        raise ValueError(f"events should be a list, not {items!r:.60}")
    return tuple(_event(item) for item in items)


def _event(item: Any) -> Event:
    if not isinstance(item, list) or not item or item[0] not in OPERANDS:
        raise ValueError(f"{item!r:.60} is no event; events are {', '.join(OPERANDS)}")
    kinds = OPERANDS[item[0]]
    if len(item) != len(kinds) + 1 or any(
        not isinstance(part, kind) or isinstance(part, bool)
        for part, kind in zip(item[1:], kinds, strict=True)
    ):
        raise ValueError(f"event {item!r:.60} should have operands {', '.join(k.__name__ for k in kinds)}")
    if any(isinstance(part, int) and abs(part) >= LARGEST for part in item[1:]):
        raise ValueError(f"event {item!r:.60} holds a number of {LARGEST} or more")
    return tuple(item)

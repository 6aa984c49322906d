"""The parts of a graph as data: values, nodes and what they cost; and how they are read from JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from revgraph.courses import LARGEST, Course, course_from

Kind = Literal["input", "coupling", "boundary", "wiring", "output"]
KINDS: tuple[str, ...] = get_args(Kind)
MOST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor between nodes.

    `storage` names the value that owns the memory: the value itself, or the one it is a view of.
    `nbytes` are the bytes of that storage.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    storage: str
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one node costs; bytes count storages that are neither values nor parameters.

    `saved_bytes`: internals that autograd holds from forward to backward when the node is kept.
    `saved_values`: the values that autograd holds besides.
    `flops`: of one forward evaluation; `backward_flops` of its backward.
    `heavy_results`: how many heavy operators (matrix products, convolutions) its function runs, and
    `heavy_names` what they are called, by the modules whose weights they read.
    `frees`: the values that the forward lets go of after this node.
    `shared`: the node's parameters that other nodes use too, and `shared_bytes` what a sum of gradients of
    each takes; 0 where these are sparse, and hang on numbers.
    `courses`: how its memory runs, by decision.
    `rounding`, `growth`: of a coupling's target when it is inverted, the relative error that comes of
    rounding alone, and by how much it has grown from that of what the inverse reads; 0 until measured.
    """

    saved_bytes: int = 0
    saved_values: tuple[str, ...] = ()
    flops: int = 0
    backward_flops: int = 0
    heavy_results: int = 0
    frees: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    courses: Mapping[str, Course] = field(default_factory=dict, repr=False, hash=False)
    rounding: float = 0.0
    growth: float = 0.0
    heavy_names: tuple[str, ...] = ()
    shared_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One evaluation in the network.

    A coupling computes its output from its `target` and the remaining inputs, the others; given the output
    and the others it gives back the target. What its function returns besides are further outputs. `module`
    is the path of the module that the node calls ("" where it calls none, or several); `expression` is the
    node as a person would write it; `where` is the line of the user's code or spec that made it. An
    `additive` coupling only adds or subtracts, which saves nothing for its backward: to recompute it takes
    no target. `others` are the inputs that a coupling reads besides its target. `law` names how a coupling
    joins its target and its function's result: "additive", "affine", "rotation".
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    module: str = ""
    target: str | None = None
    expression: str = ""
    where: str = ""
    cost: Cost = field(default_factory=Cost)
    additive: bool = False
    law: str = ""
    others: tuple[str, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "others", tuple([name for name in self.inputs if name != self.target]))

    @property
    def computes(self) -> str:
        """The expression, with the name of a law that is no addition in place of the sign.

        >>> node = Node("y", "coupling", ("x", "z"), ("y",), expression="x (+) f(z)", law="affine")
        >>> node.computes
        'x (affine) f(z)'
        """
        if self.law in ("", "additive"):
            return self.expression
        return self.expression.replace("(+)", f"({self.law})", 1)


def value_from(item: Any) -> Value:
    """The value in a JSON object.

    Raises:
        ValueError: a field is missing, unknown or of the wrong type.
    """
    return Value(**_checked(Value, item, VALUE_FORMS))


def node_from(item: Any) -> Node:
    """The node in a JSON object.

    Raises:
        ValueError: a field is missing, unknown or of the wrong type.
    """
    return Node(**_checked(Node, item, NODE_FORMS))


class CourseTable:
    """The courses of many nodes as JSON, each distinct set of them once; nodes name theirs by its place."""

    def __init__(self, data: Any = ()) -> None:
        if not isinstance(data, (list, tuple)) or not all(isinstance(item, dict) for item in data):
            raise ValueError(f"courses should be a list of objects, not {data!r:.60}")
        self.data: list[Any] = list(data)
        self._places: dict[Any, int] = {}
        self._read = [{_name(key): course_from(each) for key, each in item.items()} for item in data]

    def written(self, node: Node) -> dict[str, Any]:
        """A node as a JSON object."""
        courses = node.cost.courses
        key = tuple(courses.items())
        if key not in self._places:
            self._places[key] = len(self.data)
            self.data.append({name: asdict(course) for name, course in courses.items()})
        item = asdict(replace(node, cost=replace(node.cost, courses={})))
        del item["others"]  # they follow from inputs and target
        item["cost"]["courses"] = self._places[key]
        return item

    def read(self, item: Any) -> Node:
        """The node in a JSON object.

        Raises:
            ValueError: a field is missing, unknown or of the wrong type.
        """
        cost = item.get("cost") if isinstance(item, dict) else None
        if isinstance(cost, dict) and "courses" in cost:
            place = _count(cost["courses"])
            if place >= len(self._read):
                raise ValueError(f"a node names courses {place}, and there are {len(self._read)}")
            item = {**item, "cost": {**cost, "courses": self._read[place]}}
        return node_from(item)


def _checked(kind: type[Any], item: Any, forms: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    known = [each.name for each in fields(kind) if each.init]
    if not isinstance(item, dict):
        raise ValueError(f"a {kind.__name__} is an object, not {item!r:.60}")
    for key in item:
        if key not in known:
            raise ValueError(f"a {kind.__name__} has no field {key!r:.60}; it has {', '.join(known)}")
    try:
        return {key: forms[key](value) for key, value in item.items()}
    except ValueError as error:
        raise ValueError(f"{kind.__name__} {item.get('name', '')!r:.60}: {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.60} should be text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{value!r:.60} holds half of a surrogate pair, which no file can hold")
    return value


def _name(value: Any) -> str:
    if not _text(value):
        raise ValueError("a name cannot be empty")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < LARGEST:
        raise ValueError(f"{value!r:.60} should be a whole number from 0 to {LARGEST - 1}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r:.60} should be true or false")
    return value


def _kind(value: Any) -> Any:
    if value not in KINDS:
        raise ValueError(f"{value!r:.60} is no kind of node; the kinds are {', '.join(KINDS)}")
    return value


def _several(form: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{value!r:.60} should be a list")
        return tuple(form(item) for item in value)

    return read


def _courses(value: Any) -> Mapping[str, Course]:
    if not isinstance(value, dict) or not all(isinstance(each, Course) for each in value.values()):
        raise ValueError(f"{value!r:.60} should be the place of courses in the graph's list")
    return value


def _size(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST:
        raise ValueError(f"{value!r:.60} should be a number from 0 to {MOST:.3g}")
    return float(value)


COST_FORMS: dict[str, Callable[[Any], Any]] = {
    "saved_bytes": _count,
    "saved_values": _several(_name),
    "flops": _count,
    "backward_flops": _count,
    "heavy_results": _count,
    "frees": _several(_name),
    "shared": _several(_name),
    "courses": _courses,
    "rounding": _size,
    "growth": _size,
    "heavy_names": _several(_text),
    "shared_bytes": _several(_count),
}
VALUE_FORMS: dict[str, Callable[[Any], Any]] = {
    "name": _name,
    "shape": _several(_count),
    "dtype": _name,
    "nbytes": _count,
    "storage": _name,
    "device": _name,
}
NODE_FORMS: dict[str, Callable[[Any], Any]] = {
    "name": _name,
    "kind": _kind,
    "inputs": _several(_name),
    "outputs": _several(_name),
    "module": _text,
    "target": lambda value: None if value is None else _name(value),
    "expression": _text,
    "where": _text,
    "cost": lambda value: Cost(**_checked(Cost, value, COST_FORMS)),
    "additive": _flag,
    "law": _text,
}

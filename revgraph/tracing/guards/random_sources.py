"""Generators of random numbers and clocks: what gives something else each time, which no graph may freeze."""

from __future__ import annotations

import datetime
import os
import random
import sys
import time
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch

from revgraph.tracing.proxies import Untraceable


class RandomSources:
    """The generators of random numbers that the user's code may draw from, and where they stand.

    Torch's, Python's and numpy's own are among them from the start; those that a model holds are added when
    they are seen.
    """

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}
        self._states = self._now()

    def add(self, name: str, source: Any) -> None:
        """Watch another generator from now on."""
        if all(each is not source for each in self._held.values()):
            self._states[name] = _state_of(source)
            self._held[name] = source

    def settle(self) -> None:
        """Take the states of now: what was drawn until now was drawn by the graph's own calls."""
        self._states = self._now()

    def check(self) -> None:
        """Refuse random numbers that the user's code drew by itself: a graph would draw them only once."""
        if drawn := self.drawn():
            raise Untraceable(
                f"random numbers are drawn from {drawn} outside of any traced tensor, so a graph would draw "
                "them only once. Draw them like a traced tensor (torch.randn_like), or give them as an input"
            )

    def drawn(self) -> str:
        """The name of a generator that was drawn from since; "" for none."""
        for name, source in self._sources():
            if _state_of(source) != self._states.get(name):
                return name
        return ""

    def _now(self) -> dict[str, Any]:
        return {name: _state_of(source) for name, source in self._sources()}

    def _sources(self) -> Iterator[tuple[str, Any]]:
        yield "torch's generator", torch.default_generator
        yield "Python's random", PYTHONS
        if torch.cuda.is_initialized():
            for device in range(torch.cuda.device_count()):
                yield f"the generator of cuda:{device}", torch.cuda.default_generators[device]
        if "numpy.random" in sys.modules:
            yield "numpy's random", sys.modules["numpy.random"].mtrand._rand
        yield from self._held.items()


# The generator behind the functions of `random`.
PYTHONS: random.Random = random.random.__self__
# What tells something else each time it is called.
BUILTIN = type(time.time)
METHODS = (BUILTIN, MethodType)
SILENT = frozenset((time.sleep, time.mktime, time.strptime, time.get_clock_info))
DATES = frozenset(("now", "utcnow", "today"))
CLOCKS = frozenset(each for each in vars(time).values() if type(each) is BUILTIN) - SILENT | {os.urandom}


def is_clock(thing: Any) -> bool:
    """Whether a function tells the time."""
    if type(thing) is not BUILTIN:
        return False
    owner = thing.__self__
    if isinstance(owner, type) and issubclass(owner, datetime.date):
        return thing.__name__ in DATES
    return thing in CLOCKS


def read_once(clock: object, path: str) -> str:
    """What is wrong with code that reads a clock, or the system's random bytes."""
    does = "draws numbers from the system" if clock is os.urandom else "reads a clock"
    return f"it {does}, {path}, which a graph would do only once"


def is_random_source(thing: Any) -> bool:
    """Whether a thing is a generator of random numbers, of torch, Python or numpy."""
    if isinstance(thing, (torch.Generator, random.Random)):
        return True
    numpy = sys.modules.get("numpy.random")
    return numpy is not None and isinstance(thing, (numpy.Generator, numpy.RandomState, numpy.BitGenerator))


def source_behind(thing: Any) -> Any:
    """The generator that a thing is or, as a method of one, draws from; None for neither."""
    if not isinstance(thing, METHODS) and type(thing).__name__ != "cython_function_or_method":
        return thing if is_random_source(thing) else None
    owner = getattr(thing, "__self__", None)
    return owner if is_random_source(owner) else None


def _state_of(source: Any) -> Any:
    if isinstance(source, torch.Generator):
        return source.get_state().numpy().tobytes()
    if isinstance(source, random.SystemRandom):
        raise Untraceable("it draws random numbers from the system, which a graph would draw only once")
    if isinstance(source, random.Random):
        return source.getstate()
    if isinstance(source, sys.modules["numpy.random"].RandomState):  # one of its normal numbers may wait
        state = source.get_state(legacy=False)
    else:
        state = getattr(source, "bit_generator", source).state
    held = state["state"]
    if "pos" not in held:
        return repr(state)
    # The Mersenne twister's numbers are more than `repr` shows.
    return held["key"].tobytes(), held["pos"], state.get("has_gauss"), state.get("gauss")

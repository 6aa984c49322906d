"""Reading YAML text into a tree, within bounds: no tags, no duplicate keys, no expansion of aliases."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
)

from revgraph.errors import SpecError
from revgraph.specs.hints import listed, meant, shortened
from revgraph.specs.limits import Limits
from revgraph.specs.scalars import readable, resolve
from revgraph.specs.trees import Scalar, Tree, listing, table, too_deep, too_large


def read_yaml(text: str, name: str, limits: Limits) -> Tree:
    """The tree of a YAML document; places are "name:line".

    Raises:
        SpecError: the text is no YAML, is too large, or holds what a specification never needs: tags, merge
            keys, duplicate keys, several documents, aliases to what contains them.
    """
    if len(text) > limits.text_bytes:
        raise SpecError(
            f"{name}: the text has {len(text)} characters; a specification has at most {limits.text_bytes}"
        )
    composer = _Composer(name, limits)
    try:
        loader = yaml.SafeLoader(text)
        while loader.check_event():
            composer.take(loader.get_event())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = name if mark is None else f"{name}:{mark.line + 1}"
        context = f" ({error.context})" if error.context else ""
        tab = " Indent with spaces, not tabs." if "'\\t'" in str(error.problem) else ""
        raise SpecError(f"{place}: this is not YAML: {error.problem}{context}.{tab}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(
            f"{name}:{line}: this is not YAML: it holds the control character {text[error.position]!r}"
        ) from None
    except (ValueError, OverflowError) as error:
        raise SpecError(f"{name}: this is not YAML: {error}") from None
    if composer.root is None:
        raise SpecError(f"{name}: the specification is empty. It needs at least `inputs` and `layers`.")
    return composer.root


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet; `keys` is None for a list."""

    where: str
    anchor: str | None
    items: list[Tree] = field(default_factory=list)
    keys: dict[str, None] | None = None


class _Composer:
    """Builds the tree from the parser's events, with a stack of its own instead of recursion."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self.root: Tree | None = None
        self._stack: list[_Open] = []
        self._anchors: dict[str, Tree] = {}
        self._nodes = 0
        self._documents = 0

    def take(self, event: Event) -> None:
        assert event.start_mark is not None
        where = f"{self.name}:{event.start_mark.line + 1}"
        if isinstance(event, DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise SpecError(f"{where}: a second document begins here. A specification is one document.")
        elif isinstance(event, CollectionEndEvent):
            self._close()
        elif isinstance(event, NodeEvent):
            self._nodes += 1
            if self._nodes > self.limits.nodes:
                raise too_large(where, self.limits)
            if isinstance(event, AliasEvent):
                self._place(self._aliased(event.anchor or "", where), where)
            elif isinstance(event, (ScalarEvent, CollectionStartEvent)):
                self._begin(event, where)

    def _begin(self, event: ScalarEvent | CollectionStartEvent, where: str) -> None:
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise SpecError(
                f"{where}: the tag {shortened(tag)} asks for something other than a list, mapping, "
                "text or number. A specification has no tags: leave it out."
            )
        if isinstance(event, ScalarEvent):
            readable(event.value, where)
            as_key = bool(self._stack) and self._awaits_key(self._stack[-1])
            value = event.value if event.style or as_key else resolve(event.value, where)
            self._finish(Scalar(value, where), event.anchor)
            return
        if len(self._stack) >= self.limits.depth:
            raise too_deep(where, self.limits)
        self._stack.append(
            _Open(where, event.anchor, keys={} if isinstance(event, MappingStartEvent) else None)
        )

    def _close(self) -> None:
        closed = self._stack.pop()
        if closed.keys is None:
            tree: Tree = listing(closed.items, closed.where, self.limits)
        else:
            tree = table(list(zip(closed.keys, closed.items, strict=True)), closed.where, self.limits)
        self._finish(tree, closed.anchor)

    def _finish(self, tree: Tree, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = tree
        self._place(tree, tree.where)

    def _place(self, tree: Tree, where: str) -> None:
        if not self._stack:
            self.root = tree
            return
        parent = self._stack[-1]
        if self._awaits_key(parent):
            assert parent.keys is not None
            parent.keys[self._key(tree, parent.keys, where)] = None
        else:
            parent.items.append(tree)

    @staticmethod
    def _awaits_key(parent: _Open) -> bool:
        return parent.keys is not None and len(parent.keys) == len(parent.items)

    def _aliased(self, anchor: str, where: str) -> Tree:
        if any(parent.anchor == anchor for parent in self._stack):
            raise SpecError(f"{where}: '*{anchor}' stands inside what it names, so it would never end")
        if anchor not in self._anchors:
            known = f" The names above are {listed(self._anchors)}." if self._anchors else ""
            raise SpecError(
                f"{where}: '*{anchor}' names nothing: '&{anchor}' must stand above it."
                + (meant(anchor, self._anchors) or known)
            )
        return self._anchors[anchor]

    @staticmethod
    def _key(tree: Tree, keys: Container[str], where: str) -> str:
        if not isinstance(tree, Scalar) or not isinstance(tree.value, str):
            raise SpecError(f"{where}: a key must be a word, not a list, mapping or alias")
        if tree.value == "<<":
            raise SpecError(
                f"{where}: merge keys ('<<') are not part of a specification. Write the keys out."
            )
        if tree.value in keys:
            raise SpecError(f"{where}: the key {shortened(tree.value)} stands twice in one mapping")
        return tree.value

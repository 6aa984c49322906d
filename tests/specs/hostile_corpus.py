"""Hostile and broken specifications, as YAML text and as mappings: each is to be refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

HEAD = "inputs: {x: [4]}\nlayers:\n"
LONG = 32_000


def aliases(levels: int) -> str:
    """Lists of ten aliases to lists of ten aliases and so on: 10 ** levels texts when written out."""
    names = [f"l{level}" for level in range(levels)]
    lines = [f"l0: &l0 [{', '.join(['x'] * 10)}]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise(names)]
    return "\n".join(lines) + "\n"


def nested(depth: int, inside: str) -> str:
    return "{layers: [a: " * depth + inside + "], repeat: 100}" * depth


CORPUS: dict[str, Any] = {
    "tag that calls": HEAD + "  - a: !!python/object/apply:os.system ['touch owned']\n",
    "tag that makes": "!!python/object/new:os.system ['touch owned']\n",
    "tag that imports": HEAD + "  - a: !!python/module:os\n",
    "own tag": HEAD + "  - a: !include /etc/passwd\n",
    "binary tag": "a: !!binary aGVsbG8=\n",
    "module path": HEAD + "  - a: {os.system: ['touch owned']}\n",
    "dunder": HEAD + "  - a: {__import__: os}\n",
    "dunder layer": HEAD + "  - __class__: ReLU\n",
    "dunder argument": HEAD + "  - a: {Linear: {__class__: 3}}\n",
    "format string": HEAD + "  - a: '{0.__class__}'\n",
    "expression": "parameters: {a: 2}\n" + HEAD + "  - a: {Linear: ['$a*2', '$(touch owned)']}\n",
    "aliases": aliases(20),
    "aliases in arguments": aliases(12) + HEAD + "  - a: {Linear: *l11}\n",
    "alias to itself": "a: &a [*a]\n",
    "alias to itself in a layer": HEAD + "  - a: &a [b: *a]\n",
    "alias to itself by key": "a: &a {b: {c: *a}}\n",
    "deep braces": "{" * LONG + "\n",
    "deep brackets": "[" * LONG + "\n",
    "deep mixed": "[{a: " * (LONG // 5) + "\n",
    "deep dashes": "- " * (LONG // 2) + "\n",
    "deep keys": "? " * (LONG // 2) + "\n",
    "deep indents": "".join(f"{' ' * level}a:\n" for level in range(250)),
    "deep python": None,
    "endless python": None,
    "wide python": {"inputs": {"x": [4] * 10**6}},
    "many items": "- a\n" * (LONG // 4),
    "many keys": "".join(f"k{index}: b\n" for index in range(LONG // 9)),
    "many documents": "---\n" * (LONG // 4),
    "many directives": "%a b\n" * (LONG // 5),
    "many anchors": "".join(f"- &a{index} b\n" for index in range(LONG // 11)),
    "long text": '"' + "a" * LONG + "\n",
    "long word": "a" * LONG + "\n",
    "long words": "a " * (LONG // 2) + "\n",
    "long escape": '"' + "\\x41" * (LONG // 4) + '"\n',
    "wrong escape": '"\\UFFFFFFFF"\n',
    "long number": HEAD + f"  - a: {{Linear: [{'9' * 30_000}, 4]}}\n",
    "large file": "# " + "a" * 10**7 + "\n",
    "repeat": HEAD + "  - a: {Linear: [4, 4], repeat: 1000000}\n",
    "repeat beyond": HEAD + "  - a: {Linear: [4, 4], repeat: 100000000000000000}\n",
    "repeats in repeats": HEAD + "  - b: " + nested(8, "ReLU") + "\n",
    "repeats in functions": HEAD + "  - a: {Additive: {f: [b: {ReLU: , repeat: 9999}]}, repeat: 9999}\n",
    "repeats, then a mistake": HEAD + "  - a: {Linear: [4, 4], repeat: 19999}\n  - b: {Linear: [4, a]}\n",
    "wide layer": HEAD + "  - a: {Linear: [1000000000, 1000000000]}\n",
    "wide convolution": HEAD + "  - a: {Conv2d: [100000, 100000, 99]}\n",
    "wide kernel": HEAD + "  - a: {Conv3d: [1, 1, 100000]}\n",
    "wide norm": HEAD + "  - a: {LayerNorm: [[100000, 100000, 100000, 100000]]}\n",
    "wide embedding": HEAD + "  - a: {Embedding: [99999999999999999, 99999999999999999]}\n",
    "many wide layers": HEAD + "  - a: {Linear: [4096, 4096], repeat: 1000}\n",
    "many streams": HEAD + "  - a: {Split: 1000000000}\n",
    "negative size": HEAD + "  - a: {Linear: [-1, -1]}\n",
    "large input": "inputs: {x: [100000, 100000, 100000]}\nlayers: [a: ReLU]\n",
    "many dimensions": f"inputs: {{x: [{', '.join(['2'] * 1000)}]}}\nlayers: [a: ReLU]\n",
    "large batch": "batch: 1000000\n" + "inputs: {x: [1000, 1000]}\nlayers: [a: ReLU]\n",
    "list parameter in lists": f"parameters: {{p: [{', '.join(['1'] * 4000)}]}}\n"
    + HEAD
    + f"  - a: {{Linear: [{', '.join(['$p'] * 4000)}]}}\n",
    "zero bytes": "inputs: {x: [4]}\n\0\n",
    "surrogates": "inputs: \ud800\n",
    "byte order marks": "\ufeff\ufeff\n",
    "huge exponent": HEAD + "  - a: {Dropout: 1e99999}\n",
}
cycle: list[Any] = []
cycle.append(cycle)
CORPUS["endless python"] = {"inputs": {"x": [4]}, "layers": cycle}
CORPUS["deep python"] = {"inputs": {}}
for _ in range(5000):
    CORPUS["deep python"] = {"layers": CORPUS["deep python"]}

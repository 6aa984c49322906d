"""`python -m revgraph.cli.shipped`: writes down what `revgraph list` says of the shipped networks.

Counting parameters takes torch and every network built, which is seconds; so they are counted beforehand, and
a test holds the file to the networks.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

LIST = files("revgraph") / "models" / "list.json"


def networks() -> list[dict[str, Any]]:
    """Of each shipped network its `name`, `parameters`, `description` and `settings`, from the file."""
    return json.loads(LIST.read_text(encoding="utf-8"))


def counted() -> list[dict[str, Any]]:
    """The same from the networks themselves."""
    import torch

    from revgraph import specs

    with torch.device("meta"):
        found = [specs.build(name) for name in specs.shipped()]
    return [
        {
            "name": built.name,
            "parameters": sum(weight.numel() for weight in built.module.parameters()),
            "description": built.description,
            "settings": dict(built.parameters),
        }
        for built in found
    ]


if __name__ == "__main__":
    Path(str(LIST)).write_text(json.dumps(counted(), indent=1) + "\n", encoding="utf-8")

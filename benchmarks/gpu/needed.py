"""What `make gpu` needs and this environment lacks. Nothing is imported before it is known to be there."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

# By the names that they are imported by.
PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "networkx": "networkx",
    "scipy": "scipy",
    "graphviz": "graphviz",
    "yaml": "PyYAML",
    "pytest": "pytest",
}


def missing(device: str = "cuda") -> list[str]:
    """What is missing to run on this device, each in a line that says what to do; none if all is there."""
    lacking = [package for name, package in PACKAGES.items() if find_spec(name) is None]
    found = [f"{package}: not installed for {sys.executable}" for package in lacking]
    if "torch" in lacking or device == "cpu":
        return found
    torch = importlib.import_module("torch")
    if torch.version.cuda is None:
        found.append(f"a CUDA build of torch: torch {torch.__version__} has none")
    elif not torch.cuda.is_available():
        found.append(f"an NVIDIA GPU: torch {torch.__version__} sees none")
    return found


def refusal(lacking: list[str]) -> str:
    """What is said where something is missing."""
    return (
        "error: make gpu needs what is not here, and has written nothing:\n"
        + "".join(f"  {each}\n" for each in lacking)
        + "Run it on a machine with an NVIDIA GPU, with GPU_PYTHON=PYTHON for an environment that has these "
        "packages. It downloads nothing."
    )

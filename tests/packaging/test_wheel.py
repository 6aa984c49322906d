"""The wheel builds without a network, installs into an empty environment, and brings along all it needs."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import revgraph

ROOT = Path(__file__).parents[2]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment that holds the wheel, and sees the dependencies of this one."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--python", home / "bin/python")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)
    (site,) = home.glob("lib/*/site-packages")
    # A folder added this way is searched, but the .pth files in it (an editable install's) are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_wheel_has_the_version_of_the_package(wheel: Path) -> None:
    assert wheel.name == f"revgraph-{revgraph.__version__}-py3-none-any.whl"


def test_wheel_carries_the_package_its_specs_and_its_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "revgraph/py.typed" in names
    shipped = {f"revgraph/models/{path.name}" for path in (ROOT / "revgraph/models").glob("*.*")}
    assert "revgraph/models/revnet-38.yaml" in shipped
    assert shipped <= set(names)
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "revgraph").rglob("*.py")}
    assert sources <= set(names)


def test_wheel_carries_nothing_else(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"revgraph", next(top for top in tops if top.endswith(".dist-info"))}


@pytest.mark.slow
def test_installed_wheel_loads_a_shipped_network(clean: Path) -> None:
    code = (
        "import revgraph as rg\n"
        "net = rg.load('revnet-38', batch=2)\n"
        "print(rg.__file__, sum(p.numel() for p in net.parameters()), sep='\\n')"
    )
    where, parameters = run(clean / "python", "-c", code, cwd=clean).split()
    assert Path(where).is_relative_to(clean.parent)
    assert parameters == "464890"


def test_installed_wheel_brings_the_command(clean: Path) -> None:
    assert "revnet-38" in run(clean / "revgraph", "list", cwd=clean)


def test_importing_the_package_imports_no_extra(clean: Path) -> None:
    extras = ["typer", "rich", "accelerate", "safetensors", "sklearn", "matplotlib", "tensorboard"]
    extras += ["transformers", "pytorch_lightning", "peft"]
    code = f"import sys; from revgraph import *; print(*(name for name in {extras} if name in sys.modules))"
    assert run(clean / "python", "-c", code, cwd=clean).split() == []

"""A module imports only from rows above its own, and ``import facezoo`` stays light.

Imports are read from the source, so those inside functions and under TYPE_CHECKING count too.
"""

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import facezoo.errors

PACKAGE = Path(facezoo.errors.__file__).parent

# Top first. An entry stands for the module and, if it is a folder, for everything in it, unless a
# longer entry names a part of it. "__init__" is facezoo/__init__.py.
ROWS = [
    [
        "version",
        "errors",
        "card",
        "display",
        "results",
        "families",
        "geometry",
        "removal",
        "undrawn",
    ],
    ["hub"],
    ["weights"],
    ["convert", "pretrained"],
    ["detector", "training", "freezing", "modes"],
    ["preprocess", "fitting"],
    ["base", "data"],
    ["decoding", "mesh_base", "feature_maps"],
    ["evaluate"],
    ["models", "detector.train", "annotate"],
    ["registry"],
    ["extraction", "finetuning", "sklearn", "export", "reproduce", "plot", "benchmarking"],
    ["publish", "__init__", "cli", "__main__"],
]
# Rows in which modules may import one another, as long as no cycle arises.
FRIENDLY_ROWS = [0, len(ROWS) - 1]


def test_every_module_imports_only_from_rows_above_its_own():
    assert direction_faults(PACKAGE) == []


def test_no_import_cycle():
    assert find_cycle(PACKAGE) is None


def test_a_planted_upward_import_is_caught(tmp_path):
    root = plant(
        tmp_path,
        {
            "card.py": "def f():\n    from facezoo.registry import load\n",
            "registry.py": "from facezoo.card import Card\n",
        },
    )
    assert direction_faults(root) == ["facezoo.card imports facezoo.registry, which is below it"]


def test_a_planted_sideways_import_is_caught(tmp_path):
    root = plant(tmp_path, {"base.py": "import facezoo.data.images\n", "data/images.py": ""})
    (fault,) = direction_faults(root)
    assert fault == "facezoo.base imports facezoo.data.images, which is in its own row"


def test_a_planted_cycle_is_caught(tmp_path):
    root = plant(
        tmp_path,
        {
            "card.py": "from facezoo.results import Faces\n",
            "results.py": "from . import errors\n",
            "errors.py": (
                "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import facezoo.card\n"
            ),
        },
    )
    assert direction_faults(root) == []
    assert set(find_cycle(root)) == {"facezoo.card", "facezoo.results", "facezoo.errors"}


def test_a_cycle_through_a_package_file_is_caught(tmp_path):
    root = plant(
        tmp_path,
        {
            "geometry/__init__.py": "from facezoo.results import Faces\n",
            "geometry/camera.py": "",
            "results.py": "from facezoo.geometry.camera import Camera\n",
        },
    )
    assert set(find_cycle(root)) == {"facezoo.geometry", "facezoo.results"}


def test_a_package_file_may_offer_its_own_modules(tmp_path):
    root = plant(
        tmp_path,
        {
            "models/adv3d/__init__.py": "from .model import Adv3D\n",
            "models/adv3d/model.py": "from facezoo.models.adv3d.losses import kl\n",
            "models/adv3d/losses.py": "",
        },
    )
    assert direction_faults(root) == []
    assert find_cycle(root) is None


@pytest.mark.parametrize("line", ["import facezoo", "from facezoo import load", "from . import x"])
def test_importing_facezoo_itself_is_caught(tmp_path, line):
    root = plant(tmp_path, {"cli.py": line + "\n"})
    assert direction_faults(root) == ["facezoo.cli imports facezoo itself; name the module instead"]


def test_importing_a_module_from_facezoo_is_fine(tmp_path):
    root = plant(tmp_path, {"cli.py": "from facezoo import version\n", "version.py": ""})
    assert direction_faults(root) == []


def test_a_family_that_imports_another_is_caught(tmp_path):
    root = plant(
        tmp_path,
        {
            "models/adv3d/model.py": "from ..ipd_fer import losses\n",
            "models/ipd_fer/losses.py": "",
        },
    )
    (fault,) = direction_faults(root)
    assert fault.endswith("model imports facezoo.models.ipd_fer.losses: families stay apart")


def test_only_the_training_imports_data_in_a_family(tmp_path):
    line = "from facezoo.data.images import Pack\n"
    may = dict.fromkeys(("models/adv3d/train.py", "models/ipd_fer/train/rows.py"), line)
    may["models/adv3d/paper/command.py"] = line
    files = {**may, "models/adv3d/model.py": line, "data/images.py": ""}
    (fault,) = direction_faults(plant(tmp_path, files))
    assert fault == "facezoo.models.adv3d.model imports facezoo.data.images: only its training may"


def test_a_module_without_a_row_is_caught(tmp_path):
    (fault,) = direction_faults(plant(tmp_path, {"helpers.py": ""}))
    assert fault == "facezoo.helpers has no row: add it to ROWS in tests/test_imports.py"


def test_import_and_list_models_load_no_heavy_package_and_import_is_fast():
    code = """
import sys, time
start = time.perf_counter()
import facezoo
seconds = time.perf_counter() - start
assert facezoo.list_models()
heavy = {"torch", "timm", "torchvision", "huggingface_hub", "matplotlib"} & set(sys.modules)
assert not heavy, f"import facezoo loaded {heavy}"
print(seconds)
"""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) < 0.3


# --- the checker -------------------------------------------------------------------------------


def plant(folder: Path, files: dict[str, str]) -> Path:
    """A small package tree; folders get an empty ``__init__.py`` where none is given."""
    root = folder / "facezoo"
    for name, text in {"__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for inner in (path for path in root.rglob("*") if path.is_dir()):
        if not (inner / "__init__.py").exists():
            (inner / "__init__.py").touch()
    return root


def modules(root: Path) -> dict[str, Path]:
    """Every module below a package folder, by dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> list[str]:
    """The facezoo modules that one module imports, anywhere in its source."""
    targets = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = absolute(name, path, node)
            inner = [f"{start}.{alias.name}" for alias in node.names]
            targets += [target if target in known else start for target in inner]
    return sorted({target for target in targets if target.split(".")[0] == "facezoo"})


def absolute(name: str, path: Path, node: ast.ImportFrom) -> str:
    """The module that a ``from`` import starts at, relative dots resolved."""
    if node.level == 0:
        return node.module or ""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def row_of(name: str) -> int | None:
    """The row of a module: that of the longest entry that covers it."""
    inner = name.removeprefix("facezoo").lstrip(".") or "__init__"
    while inner:
        for row, entries in enumerate(ROWS):
            if inner in entries:
                return row
        inner = inner.rpartition(".")[0]
    return None


def folder_of(name: str) -> str:
    """The folder whose modules may import one another: a family's, or one below facezoo."""
    parts = name.split(".")
    return ".".join(parts[: 3 if parts[1:2] == ["models"] else 2])


def direction_faults(root: Path) -> list[str]:
    """One sentence for each module or import that breaks the rows."""
    known = modules(root)
    faults = [
        f"{name} has no row: add it to ROWS in tests/test_imports.py"
        for name in known
        if row_of(name) is None
    ]
    for name, path in known.items():
        for target in imported(name, path, known):
            if reason := fault(name, target):
                faults.append(f"{name} imports {target}{reason}")
    return faults


def fault(name: str, target: str) -> str | None:
    """What is wrong with one module importing another; None if nothing is."""
    here, there = row_of(name), row_of(target)
    family = folder_of(name) if name.startswith("facezoo.models.") else None
    if target == "facezoo":
        return " itself; name the module instead"
    if (
        family
        and target.startswith("facezoo.data")
        and not f"{name}.".startswith((f"{family}.train.", f"{family}.paper."))
    ):
        return ": only its training may"
    if here is None or there is None or folder_of(name) == folder_of(target):
        return None
    if family and target.startswith("facezoo.models."):
        return ": families stay apart"
    if there > here:
        return ", which is below it"
    return ", which is in its own row" if there == here and here not in FRIENDLY_ROWS else None


def find_cycle(root: Path) -> list[str] | None:
    """Modules that import each other in a ring; None if there is no ring.

    Importing a.b runs a/__init__.py first, so that counts too, except for modules inside a.
    """
    known = modules(root)
    graph = {}
    for name, path in known.items():
        targets = imported(name, path, known)
        reached = {parent for target in targets for parent in [target, *parents(target)]}
        graph[name] = {
            other for other in reached if other in targets or not f"{name}.".startswith(f"{other}.")
        } - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def parents(name: str) -> list[str]:
    """The packages that hold a module."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]

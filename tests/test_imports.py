"""Imports only go down the rows, and ``import facezoo`` stays light.

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

# The lowest row first. An entry covers a module, or a folder with everything in it, unless a longer
# entry names a part of it. "__init__" is facezoo/__init__.py.
ROWS = [
    [
        *("version", "errors", "inference", "folding", "landmarks", "memory", "results"),
        *("display", "progress"),
    ],
    ["hub", "geometry"],
    ["runtimes"],
    ["preprocess", "training"],
    ["data"],
    ["models"],
    ["evaluate"],
    [
        "models.adv3d",
        "models.face_detector",
        "models.ipd_fer",
        "models.latent_simclr",
        "models.latentface",
    ],
    ["registry"],
    ["comparison", "faces"],
    ["evaluate.benchmark", "extraction", "finetuning", "sklearn", "export", "plot", "registration"],
    ["__init__", "__main__", "cli", "demo"],
]
# In these rows modules of different folders may import each other, as long as no cycle arises.
FRIENDLY_ROWS = [0, len(ROWS) - 1]
LONGEST_CHAIN = 13


def modules(root: Path) -> dict[str, Path]:
    """List the modules below a package folder by dotted name, without the package's own."""
    names = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return names


def imports(path: Path, names: dict[str, Path]) -> set[str]:
    """List the facezoo modules that a file imports, anywhere in its source."""
    targets = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix("facezoo.") in names
                targets.add(inner if is_module else node.module or "")
        elif isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
    return {t.removeprefix("facezoo.") for t in targets if t.startswith("facezoo.")} & set(names)


def row_of(name: str) -> int:
    """Find the row of a module: that of the longest entry that covers it."""
    entries = {entry: row for row, line in enumerate(ROWS) for entry in line}
    while name not in entries:
        assert "." in name, f"{name} has no row: add it to ROWS in tests/test_imports.py"
        name = name.rpartition(".")[0]
    return entries[name]


def folder_of(name: str) -> str:
    """Find the folder whose modules may import each other: a family's, or one below facezoo."""
    entries = [entry for line in ROWS for entry in line if f"{name}.".startswith(f"{entry}.")]
    return max(entries, key=len)


def faults(root: Path) -> list[str]:
    """Describe each import that does not go down."""
    names = modules(root)
    result = []
    for name, path in names.items():
        for target in sorted(imports(path, names)):
            here, there = row_of(name), row_of(target)
            if folder_of(name) == folder_of(target) or here > there:
                continue
            if here < there or here not in FRIENDLY_ROWS:
                result.append(f"{name} imports {target}")
            if target.startswith("data") and name.startswith("models.") and ".train" not in name:
                result.append(f"{name} imports {target}, which only the training may")
    return result


def graph(root: Path) -> dict[str, set[str]]:
    """Map every module to the modules that it imports."""
    names = modules(root)
    return {name: imports(path, names) - {name} for name, path in names.items()}


def plant(folder: Path, files: dict[str, str]) -> Path:
    """Write a small package."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_imports_go_down_only():
    assert faults(PACKAGE) == []


def test_there_is_no_import_cycle():
    TopologicalSorter(graph(PACKAGE)).prepare()


def test_the_longest_import_chain_is_short():
    edges, depth = graph(PACKAGE), dict[str, int]()
    for name in TopologicalSorter(edges).static_order():
        depth[name] = 1 + max((depth[target] for target in edges[name]), default=0)
    assert max(depth.values()) <= LONGEST_CHAIN


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hub/card.py", "def f():\n    from facezoo.registry import load\n"),
        ("data/packs.py", "import facezoo.training.loop\nimport facezoo.models.base\n"),
        ("models/adv3d/model.py", "from facezoo.models.ipd_fer import losses\n"),
    ],
)
def test_a_planted_upward_or_sideways_import_is_caught(tmp_path, name, text):
    files = {"registry.py": "", "models/base.py": "", "models/ipd_fer/losses.py": ""}
    files |= {"training/loop.py": ""}
    assert len(faults(plant(tmp_path, {**files, name: text}))) == 1


def test_a_planted_cycle_is_caught(tmp_path):
    files = {
        "results.py": "from facezoo import errors\n",
        "errors.py": "if True:\n    import facezoo.results\n",
    }
    with pytest.raises(CycleError):
        TopologicalSorter(graph(plant(tmp_path, files))).prepare()


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
    command = [sys.executable, "-c", code]
    seconds = []
    for _ in range(3):
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        seconds.append(float(result.stdout))
    assert min(seconds) < 0.3


def test_encoding_loads_neither_timm_nor_the_compiler_of_torch():
    code = """
import sys
import numpy as np
import facezoo
model = facezoo.load("ipd-fer", device="cpu")
model.encode(np.zeros((64, 64, 3), np.uint8), on_missing="nan")
heavy = {"timm", "torchvision", "torch._dynamo", "sympy"} & set(sys.modules)
assert not heavy, f"encoding loaded {heavy}"
"""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

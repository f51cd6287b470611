"""Every notebook of the examples runs from top to bottom, and what it shows can be shown."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def run(code, names, place):
    """A cell as a notebook runs it: all of it, and the value of its last line if that is shown."""
    tree = ast.parse(code)
    shown = isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";")
    last = ast.Expression(tree.body.pop().value) if shown else None
    exec(compile(tree, place, "exec"), names)
    return eval(compile(last, place, "eval"), names) if last else None


def shown(value):
    """Return the display of a value in a notebook."""
    ways = (getattr(value, way, lambda: None) for way in ("_repr_html_", "_repr_png_", "__repr__"))
    return next(filter(None, (way() for way in ways)))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_makes(path, tmp_path, monkeypatch):
    shutil.copytree(EXAMPLES / "portraits", tmp_path / "portraits")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path)):
        if cell["cell_type"] == "code":
            code = re.sub(r"^COUNT = \d+", "COUNT = 6", "".join(cell["source"]), flags=re.M)
            value = run(code, names, f"{path.name}, cell {number}")
            assert shown(value)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_outputs_and_listed(path):
    assert path.name in (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert path.stat().st_size < 1e6, "run python docs/run_notebooks.py"
    outputs = [cell["outputs"] for cell in cells(path) if cell["cell_type"] == "code"]
    kinds = [output["output_type"] for cell in outputs for output in cell]
    assert len(kinds) > 4, "run python docs/run_notebooks.py"
    assert "error" not in kinds
    assert "colab.research.google.com" in "".join(cells(path)[0]["source"])

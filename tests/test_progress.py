"""Progress bars: on a terminal or in a notebook only, and from one place."""

import ast
import io
import sys
from pathlib import Path

import pytest
from tqdm.asyncio import tqdm_asyncio

from facezoo import progress
from facezoo.progress import progress_bar

PACKAGE = Path(progress.__file__).parent
MAKERS = {"progress.py", "hub/download.py"}
"""The second has the bar of huggingface_hub, which has the same rule for terminals."""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(monkeypatch, stream, **options):
    """Return what a bar over five items writes to stderr."""
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress_bar(range(5), mininterval=0, **options)) == list(range(5))
    return stream.getvalue() if stream else ""


@pytest.fixture(autouse=True)
def _without_settings_of_tqdm(monkeypatch):
    """Let bars draw, although tests may run with TQDM_DISABLE."""

    class Bar(tqdm_asyncio):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **{"disable": False, **options})

    monkeypatch.setattr(progress, "tqdm", Bar)
    monkeypatch.setattr(progress, "tqdm_asyncio", Bar)


def test_a_terminal_gets_a_bar_unless_it_is_switched_off(monkeypatch):
    assert "5/5" in drawn(monkeypatch, Terminal())
    assert not drawn(monkeypatch, Terminal(), show=False)


def test_log_files_and_missing_streams_get_nothing(monkeypatch, tmp_path):
    assert not drawn(monkeypatch, io.StringIO())
    assert not drawn(monkeypatch, None)
    with (tmp_path / "log.txt").open("w+") as log:
        monkeypatch.setattr(sys, "stderr", log)
        with progress_bar(total=2) as bar:
            bar.update(2)
    assert not (tmp_path / "log.txt").read_text()


def test_a_notebook_gets_a_bar(monkeypatch):
    monkeypatch.setattr(progress, "tqdm_asyncio", tqdm_asyncio)  # tqdm.auto has another class there
    assert "5/5" in drawn(monkeypatch, io.StringIO())


def test_every_bar_of_the_package_comes_from_one_helper():
    makers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if any("tqdm" in module.split(".") for module in modules):
                makers.add(path.relative_to(PACKAGE).as_posix())
    assert makers == MAKERS

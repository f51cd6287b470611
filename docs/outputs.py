"""Run the examples in the README and the pages, and compare what they print with what is shown.

    python docs/outputs.py [PAGE ...]    runs the examples and rewrites outputs that differ

A ``text`` block below a ``python`` block shows its output: the printed text, and the value of the
last line. In a ``console`` block the output follows the command. Numbers with decimals may differ
by one in their last digit, ``...`` stands for any text, and a block below the comment
``<!-- no-run: reason -->`` does not run.
"""

from __future__ import annotations

import ast
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from glob import glob
from itertools import zip_longest
from pathlib import Path
from typing import Any

from facezoo.cli import main as run_facezoo

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?P<skip><!-- no-run: .+? -->\n+)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?%?")


@dataclass(frozen=True)
class Example:
    """A piece of a page that runs, and the place of its output in the page."""

    kind: str
    """``python`` or ``console``."""
    code: str
    begin: int
    end: int
    """``page[begin:end]`` is the shown output; both are -1 if none is shown."""


def examples(page: str) -> Iterator[Example]:
    """List the examples of a page: blocks of Python, and commands with an output."""
    blocks = list(BLOCK.finditer(page))
    for block, after in zip_longest(blocks, blocks[1:]):
        if block["skip"]:
            continue
        if block["kind"] == "python":
            shown = (
                after is not None
                and after["kind"] == "text"
                and not page[block.end() : after.start()].strip()
            )
            begin, end = after.span("text") if shown and after else (-1, -1)
            yield Example("python", block["text"], begin, end)
        if block["kind"] == "console":
            for part in re.finditer(r"^\$ (facezoo .*)\n((?:(?!\$ ).*\n)+)", block["text"], re.M):
                begin, end = (block.start("text") + place for place in part.span(2))
                yield Example("console", part[1], begin, end)


def run_examples(page: str) -> Iterator[tuple[Example, str]]:
    """Run the examples of a page in the current folder, and return what each prints."""
    names: dict[str, Any] = {"__name__": "page"}
    shutil.copytree(ROOT / "examples" / "portraits", "examples/portraits")
    for example in examples(page):
        if example.kind == "python":
            yield example, _python(example.code, names)
        else:
            yield example, _console(example.code)


def matches(shown: str, printed: str) -> bool:
    """Compare texts without regard to white space, to ``...`` and to the last digit of decimals."""
    parts = (_pattern(part) for part in shown.split("..."))
    found = re.fullmatch(r"\s*" + r".*?".join(parts) + r"\s*", printed, re.S)
    numbers = NUMBER.findall(shown)
    return found is not None and all(map(_close, numbers, found.groups()))


def differing(page: str) -> list[tuple[Example, str]]:
    """Run the examples of a page; return the ones whose output differs from the page."""
    return [
        (example, printed)
        for example, printed in run_examples(page)
        if example.begin >= 0 and not matches(page[example.begin : example.end], printed)
    ]


def _pattern(text: str) -> str:
    words = (r"(-?\d+(?:\.\d+)?%?)".join(map(re.escape, NUMBER.split(w))) for w in text.split())
    return r"\s*".join(words)


def _close(shown: str, printed: str) -> bool:
    if "." not in shown and "%" not in shown:
        return shown == printed
    decimals = len(shown.rstrip("%").partition(".")[2])
    difference = abs(float(shown.rstrip("%")) - float(printed.rstrip("%")))
    return ("%" in shown) == ("%" in printed) and difference < 1.5 * 10**-decimals


def _python(code: str, names: dict[str, Any]) -> str:
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "page", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "page", "eval"), names) if last else None
    return printed.getvalue() + ("" if value is None else repr(value))


def _console(line: str) -> str:
    words = shlex.split(line, comments=True)[1:]
    arguments = [path for word in words for path in (sorted(glob(word)) or [word])]  # noqa: PTH207
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(printed):
        run_facezoo(arguments)
    return printed.getvalue()


def main(paths: Sequence[str | Path]) -> None:
    """Rewrite the outputs that differ; print the outputs that hold ``...``."""
    for path in [Path(path).resolve() for path in paths]:
        page = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            results = differing(page)
        for example, printed in reversed(results):
            shown = page[example.begin : example.end]
            if "..." in shown and shown.strip() != "...":
                print(f"{path} shows\n{shown}but this prints\n{printed}")
            else:
                page = page[: example.begin] + printed.rstrip() + "\n" + page[example.end :]
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])

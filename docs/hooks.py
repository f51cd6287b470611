"""What MkDocs is told beyond ``mkdocs.yml``: pages made of files that stand outside of docs/.

The examples, ``CHANGELOG.md`` and ``CONTRIBUTING.md`` become pages of the site, and links to them
are turned round, so that the same link works here and in the repository.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = "examples/"
LINK = re.compile(r"(?<!\!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")


def pages() -> dict[str, str]:
    """Pages of the site by the file of the repository that they are made of."""
    made = {
        "CHANGELOG.md": "changelog.md",
        "CONTRIBUTING.md": "contributing.md",
        "examples/README.md": "examples/index.md",
    }
    for file in sorted((ROOT / EXAMPLES).iterdir()):
        if file.suffix in (".py", ".ipynb"):
            made[EXAMPLES + file.name] = f"{EXAMPLES}{file.stem}.md"
    return made


def text_of(source: str) -> str:
    """The Markdown of a page that is made of a file: itself, a script, or a notebook's cells."""
    text = (ROOT / source).read_text(encoding="utf-8")
    if source.endswith(".py"):
        return f"# {Path(source).name}\n\n{_fenced(text)}"
    if source.endswith(".ipynb"):
        cells = ((cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"])
        return "\n\n".join(_fenced(part) if kind == "code" else part for kind, part in cells)
    return text


def turned(markdown: str, source: str, page: str) -> str:
    """A page's text with its links turned to the pages that are made of what they point at.

    Args:
        markdown: the text.
        source: the file of the repository that it stands in.
        page: its place in the site.
    """
    made = pages()

    def turn(match: re.Match[str]) -> str:
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["target"]))
        if there.startswith("docs/"):
            place = there.removeprefix("docs/")
        elif there in made:
            place = made[there]
        else:
            return match["text"]  # a folder or a file that is no page
        link = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"[{match['text']}]({link}{match['anchor'] or ''})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else LINK.sub(turn, part) for part in parts)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made of other files."""
    for source, page in pages().items():
        files.append(File.generated(config, page, content=text_of(source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of every page."""
    place = page.file.src_uri
    made_of = {page: source for source, page in pages().items()}
    return turned(markdown, made_of.get(place, f"docs/{place}"), place)


def _fenced(code: str) -> str:
    return f"```python\n{code.rstrip()}\n```"

"""Hooks of MkDocs: add pages for files outside of docs/, and rewrite links to them.

The examples, ``CHANGELOG.md`` and ``CONTRIBUTING.md`` become pages of the site. The same link works
in the repository and on the site.
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
    """List the pages for files outside of docs/, by file."""
    result = {
        "CHANGELOG.md": "changelog.md",
        "CONTRIBUTING.md": "contributing.md",
        "examples/README.md": "examples/index.md",
    }
    for file in sorted((ROOT / EXAMPLES).iterdir()):
        if file.suffix in (".py", ".ipynb"):
            result[EXAMPLES + file.name] = f"{EXAMPLES}{file.stem}.md"
    return result


def to_markdown(source: str) -> str:
    """Convert a file to Markdown: a script to a code block, a notebook to its cells."""
    text = (ROOT / source).read_text(encoding="utf-8")
    if source.endswith(".py"):
        return f"# {Path(source).name}\n\n{_fenced(text)}"
    if source.endswith(".ipynb"):
        return "\n\n".join(part for cell in json.loads(text)["cells"] for part in _cell_parts(cell))
    return text


def rewrite_links(markdown: str, source: str, page: str) -> str:
    """Point the links of a page at the pages of the site.

    Args:
        markdown: the text.
        source: its file in the repository.
        page: its page in the site.
    """
    known = pages()

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["target"]))
        if target.startswith("docs/"):
            place = target.removeprefix("docs/")
        elif target in known:
            place = known[target]
        else:
            return match["text"]  # a folder, or a file without a page
        link = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"[{match['text']}]({link}{match['anchor'] or ''})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else LINK.sub(rewrite, part) for part in parts)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages for other files."""
    for source, page in pages().items():
        files.append(File.generated(config, page, content=to_markdown(source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of every page."""
    place = page.file.src_uri
    sources = {page: source for source, page in pages().items()}
    return rewrite_links(markdown, sources.get(place, f"docs/{place}"), place)


def _cell_parts(cell: dict[str, Any]) -> list[str]:
    """The text of a notebook's cell, and what it shows."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    parts = [_fenced(source)]
    for output in cell["outputs"]:
        data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
        images = [kind for kind in data if kind.startswith("image/")]
        if images:
            uri = f"data:{images[0]};base64,{data[images[0]].strip()}"
            parts.append(f'<img alt="output" src="{uri}">')
        elif "text/html" in data:
            parts.append("".join(data["text/html"].splitlines()))
        else:
            text = data.get("text/plain") or "".join(output.get("text", ""))
            parts.append(f"```text\n{text.rstrip()}\n```")
    return parts


def _fenced(code: str) -> str:
    return f"```python\n{code.rstrip()}\n```"

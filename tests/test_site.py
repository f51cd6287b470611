"""The documentation as a site: it builds strictly, links lead somewhere, no name is left out."""

import json
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings_handlers.python")

import facezoo
from facezoo.hub.families import FAMILIES
from facezoo.registry import info

ROOT = Path(__file__).parent.parent


class Page(HTMLParser):
    """Parser of the links, images and anchors of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links += [found[key] for key in ("href", "src") if found.get(key)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_link_of_the_site_leads_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 30
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = unquote(link).partition("#")
            there = (path.parent / target.partition("?")[0]).resolve() if target else path
            there = there / "index.html" if there.is_dir() else there
            assert there.exists(), f"{path.relative_to(site)} links to {link}"
            if anchor and there in pages:
                assert anchor in pages[there].anchors, f"{path.relative_to(site)} links to {link}"


@pytest.mark.parametrize(
    "word", ["same person", "webcam", "GPU", "batch", "license", "HEIC", "crowd", "ONNX"]
)
def test_search_finds_common_queries(site, word):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    pages = [page for page in index if not page["location"].startswith("changelog")]
    assert any(word.lower() in f"{page['title']} {page['text']}".lower() for page in pages)


def test_charts_show_the_numbers_of_the_results():
    spec = spec_from_file_location("charts", ROOT / "docs" / "charts.py")
    charts = module_from_spec(spec)
    spec.loader.exec_module(charts)
    assert not charts.stale(), "run python docs/charts.py"


def test_nothing_is_fetched_from_elsewhere(site):
    loaded = re.compile(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+href="https?://')
    for path in site.rglob("*.html"):
        assert not loaded.search(path.read_text(encoding="utf-8")), path


def test_the_reference_has_every_public_name(site):
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    documented = {line.split()[0] for line in inventory.splitlines()}
    for name in set(facezoo.__all__) - {"__version__"}:
        value = getattr(facezoo, name)
        path = f"{value.__module__}.{name}" if hasattr(value, "__module__") else value.__name__
        assert any(path in (known, moved(known)) for known in documented), path


def moved(known):
    """Insert the module ``run``, where a package defines the names that it offers."""
    parts = known.split(".")
    return ".".join([*parts[:2], "run", *parts[2:]])


def test_headings_of_the_reference_are_import_paths(site):
    headings = set()
    for page in (site / "reference").rglob("*.html"):
        found = re.findall(r"<h3[^>]*doc-heading.*?</h3>", page.read_text(encoding="utf-8"), re.S)
        headings |= {re.sub(r"<[^>]+>|&para;|\s", "", heading) for heading in found}
    assert len(headings) > 50
    names = set(facezoo.__all__) - {"__version__", "errors"}  # errors has a page of its own
    assert {f"facezoo.{name}" for name in names} <= headings
    for heading in headings:
        assert heading.startswith("facezoo."), heading


@pytest.mark.parametrize("result", ["Faces", "FaceEncoding", "ExpressionPrediction"])
def test_the_reference_has_the_inherited_methods_of_results(site, result):
    anchors = Page(site / "reference" / "index.html").anchors
    for method in ("to", "numpy", "to_dict", "to_frame"):
        assert f"facezoo.results.{result}.{method}" in anchors


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_page_of_a_family_is_complete(family):
    text = (ROOT / "docs" / "models" / f"{family}.md").read_text(encoding="utf-8")
    assert "\n## What it is for\n" in text
    assert "\n## License and citation\n" in text
    assert re.search(r"!\[[^\]]+\]\(\.\./images/", text), "a picture"
    assert f'facezoo.load("{family}")' in text
    assert f"facezoo train {family}" in text
    assert "\n## Limits\n" in text
    citation = info(family).citation.strip()
    assert citation in text
    top = " ".join(text.partition("\n## ")[0].split())
    title, year = (re.search(rf"{field} = {{(.+)}}", citation)[1] for field in ("title", "year"))
    assert "**Paper:**" in top
    assert title in top
    assert year in top

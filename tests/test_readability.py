"""The pages are in plain English: short sentences, short pages, the field's words, one spelling."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]
    + [*(ROOT / "docs").rglob("*.md")]
)

LONG = 25
"""Words above which a sentence is long."""
AVOID = {
    r"tells?|told|telling": "classify, predict, distinguish, report",
    r"says?|said": "state, report, print",
    r"stands? (in|for|beside|between|behind|there)": "is, means, comes after",
    r"beside|besides": "next to, compared with, in addition to",
    r"anew": "again",
    r"dealt|dealing": "permuted",
    r"refuse[sd]?": "raises an error, does not accept",
    r"goes on|go on": "resumes, continues",
    r"(is|are) no": "is not a",
    r"of which|of whom|those that": "use two sentences",
    r"so many|so much": "give the number, or the unit",
    r"as it comes|as they come": "unchanged",
    r"but for": "except for",
    r"wanted is|what goes in|asked for": "say who does what",
    r"photographs?|photos?|pictures?": "image",
    r"(?<!same )persons?": "identity, subject",
    r"by hand": "manually, or name the function",
    r"reader of features|people told": "probe, identification accuracy",
}


def named(page):
    return page.relative_to(ROOT).as_posix()


def text_of(page):
    """A page without code, generated tables, comments and addresses."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(
        r"<!-- (?P<name>[\w.-]+):begin -->.*?<!-- (?P=name):end -->", "", text, flags=re.S
    )
    text = re.sub(r"<!--.*?-->|^ *```.*?^ *```$|^::: .*(\n    .*)*", "", text, flags=re.S | re.M)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<https?://[^>]+>|\{[^}]*\}", "", text)
    return re.sub(r"`[^`\n]+`", "code", text)


def words(text):
    return re.findall(r"[\w'’./+-]*\w", text)


def sentences(text):
    """Sentences of paragraphs, list items and quotes, without headings and tables."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||#|\?\?\?|!!!|===)", line)]
    prose = re.sub(r"\n\s*([-*>]|\d+\.)\s+", "\n\n", "\n" + "\n".join(lines))
    for paragraph in re.split(r"\n\s*\n", prose):
        flat = re.sub(r"\b(e\.g|i\.e|eqs?|Sec|Fig|al|vs)\.", r"\1", " ".join(paragraph.split()))
        for sentence in re.split(r"(?<=[.!?:])[*_)\"]*\s+", flat):
            if len(words(sentence)) > 2:
                yield sentence


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_sentences_are_short(page):
    found = list(sentences(text_of(page)))
    lengths = [len(words(sentence)) for sentence in found] or [0]
    long = [sentence for sentence in found if len(words(sentence)) > LONG]
    assert mean(lengths) <= 18, f"{mean(lengths):.1f} words in a sentence on average"
    assert len(long) <= max(1, 0.05 * len(found)), "long sentences:\n" + "\n".join(long)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_pages_are_short(page):
    if not {"reference", "CHANGELOG.md"} & set(page.parts):
        count = len(words(text_of(page)))
        assert count <= 1500, f"{count} words"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_words_are_those_of_the_field(page):
    text = text_of(page)
    if page.name == "responsible-use.md":
        text = re.sub(r"\b(a |the )?(person|photographers?)\b", "", text)  # people, not data
    for pattern, better in AVOID.items():
        for match in re.finditer(rf"\b({pattern})\b", text, re.I):
            near = " ".join(text[max(0, match.start() - 40) : match.end() + 40].split())
            pytest.fail(f"'{match[0]}' in '… {near} …'; write: {better}")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_line_starts_with_a_comment_that_would_end_its_list(page):
    assert not re.search(
        r"^ +<!-- value|\n\w.*\n<!-- value", page.read_text(encoding="utf-8"), re.M
    )


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_blank_line_or_comment_is_above_every_table(page):
    assert not tables_in_paragraphs(page.read_text(encoding="utf-8")), (
        "shown as text, not as tables"
    )


def test_a_table_below_text_is_found():
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert tables_in_paragraphs(f"text\n{table}") == ["text"]
    assert not tables_in_paragraphs(f"text\n\n{table}")
    assert not tables_in_paragraphs(f"<!-- x:begin -->\n{table}")
    assert not tables_in_paragraphs(f"```text\ntext\n{table}```\n")


def tables_in_paragraphs(text):
    """Lines directly above a table that make it a part of their paragraph."""
    lines = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.S | re.M).splitlines()
    return [
        above
        for above, line in pairwise(lines)
        if line.lstrip().startswith("|") and not re.match(r"\s*(\||<!--|$)", above)
    ]


BRITISH = {
    "grey": "a field of recipes, which model cards and runs store",
    "labelled": "the module facezoo.data.labelled, for code written for 0.2.0",
    "centres": "a name in files of other makers",
}
"""British words that stay in names, and why."""


def misspelled(*arguments):
    command = [sys.executable, "-m", "codespell_lib", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def test_spelling_of_the_code():
    assert not misspelled("facezoo", "tests", "benchmarks", "examples")


def test_names_and_comments_of_the_code_are_american(tmp_path):
    for folder in ("facezoo", "benchmarks", "examples"):
        for file in (ROOT / folder).rglob("*.py"):
            text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", file.read_text(encoding="utf-8"))
            copy = tmp_path / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text.replace("_", " "), encoding="utf-8")
    assert not misspelled("--builtin", "en-GB_to_en-US", "-L", ",".join(BRITISH), tmp_path)


def test_spelling_of_the_pages_is_american(tmp_path):
    for page in PAGES:
        copy = tmp_path / named(page)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text_of(page), encoding="utf-8")
    assert not misspelled("--builtin", "clear,rare,en-GB_to_en-US", tmp_path)

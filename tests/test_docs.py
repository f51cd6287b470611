"""What the README and the pages of docs/ say is true: code runs, links lead somewhere."""

import json
import re
import shlex
import sys
from dataclasses import fields, replace
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from command_lines import parse

from facezoo import errors
from facezoo.evaluate.embedding import ALIGNED, DETECTED
from facezoo.hub.card import Metric, bundled_cards
from facezoo.preprocess.detection import DetectionConfig
from facezoo.preprocess.templates import TEMPLATES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BESIDES = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]
EXTRAS = {
    r"facezoo\.show\(|plot\.(timeline|grid|bars|features|embedding|faces|parts)\(": "viz",
    r"\.to_frame\(": "pandas",
    r"facezoo\.cluster\(|FaceFeatures\(": "sklearn",
    r"facezoo\.video\(\"|\.mp4\b": "video",
    r"(-o |\")\S*\.parquet\b": "parquet",
    r"--format onnx": "export",
    r"facezoo demo": "demo",
    r"facezoo live": "live",
    r"\.(ply|stl|glb|gltf)\b": "mesh",
}
"""The extra that code in a page needs, by a pattern in the code."""
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def named(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, kind):
    """Texts of a page's code blocks of a kind, without those that are marked not to be run."""
    found = script("outputs").BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [match["text"] for match in found if match["kind"] == kind and not match["skip"]]


def slugs(page):
    """The anchors that GitHub gives a page's headings."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@cache
def script(name):
    """Import a script of docs/."""
    spec = spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tables():
    return script("tables")


def card(model="ipd-fer", metrics=()):
    """A bundled card as if it were of this model and had these metrics."""
    known = next(iter(bundled_cards().values()))
    return replace(known, model=model, tag="some", metrics=tuple(metrics))


def commands(page):
    """Arguments of every ``facezoo`` command that a page shows."""
    lines = [
        line.removeprefix("$ ")
        for text in blocks(page, "console")
        for line in text.splitlines()
        if line.startswith("$ ")
    ]
    lines += [part for text in blocks(page, "sh") for part in text.split("&&")]
    words = (shlex.split(line.partition("|")[0], comments=True) for line in lines)
    return [found[1:] for found in words if found[:1] == ["facezoo"]]


def test_the_readme_has_the_two_set_up_commands_and_no_others():
    assert blocks(ROOT / "README.md", "sh") == [
        "pip install . && facezoo predict examples/portraits/*.jpg --save annotated\n",
        'pip install -e ".[test]" && pytest -n 2 --dist loadfile --cov=facezoo\n',
    ]


def test_tables_in_the_pages_are_those_of_the_cards():
    pages = [named(page) for page in tables().stale()]
    assert not pages, f"{', '.join(pages)} differ from the cards; run python docs/tables.py"


def test_a_region_is_rewritten_and_the_rest_unchanged():
    page = "before\n<!-- models:begin -->\nold\n<!-- models:end -->\nafter\n"
    written = tables().regenerated(page, [card()])
    assert written.startswith("before\n<!-- models:begin -->\n| checkpoint |")
    assert written.endswith("<!-- models:end -->\nafter\n")
    assert "old" not in written
    assert tables().regenerated(written, [card()]) == written


def test_a_table_of_results_has_the_columns_of_its_rows(tmp_path):
    rows = [{"what": "a|b", "count": 3, "share": 66.666, "cosine": 0.98765}]
    rows[0] |= {
        "slowest to fastest": "1 to 2",
        "times faster": 2.0,
        "predict over bare, speed": 0.9,
    }
    (tmp_path / "some.x.json").write_text(json.dumps({"tables": {"first": rows}}))
    lines = tables().results_text("some.x", "first", tmp_path).splitlines()
    assert lines[0] == "| what | count | share | cosine |"  # without the spread of the repeats
    assert lines[2] == "| a/b | 3 | 66.67 | 0.988 |"
    assert tables().results_text("none", "first", tmp_path) == "Not measured."


def test_columns_of_several_sets_of_images_become_rows(tmp_path):
    rows = [
        {"detector": "x", "near: recall": 90.04, "near: error": 1.0, "far: recall": 8.0, "ms": 3.0}
    ]
    (tmp_path / "d.json").write_text(json.dumps({"tables": {"t": rows}}))
    first, second = tables().results_text("d", "t", tmp_path).split("\n\n")
    assert first.splitlines()[0] == "| images | detector | recall | error |"
    assert first.splitlines()[2:] == ["| near | x | 90.0 | 1.0 |", "| far | x | 8.0 | – |"]
    assert second.splitlines()[::2] == ["| detector | ms |", "| x | 3.000 |"]


def test_a_stamp_has_date_hardware_and_command(tmp_path):
    content = {
        "command": "python benchmarks/x.py",
        "date": "2026-01-02",
        "commit": "abc",
        "hardware": "some processor",
        "cores": 2,
        "threads": 1,
        "load": 0.5,
        "versions": {"torch": "2.9", "timm": "1.0"},
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert tables().stamp_text("x", tmp_path) == (
        "Measured 2026-01-02 at commit abc on some processor, 1 thread of 2 cores, load 0.5; "
        "torch 2.9, timm 1.0; by `python benchmarks/x.py`."
    )


def test_a_value_of_several_files_is_their_mean(tmp_path):
    for seed, accuracy in enumerate((80.0, 82.0)):
        rows = [{"name": "a", "value": accuracy}, {"name": "b", "value": 1.0}]
        (tmp_path / f"x.seed{seed}.json").write_text(json.dumps({"metrics": rows}))
    assert tables().value("x.seed1:metrics/[name=a]/value", tmp_path) == 82
    assert tables().value("x.seed*:metrics/[name=a]/value", tmp_path) == 81
    with pytest.raises(FileNotFoundError, match=r"y\.json, for the value 'y:metrics'"):
        tables().value("y:metrics", tmp_path)


def test_a_value_may_be_a_later_number_of_a_text(tmp_path):
    rows = [{"name": "a", "mean": "1.17 ± 0.16 / 1.15", "range": "111.2 to 121.4"}]
    (tmp_path / "x.json").write_text(json.dumps({"rows": rows}))
    paths = [f"x:rows/[name=a]/{key}" for key in ("mean", "mean/±", "range", "range/to")]
    assert [tables().value(path, tmp_path) for path in paths] == [1.17, 0.16, 111.2, 121.4]


def test_whole_numbers_in_sentences_have_no_decimals(tmp_path):
    rows = [{"name": "a", "count": 49, "size": 9409, "rule": "1973 pairs, cosine", "s": 2.0}]
    (tmp_path / "x.json").write_text(json.dumps({"rows": rows}))
    keys = ("count", "size", "rule", "s")
    numbers = [tables().value(f"x:rows/[name=a]/{key}", tmp_path) for key in keys]
    assert list(map(tables()._short, numbers)) == ["49", "9,409", "1,973", "2.00"]


def test_recalls_and_milliseconds_have_one_decimal(tmp_path):
    rows = [{"recall at 1 %": 96.012, "ms at 250 px": 4.7, "error": 4.7}]
    (tmp_path / "d.json").write_text(json.dumps({"tables": {"t": rows}}))
    assert tables().results_text("d", "t", tmp_path).endswith("| 96.0 | 4.7 | 4.700 |")


def test_a_key_may_have_the_unit_per_second(tmp_path):
    rows = [{"way": "a", "images/s": 20.0, "s": 2.0}]
    (tmp_path / "x.json").write_text(json.dumps({"rows": rows, "n": {"items/s": 3.0}}))
    paths = ("x:rows/[way=a]/images/s", "x:rows/[way=a]/s", "x:n/items/s")
    assert [tables().value(path, tmp_path) for path in paths] == [20, 2, 3]


def test_a_value_may_be_the_lowest_of_a_mapping(tmp_path):
    swap = {"first": {"kept": 90.0}, "second": {"kept": 70.0}}
    (tmp_path / "b.json").write_text(json.dumps({"swap": swap}))
    assert tables().value("b:swap/lowest/kept", tmp_path) == 70


def test_responsible_use_names_all_training_data():
    page = (ROOT / "docs/responsible-use.md").read_text(encoding="utf-8")
    for name, entry in bundled_cards().items():
        assert f"`{name}`" in page
        for text in entry.training.data:
            assert text.replace("photograph", "image").split("; ")[0] in page


def test_a_region_of_unknown_name_raises_an_error():
    with pytest.raises(ValueError, match="no region is named 'mdoels'"):
        tables().regenerated("<!-- mdoels:begin -->\n<!-- mdoels:end -->", [])


def test_a_card_without_metrics_shows_none_measured():
    assert "none measured" in tables().models_table([card()])
    assert "none measured" in tables().card_text([card()], "ipd-fer")


def test_a_missing_card_is_reported():
    assert tables().models_table([card("face-detector")]) == "No checkpoint is in the package yet."
    assert tables().card_text([], "ipd-fer") == "No checkpoint of `ipd-fer` is in the package."


def test_accuracies_on_given_crops_and_on_whole_images_are_in_one_row():
    rule = "majority; 8 classes"
    both = [
        Metric("accuracy", value, "%", "FER+", "test", f"{rule}; {how}", "facezoo evaluate x")
        for value, how in ((81.254, ALIGNED), (79.0, DETECTED))
    ]
    lines = tables().models_table([card(metrics=both)]).splitlines()
    assert (
        lines[-1]
        == "| `ipd-fer.some` | FER+ test: majority; 8 classes | accuracy | 81.25 % | 79.00 % |"
    )


def test_every_metric_of_a_card_is_on_the_page_of_its_model():
    votes = Metric("KL from votes", 0.4321, "nats", "FER+", "test", "a | b", "facezoo evaluate x")
    text = tables().card_text([card(metrics=[votes])], "ipd-fer")
    assert "| KL from votes | FER+ test | 0.432 nats | a / b |" in text
    assert "printed by `facezoo evaluate x`" in text


def test_a_metric_is_in_one_row_with_its_spread_chance_and_whole_images():
    rows = [
        ("accuracy", 90.0, "ten folds", ALIGNED),
        ("standard deviation over folds", 2.5, "ten folds", ALIGNED),
        ("accuracy", 80.0, "ten folds", DETECTED),
        ("identity from expression features", 35.0, "69 people", ALIGNED),
        ("identity from expression features, standard deviation", 1.5, "69 people", ALIGNED),
        ("identity from expression features, chance", 5.0, "69 people", ALIGNED),
        ("identity from expression features, control", 6.0, "69 people", ALIGNED),
    ]
    metrics = [
        Metric(name, number, "%", "LFW", "val", f"{rule}; {how}", "facezoo evaluate x")
        for name, number, rule, how in rows
    ]
    text = tables().card_text([card(metrics=metrics)], "ipd-fer")
    assert "| accuracy | LFW val | 90.00 ± 2.50 % | 80.00 % | ten folds |" in text
    assert (
        "| identity from expression features | LFW val | 35.00 ± 1.50 % | 5.00 % | 6.00 % "
        "| 69 identities |" in text
    )


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_examples_in_a_page_print_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example, printed in script("outputs").differing(page.read_text(encoding="utf-8")):
        pytest.fail(f"{example.code}prints\n{printed}\nrun python docs/outputs.py {named(page)}")


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a 0.12 b", "a  0.13\nb", True),
        ("a 0.12 b", "a 0.14 b", False),
        ("93%", "92%", True),
        ("93 faces", "92 faces", False),
        ("[0.5, ..., -0.1] x", "[0.5, 0.7, -0.1] x", True),
        ("[0.5, ...] x", "[0.5, 0.7] y", False),
        ("a", "a b", False),
    ],
)
def test_shown_outputs_may_differ_in_the_last_digit_and_at_dots(shown, printed, same):
    assert script("outputs").matches(shown, printed) == same


@pytest.mark.parametrize("page", [*PAGES, *BESIDES], ids=named)
def test_links_and_images_of_a_page_exist(page):
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{named(page)} links to {target}, which is not there"
        if anchor:
            assert anchor in slugs(there), f"{named(page)} links to {target}#{anchor}"


@pytest.mark.hub
@pytest.mark.parametrize("page", [*PAGES, *BESIDES], ids=named)
def test_links_to_elsewhere_are_answered(page):
    for address in re.findall(r"(?:\]\(|<)(https?://[^)>\s]+)", page.read_text(encoding="utf-8")):
        request = Request(address, headers={"User-Agent": "Mozilla/5.0"})
        with urlopen(request, timeout=30) as answer:
            assert answer.status == 200, f"{named(page)} links to {address}"


@pytest.mark.parametrize("page", [*PAGES, *BESIDES], ids=named)
def test_commands_shown_in_a_page_are_understood(page):
    for arguments in commands(page):
        parse(arguments)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_names_the_extras_that_its_code_needs(page):
    text = page.read_text()
    code = "\n".join(re.findall(r"```(?:python|console|sh)\n(.*?)```", text, re.DOTALL))
    needed = [extra for pattern, extra in EXTRAS.items() if re.search(pattern, code)]
    assert [extra for extra in needed if f"[{extra}]" not in text] == []


def test_every_error_is_explained_with_what_it_derives_from():
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    raised = [item for item in vars(errors).values() if isinstance(item, type)]
    for error in (item for item in raised if item.__module__ == errors.__name__):
        assert f"| `{error.__name__}` | `{error.__base__.__name__}` |" in page


def test_every_metric_of_a_card_is_defined():
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    for known in bundled_cards().values():
        for metric in known.metrics:
            name = re.sub(r"(?<=recall of ).+", "*k*", metric.name)
            name = re.sub(r"(?<=beyond )\d+(?= degrees)", "*d*", name)
            parts = re.split(r", (?=chance|control|above|standard)", name)
            parts[0] = re.sub(r" (from|by) (expression|identity) features$", "", parts[0])
            for part in parts:
                assert part in page, f"{metric.name} of {known.name} is defined nowhere"


def test_the_detection_settings_and_templates_are_those_of_the_code():
    pages = [ROOT / "docs" / name for name in ("guides/detect.md", "reference/preprocess.md")]
    page = "".join(path.read_text(encoding="utf-8") for path in pages)
    for field in fields(DetectionConfig):
        assert f"| `{field.name}` | {field.default} |" in page
    page = (ROOT / "docs" / "concepts" / "templates.md").read_text(encoding="utf-8")
    for template in TEMPLATES:
        assert f"| `{template}` |" in page


def test_the_table_of_fine_tuning_has_a_row_per_size_and_a_column_per_arm(tmp_path):
    run = {"labels_per_class": "10", "images": 20}
    content = {
        "what": "balanced accuracy in %",
        "validation_images": 7,
        "command": "python b.py",
        "runs": [
            run | {"arm": "a", "balanced accuracy": 50.0},
            run | {"arm": "a", "balanced accuracy": 52.0},
            run | {"arm": "b", "balanced accuracy": 60.0},
        ],
    }
    assert tables().finetuning_text(tmp_path / "none.json") == "Not measured."
    (tmp_path / "f.json").write_text(json.dumps(content))
    text = tables().finetuning_text(tmp_path / "f.json")
    assert "7 images" in text
    assert "of 2 seeds.\n" in text
    assert text.endswith("Printed by `python b.py`.")
    (tmp_path / "f.json").write_text(json.dumps(content | {"wanted": 5}))
    part = tables().finetuning_text(tmp_path / "f.json")
    assert part.endswith("Printed by `python b.py`; 2 of 5 runs are missing.")
    assert "| 10 (20 images) | 51.0 ± 1.4 | 60.0 |" in text

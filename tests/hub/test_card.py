"""Cards: strict parsing, the trip through JSON, what users see, the cards in the package."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from hub_server import card_mapping

from facezoo.errors import CardError, UnknownNameError
from facezoo.hub import card as cards
from facezoo.hub.card import Card, Preprocessing, bundled_cards, card_named, packaged_file

CARD = Card.parse(card_mapping())


def write(folder, **changes):
    card = Card.parse(card_mapping(**changes))
    card = replace(card, weights=replace(card.weights, file=f"{card.name}.safetensors"))
    (folder / f"{card.name}.json").write_text(card.to_json())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "CHECKPOINTS", tmp_path)
    return tmp_path


def test_a_card_survives_the_trip_through_json():
    assert Card.parse(json.loads(CARD.to_json())) == CARD
    assert json.loads(CARD.to_json()) == card_mapping()
    assert CARD.name == "tiny-face.first"
    assert CARD.preprocessing == Preprocessing(std=(0.25, 0.5, 0.5))


def test_an_optional_field_is_written_only_if_it_has_a_value():
    assert "base" not in json.loads(CARD.to_json())["training"]
    card = replace(CARD, training=replace(CARD.training, base="tiny-face.zero"))
    assert Card.parse(json.loads(card.to_json())).training.base == "tiny-face.zero"


def test_scalars_and_arrays_of_numpy_and_torch_are_written_as_numbers():
    architecture = {
        "width": np.int64(4),
        "scale": np.float32(0.5),
        "flag": np.bool_(True),
        "sizes": np.arange(2),
        "rate": torch.tensor(0.25),
    }
    mapping = json.loads(replace(CARD, architecture=architecture).to_json())
    expected = {"width": 4, "scale": 0.5, "flag": True, "sizes": [0, 1], "rate": 0.25}
    assert mapping["architecture"] == expected


def leaves(mapping, path=()):
    for key, value in mapping.items():
        yield (*path, key)
        if isinstance(value, dict) and key not in ("architecture", "recipe"):
            yield from leaves(value, (*path, key))


@pytest.mark.parametrize("path", list(leaves(card_mapping())), ids=".".join)
def test_a_missing_field_is_named(path):
    mapping = card_mapping()
    inner = mapping
    for key in path[:-1]:
        inner[key] = dict(inner[key])
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(CardError, match=rf"^here\.json: .*{'.'.join(path)}"):
        Card.parse(mapping, source="here.json")


@pytest.mark.parametrize("section", [None, "weights", "hub", "licenses", "preprocessing"])
def test_an_unknown_field_is_named(section):
    mapping = card_mapping()
    if section:
        mapping[section] = {**mapping[section], "color": 1}
    else:
        mapping["color"] = 1
    with pytest.raises(CardError, match=f"unknown field {section + '.' if section else ''}color"):
        Card.parse(mapping)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema must be 1, got 2"),
        ({"default": 1}, "default must be true or false, got 1"),
        ({"labels": "happy"}, "labels must be a list, got 'happy'"),
        ({"labels": ["happy", 3]}, r"labels\[1\] must be text, got 3"),
        ({"tag": "Big One"}, "tag must be lower-case letters"),
        ({"architecture": []}, r"architecture must be a JSON object, got \[\]"),
        ({"architecture": {"size": math.inf}}, "architecture must hold finite numbers only"),
        ({"architecture": {"sizes": [{"a": math.nan}]}}, "must hold finite numbers only, got"),
        ({"metrics": [{"name": "x"}]}, r"missing field metrics\[0\]\.value"),
        ({"weights": None}, "weights must be a JSON object, got None"),
    ],
)
def test_a_malformed_field_is_named_with_the_expected_value(changes, message):
    with pytest.raises(CardError, match=message):
        Card.parse(card_mapping(**changes))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("weights", "sha256", "abc"),
        ("weights", "file", "../weights.safetensors"),
        ("weights", "file", "weights.pth"),
        ("weights", "dtype", "float64"),
        ("weights", "size", 0),
        ("weights", "parameters", 1.5),
        ("hub", "repo", "alone"),
        ("hub", "revision", "main"),
        ("hub", "file", "a/model.bin"),
        ("preprocessing", "size", 0),
        ("preprocessing", "size", True),
        ("preprocessing", "mean", [0.5, 0.5]),
        ("preprocessing", "resampling", "lanczos"),
        ("training", "seed", "0"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(section, key, value):
    mapping = card_mapping()
    mapping[section] = {**mapping[section], key: value}
    with pytest.raises(CardError, match=rf"{section}\.{key} must be"):
        Card.parse(mapping)


def test_a_standard_deviation_of_zero_is_rejected():
    mapping = card_mapping()
    mapping["preprocessing"] = {**mapping["preprocessing"], "std": [0.5, 0, 0.5]}
    with pytest.raises(CardError, match=r"preprocessing\.std\[1\] must be a number above 0"):
        Card.parse(mapping)


@pytest.mark.parametrize(
    ("text", "number"), [("51.5", "NaN"), ('"epochs": 3', '"epochs": 1e999'), ("{", "[")]
)
def test_a_file_that_is_not_strict_json_is_named(tmp_path, text, number):
    path = tmp_path / "a.json"
    path.write_text(CARD.to_json().replace(text, number))
    with pytest.raises(CardError, match=r"a\.json: not a card"):
        Card.load(path)


def test_a_number_that_no_float_holds_is_rejected(tmp_path):
    path = tmp_path / "card.json"
    path.write_text(CARD.to_json().replace("51.5", "1" + "0" * 400))
    with pytest.raises(CardError, match=r"metrics\[0\]\.value must be a finite number"):
        Card.load(path)


def test_a_notebook_shows_licenses_size_and_metrics_in_few_lines():
    text = repr(CARD)
    assert len(text.splitlines()) < 20
    for part in ("research-only", "Apache-2.0", "unknown", "51.5%", "Weak", "float16", "0.0 MB"):
        assert part in text
    assert "none measured" in repr(replace(CARD, metrics=()))


def test_the_readme_has_metadata_that_the_hub_reads():
    _, header, body = CARD.to_markdown().split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["library_name"] == "facezoo"
    assert metadata["license"] == "other"
    assert metadata["license_name"] == "research-only"
    assert metadata["pipeline_tag"] == "image-classification"
    assert "tiny-face" in metadata["tags"]
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 51.5
    assert result["dataset"]["split"] == "test"
    for part in ("majority vote", "facezoo train tiny-face", "Weak", "@misc{tiny}", "hf-hub:"):
        assert part in body


def test_a_license_of_the_hub_keeps_its_name():
    card = replace(CARD, licenses=replace(CARD.licenses, weights="CC-BY-NC-4.0"))
    metadata = yaml.safe_load(card.to_markdown().split("---\n")[1])
    assert metadata["license"] == "cc-by-nc-4.0"
    assert "license_name" not in metadata


def test_a_model_name_means_its_default_checkpoint(folder):
    write(folder, default=False)
    write(folder, tag="second")
    assert list(bundled_cards()) == ["tiny-face.first", "tiny-face.second"]
    assert card_named("tiny-face").tag == "second"
    assert card_named("tiny-face.first").tag == "first"
    assert packaged_file(CARD) == folder / "tiny-face.first.safetensors"


def test_an_unknown_name_lists_near_matches(folder):
    write(folder)
    with pytest.raises(UnknownNameError, match=r"did you mean .*tiny-face\.first"):
        card_named("tiny-face.fist")
    with pytest.raises(UnknownNameError, match="has no checkpoint yet"):
        card_named("other", models=["other"])


def test_the_cards_in_the_package_have_matching_names_and_one_default_per_model():
    for path in cards.CHECKPOINTS.glob("*.json"):
        card = Card.load(path)
        assert path.name == f"{card.name}.json"
        assert packaged_file(card).name == f"{card.name}.safetensors"
    models = [card.model for card in bundled_cards().values() if card.default]
    assert len(models) == len(set(models))

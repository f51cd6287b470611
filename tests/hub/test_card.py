import json
from dataclasses import FrozenInstanceError, replace

import pytest
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


def test_the_base_of_a_training_survives_too():
    card = replace(CARD, training=replace(CARD.training, base="tiny-face.zero"))
    assert Card.parse(json.loads(card.to_json())).training.base == "tiny-face.zero"


def test_a_card_is_frozen_and_named_after_model_and_tag():
    assert CARD.name == "tiny-face.first"
    assert CARD.preprocessing == Preprocessing(std=(0.25, 0.5, 0.5))
    with pytest.raises(FrozenInstanceError):
        CARD.tag = "other"


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
        mapping[section] = {**mapping[section], "colour": 1}
    else:
        mapping["colour"] = 1
    with pytest.raises(CardError, match=f"unknown field {section + '.' if section else ''}colour"):
        Card.parse(mapping)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema must be 1, got 2"),
        ({"default": 1}, "default must be true or false, got 1"),
        ({"labels": "happy"}, "labels must be a list, each text, got 'happy'"),
        ({"labels": ["happy", 3]}, r"labels\[1\] must be text, got 3"),
        ({"tag": "Big One"}, "tag must be lower-case letters"),
        ({"architecture": []}, r"architecture must be a JSON object, got \[\]"),
        ({"metrics": [{"name": "x"}]}, r"missing field metrics\[0\]\.value"),
        ({"weights": None}, "weights must be a JSON object, got null"),
    ],
)
def test_a_malformed_field_is_named_with_what_was_wanted(changes, message):
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
        ("hub", "revision", "abcdef0"),
        ("hub", "file", "a/model.bin"),
        ("preprocessing", "size", True),
        ("preprocessing", "mean", [0.5, 0.5]),
        ("training", "seed", "0"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(section, key, value):
    mapping = card_mapping()
    mapping[section] = {**mapping[section], key: value}
    with pytest.raises(CardError, match=rf"{section}\.{key} must be"):
        Card.parse(mapping)


def test_a_file_that_is_not_json_or_holds_nan_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{")
    with pytest.raises(CardError, match=r"a\.json: not a card"):
        Card.load(path)
    path.write_text(CARD.to_json().replace("51.5", "NaN"))
    with pytest.raises(CardError, match="NaN is not a number"):
        Card.load(path)


def test_what_a_notebook_shows_is_short_and_has_licences_size_and_metrics():
    shown = repr(CARD)
    assert len(shown.splitlines()) < 10
    for part in ("research-only", "Apache-2.0", "unknown", "51.5%", "Weak", "float16", "0.0 MB"):
        assert part in shown


def test_no_metric_is_said_to_be_none_measured():
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


def test_a_licence_that_the_hub_knows_is_its_own_name():
    card = replace(CARD, licenses=replace(CARD.licenses, weights="CC-BY-NC-4.0"))
    metadata = yaml.safe_load(card.to_markdown().split("---\n")[1])
    assert metadata["license"] == "cc-by-nc-4.0"
    assert "license_name" not in metadata


def test_cards_in_the_package_are_read_by_name(folder):
    write(folder)
    write(folder, tag="second", default=False)
    assert list(bundled_cards()) == ["tiny-face.first", "tiny-face.second"]
    assert packaged_file(CARD) == folder / "tiny-face.first.safetensors"


def test_a_model_means_its_default_checkpoint(folder):
    write(folder, default=False)
    write(folder, tag="second")
    assert card_named("tiny-face").tag == "second"
    assert card_named("tiny-face.first").tag == "first"


def test_an_unknown_name_lists_near_matches(folder):
    write(folder)
    with pytest.raises(UnknownNameError, match=r"did you mean .*tiny-face\.first"):
        card_named("tiny-face.fist")
    with pytest.raises(UnknownNameError, match="has no checkpoint yet"):
        card_named("other", models=["other"])


def test_two_defaults_of_one_model_are_refused(folder):
    write(folder)
    write(folder, tag="second")
    with pytest.raises(CardError, match=r"tiny-face\.first is the default already"):
        bundled_cards()


def test_a_misnamed_card_is_refused(folder):
    (folder / "wrong.json").write_text(CARD.to_json())
    with pytest.raises(CardError, match=r"must be named tiny-face\.first\.json"):
        bundled_cards()


def test_two_cards_cannot_share_a_weights_file(folder):
    (folder / "tiny-face.b.json").write_text(Card.parse(card_mapping(tag="b")).to_json())
    with pytest.raises(CardError, match=r"weights\.file must be tiny-face\.b\.safetensors"):
        bundled_cards()


def test_the_cards_that_ship_are_well_formed():
    for name, card in bundled_cards().items():
        assert card.name == name
        assert packaged_file(card).name == f"{name}.safetensors"


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", 0), ("std", (0.5, 0.0, 0.5)), ("resampling", "lanczos")],
)
def test_preprocessing_that_cannot_work_is_refused(field, value):
    with pytest.raises(CardError, match=f"preprocessing.{field}"):
        Preprocessing(**{field: value})


def test_a_number_that_no_float_holds_is_refused(tmp_path):
    path = tmp_path / "card.json"
    text = CARD.to_json()
    for number in ("1e999", "-1e999"):  # Python's json makes infinity of it
        path.write_text(text.replace('"epochs": 3', f'"epochs": {number}'))
        with pytest.raises(CardError, match=f"not a card: {number} is not a number"):
            Card.load(path)
    path.write_text(text.replace("51.5", "1" + "0" * 400))
    with pytest.raises(CardError, match=r"metrics\[0\]\.value must be a finite number"):
        Card.load(path)

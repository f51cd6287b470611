"""From names to cards: the package, files and folders, revisions of the Hub."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hub_server import AnyFace, OtherFace, TinyFace, same_tensors, use_tiny_families

import facezoo
from facezoo.errors import (
    CardError,
    PickleRefusedError,
    UnknownNameError,
    UnsupportedError,
    WeightsNotFoundError,
)
from facezoo.hub import names as hub_names

CPU = {"device": "cpu"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    return use_tiny_families(monkeypatch, tmp_path / "checkpoints")


def test_a_model_is_named_by_text_or_a_path():
    with pytest.raises(TypeError, match="PathLike"):
        facezoo.load(None)
    with pytest.raises(UnknownNameError, match="no model or checkpoint named ''"):
        facezoo.load("")  # as a path, this is the current folder


@pytest.mark.parametrize(
    "name", ["tiny-faec", "tiny-face.frist", "no/such", "hf-hub:x", "./no/x/y"]
)
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(UnknownNameError, match=r"did you mean|hf-hub:org/name"):
        facezoo.load(name, **CPU)


def test_a_pickled_file_is_rejected_with_the_command_to_convert_it(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(TinyFace().state_dict(), path)
    with pytest.raises(PickleRefusedError, match=f"facezoo convert {path}"):
        facezoo.load(path, **CPU)


def test_a_file_is_loaded_by_the_card_next_to_it(folder, tmp_path):
    path = folder / "tiny-face.wide.safetensors"
    assert facezoo.load(path, **CPU).card.name == "tiny-face.wide"
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(path.read_bytes())
    with pytest.raises(CardError, match=r"expected alone\.json or config\.json"):
        facezoo.load(alone, **CPU)
    with pytest.raises(WeightsNotFoundError, match=r"no weights file .*gone\.safetensors"):
        facezoo.load(tmp_path / "gone.safetensors", **CPU)
    with pytest.raises(CardError, match=r"expected alone\.json or config\.json"):
        facezoo.load(tmp_path, **CPU)
    alone.unlink()
    with pytest.raises(WeightsNotFoundError, match=r"no config\.json.* but none"):
        facezoo.load(tmp_path, **CPU)


def test_a_folder_with_one_weights_file_and_its_card_is_loaded(folder, tmp_path):
    for file in folder.glob("tiny-face.wide.*"):
        shutil.copy(file, tmp_path)
    assert facezoo.load(str(tmp_path), **CPU).card.name == "tiny-face.wide"
    (weights,) = tmp_path.glob("*.safetensors")
    shutil.copy(weights, tmp_path / "another.safetensors")
    with pytest.raises(WeightsNotFoundError, match=r"not one \.safetensors file but another"):
        facezoo.load(str(tmp_path), **CPU)


def test_a_path_is_a_folder_even_if_a_model_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = facezoo.load("tiny-face", **CPU)
    with torch.no_grad():
        model.head.bias.fill_(7)
    folder = model.save_pretrained("tiny-face")
    for again in (facezoo.load(folder, **CPU), AnyFace.from_pretrained(folder)):
        assert same_tensors(again, model)
    assert not same_tensors(facezoo.load("tiny-face", **CPU), model)
    shutil.copytree(folder, tmp_path / "other-face")
    assert facezoo.load(Path("other-face"), pretrained=False, **CPU).model_name == "tiny-face"


def test_a_missing_path_is_not_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsNotFoundError, match="tiny-face; for the model of that name pass"):
        facezoo.load(Path("tiny-face"), **CPU)
    with pytest.raises(PickleRefusedError):
        facezoo.load(Path("tiny-face.pth"), **CPU)


def test_a_folder_with_a_pickle_alone_is_rejected_with_the_command_to_convert_it(tmp_path):
    torch.save({}, tmp_path / "model.pth")
    with pytest.raises(PickleRefusedError, match="facezoo convert"):
        facezoo.load(str(tmp_path), **CPU)


def test_a_malformed_config_is_named(tmp_path):
    facezoo.load("tiny-face", **CPU).save_pretrained(tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "color": 1}))
    with pytest.raises(CardError, match=r"config\.json: unknown field color"):
        facezoo.load(tmp_path / "copy", **CPU)


def test_only_names_on_the_hub_have_revisions(tmp_path):
    facezoo.load("tiny-face", **CPU).save_pretrained(tmp_path / "copy")
    for name in ("tiny-face", tmp_path / "copy", str(tmp_path / "copy")):
        with pytest.raises(ValueError, match="has no revisions, got revision='v1'"):
            AnyFace.from_pretrained(name, revision="v1")


def test_two_different_revisions_are_an_error(monkeypatch):
    with pytest.raises(ValueError, match="names a revision already, got revision='v2' as well"):
        AnyFace.from_pretrained("hf-hub:org/name@v1", revision="v2")
    calls = []
    monkeypatch.setattr(hub_names, "_on_hub", lambda *arguments: calls.append(arguments[:2]))
    hub_names.resolve("hf-hub:org/name@v1", revision="v1")
    assert calls == [("org/name", "v1")]


def test_a_base_class_loads_any_family_and_a_family_only_its_own():
    assert isinstance(AnyFace.from_pretrained("tiny-face"), TinyFace)
    with pytest.raises(UnsupportedError, match="checkpoint of 'tiny-face', not of 'other-face'"):
        OtherFace.from_pretrained("tiny-face")

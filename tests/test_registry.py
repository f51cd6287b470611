import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_server import TinyFace, card_mapping, write_checkpoint
from torch import nn

import facezoo
from facezoo import registry
from facezoo.errors import (
    CardError,
    LicenseError,
    PickleRefusedError,
    UnknownNameError,
    UnsupportedError,
    WeightsCorruptedError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from facezoo.hub import card as cards
from facezoo.hub import families
from facezoo.hub import names as hub_names
from facezoo.hub.card import Card
from facezoo.models.pretrained import Pretrained

CPU = {"device": "cpu"}


class OtherFace(TinyFace):
    model_name = "other-face"


class AnyFace(nn.Module, Pretrained):
    """A base class, as FaceModel is one."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A package with two checkpoints of tiny-face, a detector, and a family without any."""
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder)
    write_checkpoint(folder, tag="wide", default=False, architecture={"width": 9})
    write_checkpoint(folder, model="face-detector", tag="v1", labels=[])
    monkeypatch.setattr(cards, "CHECKPOINTS", folder)
    names = {"tiny-face": ("hub_server", "TinyFace"), "other-face": (__name__, "OtherFace")}
    for module in (families, hub_names, registry):
        monkeypatch.setattr(module, "FAMILIES", names)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return folder


def same(one, other):
    there = other.state_dict()
    return all(torch.equal(tensor, there[name]) for name, tensor in one.state_dict().items())


def test_a_model_is_named_by_text_or_a_path():
    for name in (None, 3):
        with pytest.raises(TypeError, match="named by text or a path, got"):
            facezoo.load(name)
    with pytest.raises(UnknownNameError, match="no model or checkpoint named ''"):
        facezoo.load("")  # which as a path is the current folder


def test_models_and_checkpoints_are_listed_by_pattern_and_detectors_are_not():
    assert facezoo.list_models() == ["other-face", "tiny-face"]
    assert facezoo.list_models("tiny*") == ["tiny-face"]
    assert facezoo.list_models(pretrained=True) == ["tiny-face.first", "tiny-face.wide"]
    assert facezoo.list_models("*wide", pretrained=True) == ["tiny-face.wide"]


def test_info_gives_the_card_of_a_checkpoint_or_of_the_default_one():
    assert facezoo.info("tiny-face").tag == "first"
    assert facezoo.info("tiny-face.wide").architecture == {"width": 9}
    assert facezoo.info("face-detector").tag == "v1"
    with pytest.raises(UnknownNameError, match="did you mean tiny-face"):
        facezoo.info("tiny-fac")
    with pytest.raises(UnknownNameError, match="pretrained=False"):
        facezoo.info("other-face")


def test_download_returns_the_verified_file_of_each_name(folder):
    found = facezoo.download(["tiny-face", "tiny-face.wide"])
    assert found["tiny-face"] == folder / "tiny-face.first.safetensors"
    assert found["tiny-face.wide"] == folder / "tiny-face.wide.safetensors"
    assert list(facezoo.download("face-detector.v1")) == ["face-detector.v1"]
    with pytest.raises(UnknownNameError):
        facezoo.download(["tiny-face", "nothing"])


def test_a_loaded_model_is_in_eval_mode_and_follows_its_card():
    model = facezoo.load("tiny-face", **CPU)
    assert isinstance(model, TinyFace)
    assert not model.training
    assert model.labels == ("happy", "sad")
    assert model.preprocessing.std == (0.25, 0.5, 0.5)
    assert model.card is facezoo.info("tiny-face")
    assert model.head.weight.dtype == torch.float32
    assert facezoo.load("tiny-face.wide", **CPU).architecture["width"] == 9


def test_dtype_and_device_are_chosen_and_an_absent_device_is_an_error():
    assert facezoo.load("tiny-face", dtype="bfloat16", **CPU).head.weight.dtype == torch.bfloat16
    assert facezoo.load("tiny-face", dtype=torch.float64, **CPU).head.bias.dtype == torch.float64
    with pytest.raises(RuntimeError, match="torch sees 0 CUDA devices"):
        facezoo.load("tiny-face", device="cuda")


def test_random_weights_have_the_architecture_of_the_checkpoint_and_no_card():
    model = facezoo.load("tiny-face.wide", pretrained=False, **CPU)
    assert model.architecture["width"] == 9
    assert model.card is None
    assert not same(model, facezoo.load("tiny-face.wide", **CPU))
    other = facezoo.load("other-face", pretrained=False, width=5, **CPU)
    assert isinstance(other, OtherFace)
    assert other.architecture == {"width": 5, "num_classes": 2}


def test_licences_that_are_not_in_the_list_are_refused_and_named():
    allowed = ["apache-2.0", "research-only", "unknown"]
    assert facezoo.load("tiny-face", licenses=allowed, **CPU).card.name == "tiny-face.first"
    with pytest.raises(LicenseError, match=r"\(weights: research-only; data: unknown\)"):
        facezoo.load("tiny-face", licenses=("Apache-2.0", "MIT"), **CPU)
    with pytest.raises(LicenseError, match="none at all"):
        facezoo.load("tiny-face", licenses=(), **CPU)
    with pytest.raises(TypeError, match=r"\('MIT',\)"):
        facezoo.load("tiny-face", licenses="MIT", **CPU)
    facezoo.load("tiny-face", pretrained=False, licenses=("Apache-2.0",), **CPU)


def test_other_classes_are_an_error_that_names_reset_classifier():
    with pytest.raises(
        WeightsMismatchError, match=r"num_classes=5.*reset_classifier\(5\)"
    ) as error:
        facezoo.load("tiny-face", num_classes=5, **CPU)
    assert "head.weight (2, 4) for (5, 4)" in str(error.value)
    model = facezoo.load("tiny-face", num_classes=5, pretrained=False, **CPU)
    assert len(model.labels) == 5


def test_an_override_that_the_class_does_not_take_is_named():
    with pytest.raises(TypeError, match="TinyFace takes no depth; it takes width, num_classes"):
        facezoo.load("tiny-face", depth=3, **CPU)


@pytest.mark.parametrize(
    "name", ["tiny-faec", "tiny-face.frist", "no/such", "hf-hub:x", "./no/x/y"]
)
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(UnknownNameError, match=r"did you mean|hf-hub:org/name"):
        facezoo.load(name, **CPU)


def test_a_pickled_file_is_refused_with_the_command_to_convert_it(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(TinyFace().state_dict(), path)
    with pytest.raises(PickleRefusedError, match=f"facezoo convert {path}"):
        facezoo.load(path, **CPU)


def test_a_file_is_loaded_by_the_card_beside_it(folder, tmp_path):
    path = folder / "tiny-face.wide.safetensors"
    assert facezoo.load(path, **CPU).card.name == "tiny-face.wide"
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(path.read_bytes())
    with pytest.raises(CardError, match=r"looked for alone\.json and config\.json"):
        facezoo.load(alone, **CPU)
    with pytest.raises(WeightsNotFoundError, match=r"no weights file .*gone\.safetensors"):
        facezoo.load(tmp_path / "gone.safetensors", **CPU)
    with pytest.raises(CardError, match=r"looked for alone\.json and config\.json"):
        facezoo.load(tmp_path, **CPU)
    alone.unlink()
    with pytest.raises(WeightsNotFoundError, match=r"no config\.json.* but none"):
        facezoo.load(tmp_path, **CPU)


def test_an_unchanged_model_keeps_its_metrics_when_saved(tmp_path):
    model = facezoo.load("tiny-face", **CPU)
    model.save_pretrained(tmp_path / "copy")
    again = facezoo.load(tmp_path / "copy", **CPU)
    assert same(model, again)
    assert again.card.metrics == model.card.metrics
    assert again.card.name == "tiny-face.first"
    assert again.card.weights.sha256 == model.card.weights.sha256
    assert "51.5" in (tmp_path / "copy" / "README.md").read_text()
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}


def test_more_digits_on_disk_change_nothing_and_fewer_do(tmp_path):
    model = facezoo.load("tiny-face", **CPU)
    model.save_pretrained(tmp_path / "wider", dtype="float32")
    wider = facezoo.load(tmp_path / "wider", **CPU)
    assert same(model, wider)
    assert (wider.card.weights.dtype, wider.card.name) == ("float32", "tiny-face.first")
    assert wider.card.metrics == model.card.metrics
    assert wider.card.weights.sha256 != model.card.weights.sha256
    model.save_pretrained(tmp_path / "narrower", dtype="bfloat16")
    assert Card.load(tmp_path / "narrower" / "config.json").name == "tiny-face.custom"


def test_a_changed_model_loses_its_metrics_and_names_its_base(tmp_path):
    model = facezoo.load("tiny-face", **CPU)
    with torch.no_grad():
        model.head.weight += 1e-6
    model.save_pretrained(tmp_path / "tuned")
    again = facezoo.load(tmp_path / "tuned", **CPU)
    assert same(model, again), "changed weights are stored in full precision"
    assert again.card.name == "tiny-face.custom"
    assert again.card.metrics == ()
    assert again.card.training.base == "tiny-face.first"
    assert "Changed in an unrecorded way" in again.card.limits[-1]
    assert again.card.licenses == model.card.licenses
    assert again.card.hub.revision is None


def test_labels_and_a_new_head_survive_the_trip(tmp_path):
    model = facezoo.load("tiny-face", **CPU)
    model.reset_classifier(3)
    model.labels = ("a", "b", "c")
    model.save_pretrained(tmp_path / "three")
    again = TinyFace.from_pretrained(tmp_path / "three")
    assert again.labels == ("a", "b", "c")
    assert again.architecture["num_classes"] == 3
    assert same(model, again)


def test_renamed_labels_drop_the_metrics(tmp_path):
    model = facezoo.load("tiny-face", **CPU)
    model.labels = ("sad", "happy")
    model.save_pretrained(tmp_path / "swapped")
    assert Card.load(tmp_path / "swapped" / "config.json").metrics == ()


def test_random_weights_are_saved_as_untrained_unless_told_otherwise(tmp_path):
    model = facezoo.load("tiny-face", pretrained=False, **CPU)
    model.save_pretrained(tmp_path / "random")
    card = Card.load(tmp_path / "random" / "config.json")
    assert card.tag == "untrained"
    assert "no training" in card.limits[0]
    told = Card.parse(card_mapping(tag="mine"))
    model.save_pretrained(tmp_path / "told", card=told, dtype="float16")
    again = facezoo.load(tmp_path / "told", **CPU)
    assert again.card.name == "tiny-face.mine"
    assert again.card.weights.dtype == "float16"
    assert again.card.weights.parameters == sum(p.numel() for p in model.parameters())
    assert again.card.training == told.training


def test_a_saved_file_that_was_altered_is_refused_and_kept(tmp_path):
    facezoo.load("tiny-face", **CPU).save_pretrained(tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightsCorruptedError, match="truncated"):
        facezoo.load(tmp_path / "copy", **CPU)
    assert path.exists()


@pytest.mark.parametrize("moment", ["to_json", "to_markdown"])
def test_saving_over_a_checkpoint_leaves_the_old_one_or_the_new_one(tmp_path, monkeypatch, moment):
    model = facezoo.load("tiny-face", **CPU)
    saved = model.save_pretrained(tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with torch.no_grad():
        model.head.bias += 1

    def interrupted(card):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Card, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    model.save_pretrained(saved)
    assert same(facezoo.load(saved, **CPU), model)
    assert {path.name for path in saved.iterdir()} == set(before)


def test_from_pretrained_is_strict_by_default(folder):
    card = facezoo.info("tiny-face")
    path = folder / card.weights.file
    model = TinyFace()
    del model.head
    changed = Card.load(folder / "tiny-face.first.json")
    model.card, model.preprocessing = changed, changed.preprocessing
    model.save_pretrained(path.parent.parent / "headless")
    with pytest.raises(WeightsMismatchError, match=r"missing: head\.weight, head\.bias"):
        TinyFace.from_pretrained(path.parent.parent / "headless")
    with pytest.warns(UserWarning, match=r"missing: head\.weight, head\.bias"):
        TinyFace.from_pretrained(path.parent.parent / "headless", strict=False)


def test_a_base_class_loads_any_family_and_a_family_refuses_another():
    assert isinstance(AnyFace.from_pretrained("tiny-face"), TinyFace)
    with pytest.raises(TypeError, match="checkpoint of 'tiny-face', and OtherFace is 'other-face'"):
        OtherFace.from_pretrained("tiny-face")


def test_a_bundled_checkpoint_has_no_revision_to_choose():
    with pytest.raises(ValueError, match="pinned by its card"):
        TinyFace.from_pretrained("tiny-face", revision="main")


def test_two_revisions_that_differ_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="names the revision 'v1', got revision='v2' as well"):
        AnyFace.from_pretrained("hf-hub:org/name@v1", revision="v2")
    asked = []
    monkeypatch.setattr(hub_names, "_hosted", lambda *given: asked.append(given[:2]))
    hub_names.resolve("hf-hub:org/name@v1", revision="v1")
    assert asked == [("org/name", "v1")]


def test_what_is_on_this_machine_has_no_revision_to_choose(tmp_path):
    facezoo.load("tiny-face", **CPU).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="on this machine and has no revisions, got revision='v1'"):
        AnyFace.from_pretrained(tmp_path, revision="v1")


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
        assert same(again, model)
    assert not same(facezoo.load("tiny-face", **CPU), model)
    shutil.copytree(folder, tmp_path / "other-face")
    assert facezoo.load(Path("other-face"), pretrained=False, **CPU).model_name == "tiny-face"


def test_a_path_that_is_not_there_is_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsNotFoundError, match="tiny-face; for the model of that name pass"):
        facezoo.load(Path("tiny-face"), **CPU)
    with pytest.raises(PickleRefusedError):
        facezoo.load(Path("tiny-face.pth"), **CPU)


def test_a_path_is_not_downloaded():
    for names in (Path("tiny-face"), ["tiny-face", Path("tiny-face")]):
        with pytest.raises(TypeError, match="got the path tiny-face, which needs no download"):
            facezoo.download(names)


def test_a_folder_with_a_pickle_alone_is_refused_with_the_command_to_convert_it(tmp_path):
    torch.save({}, tmp_path / "model.pth")
    with pytest.raises(PickleRefusedError, match="facezoo convert"):
        facezoo.load(str(tmp_path), **CPU)


def test_a_word_that_is_no_device_is_an_error_that_names_devices():
    with pytest.raises(RuntimeError, match="'gpu' is no device of torch; give 'cuda'"):
        facezoo.load("tiny-face", device="gpu")


@pytest.mark.parametrize("name", ["xpu", "meta", "hpu"])
def test_a_kind_of_device_that_nobody_tried_is_refused(name):
    with pytest.raises(RuntimeError, match=f"'{name}' is none that models run on; give 'cuda'"):
        facezoo.load("tiny-face", device=name)


@pytest.mark.parametrize("dtype", ["int8", torch.bool, "complex64", "float8_e4m3fn"])
def test_a_dtype_that_models_cannot_run_in_is_refused(dtype):
    with pytest.raises(ValueError, match="must be float32, float64, float16 or bfloat16 for a"):
        facezoo.load("tiny-face", dtype=dtype, **CPU)


def test_a_cuda_device_that_is_not_there_is_an_error_that_counts_devices():
    for name in ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(RuntimeError, match="torch sees 0 CUDA devices"):
            facezoo.load("tiny-face", device=name)


def test_networks_are_compiled_only_on_demand(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Linear, "compile", lambda self: compiled.append(self))
    monkeypatch.setattr(TinyFace, "networks", ("head", "absent"))
    facezoo.load("tiny-face", **CPU)
    assert compiled == []
    model = facezoo.load("tiny-face", compile=True, **CPU)
    assert compiled == [model.head]


def test_a_model_without_networks_refuses_to_be_compiled():
    with pytest.raises(UnsupportedError, match="compile=False"):
        facezoo.load("tiny-face", compile=True, **CPU)


def test_loading_draws_no_random_numbers():
    before = torch.random.get_rng_state()
    facezoo.load("tiny-face", **CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    facezoo.load("tiny-face", pretrained=False, **CPU)
    assert not torch.equal(torch.random.get_rng_state(), before)


def test_tensors_that_the_file_lacks_are_drawn_where_that_is_allowed(folder, tmp_path):
    model = facezoo.load("tiny-face", **CPU)
    del model.head
    changed = Card.load(folder / "tiny-face.first.json")
    model.card, model.preprocessing = changed, changed.preprocessing
    model.save_pretrained(tmp_path / "headless")
    with pytest.warns(UserWarning, match="missing"):
        loaded = facezoo.load(tmp_path / "headless", strict=False, **CPU)
    assert 0 < loaded.head.weight.abs().max() < 10


def test_a_malformed_config_is_named(tmp_path):
    facezoo.load("tiny-face", **CPU).save_pretrained(tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": 1}))
    with pytest.raises(CardError, match=r"config\.json: unknown field colour"):
        facezoo.load(tmp_path / "copy", **CPU)


def test_models_can_be_copied_and_pickled_for_workers():
    import copy
    import pickle

    model = facezoo.load("tiny-face", **CPU)
    assert same(copy.deepcopy(model), model)
    assert pickle.loads(pickle.dumps(model)).card == model.card
    assert replace(model.card, tag="x").name == "tiny-face.x"

"""Saving and loading models: cards stay true, weights stay usable by other libraries."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hub_server import TinyFace, card_mapping, same_tensors, use_tiny_families
from interrupting import interrupted
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrizations, prune

import facezoo
from facezoo.errors import UnsupportedError, WeightsCorruptedError, WeightsMismatchError
from facezoo.hub.card import Card
from facezoo.hub.tensors import save, sha256_of
from facezoo.models.ipd_fer import IPDFER

CPU = {"device": "cpu"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return use_tiny_families(monkeypatch, tmp_path / "checkpoints")


@pytest.mark.usefixtures("folder")
def test_an_unchanged_model_keeps_its_metrics_when_saved(tmp_path):
    model = facezoo.load("tiny-face", **CPU)
    model.save_pretrained(tmp_path / "copy")
    again = facezoo.load(tmp_path / "copy", **CPU)
    assert same_tensors(model, again)
    assert again.card.metrics == model.card.metrics
    assert again.card.name == "tiny-face.first"
    assert again.card.weights.sha256 == model.card.weights.sha256
    assert "51.5" in (tmp_path / "copy" / "README.md").read_text()
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}


@pytest.mark.usefixtures("folder")
def test_more_digits_on_disk_change_nothing_and_fewer_do(tmp_path):
    model = facezoo.load("tiny-face", **CPU)
    model.save_pretrained(tmp_path / "wider", dtype="float32")
    wider = facezoo.load(tmp_path / "wider", **CPU)
    assert same_tensors(model, wider)
    assert (wider.card.weights.dtype, wider.card.name) == ("float32", "tiny-face.first")
    assert wider.card.metrics == model.card.metrics
    assert wider.card.weights.sha256 != model.card.weights.sha256
    model.save_pretrained(tmp_path / "narrower", dtype="bfloat16")
    assert Card.load(tmp_path / "narrower" / "config.json").name == "tiny-face.custom"


@pytest.mark.usefixtures("folder")
def test_a_changed_model_loses_its_metrics_and_names_its_base(tmp_path):
    model = facezoo.load("tiny-face", **CPU)
    with torch.no_grad():
        model.head.weight += 1e-6
    model.save_pretrained(tmp_path / "tuned")
    again = facezoo.load(tmp_path / "tuned", **CPU)
    assert same_tensors(model, again), "changed weights are stored in full precision"
    assert again.card.name == "tiny-face.custom"
    assert again.card.metrics == ()
    assert again.card.training.base == "tiny-face.first"
    assert "Changed in an unrecorded way" in again.card.limits[-1]
    assert again.card.licenses == model.card.licenses
    assert again.card.hub.revision is None


@pytest.mark.usefixtures("folder")
def test_labels_and_a_new_head_survive_the_trip(tmp_path):
    model = facezoo.load("tiny-face", **CPU)
    model.reset_classifier(3)
    model.labels = ("a", "b", "c")
    model.save_pretrained(tmp_path / "three")
    again = TinyFace.from_pretrained(tmp_path / "three")
    assert again.labels == ("a", "b", "c")
    assert again.architecture["num_classes"] == 3
    assert same_tensors(model, again)


@pytest.mark.usefixtures("folder")
def test_renamed_labels_drop_the_metrics(tmp_path):
    model = facezoo.load("tiny-face", **CPU)
    model.labels = ("sad", "happy")
    model.save_pretrained(tmp_path / "swapped")
    assert Card.load(tmp_path / "swapped" / "config.json").metrics == ()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("a", "b", "c"), "labels must be 2 words, one per class, got 3"),
        ((), "labels must be 2 words, one per class, got 0"),
        (("a", "a"), "labels must be different words"),
        ("ab", "labels must be different words"),
    ],
)
def test_labels_that_load_would_reject_are_not_saved(tmp_path, labels, message):
    model = facezoo.load("tiny-face", **CPU)
    model.labels = labels
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.usefixtures("folder")
def test_random_weights_are_saved_as_untrained_or_with_the_callers_card(tmp_path):
    model = facezoo.load("tiny-face", pretrained=False, **CPU)
    model.save_pretrained(tmp_path / "random")
    card = Card.load(tmp_path / "random" / "config.json")
    assert card.tag == "untrained"
    assert "no training" in card.limits[0]
    card = Card.parse(card_mapping(tag="mine"))
    model.save_pretrained(tmp_path / "mine", card=card, dtype="float16")
    again = facezoo.load(tmp_path / "mine", **CPU)
    assert again.card.name == "tiny-face.mine"
    assert again.card.weights.dtype == "float16"
    assert again.card.weights.parameters == sum(p.numel() for p in model.parameters())
    assert again.card.training == card.training


@pytest.mark.usefixtures("folder")
def test_a_saved_file_that_was_altered_is_an_error_and_stays(tmp_path):
    facezoo.load("tiny-face", **CPU).save_pretrained(tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightsCorruptedError, match="truncated"):
        facezoo.load(tmp_path / "copy", **CPU)
    assert path.exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("moment", ["to_json", "to_markdown"])
def test_saving_over_a_checkpoint_leaves_the_old_one_or_the_new_one(tmp_path, monkeypatch, moment):
    model = facezoo.load("tiny-face", **CPU)
    saved = model.save_pretrained(tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with torch.no_grad():
        model.head.bias += 1

    with interrupted(monkeypatch, moment, Card):
        model.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    model.save_pretrained(saved)
    assert same_tensors(facezoo.load(saved, **CPU), model)
    assert {path.name for path in saved.iterdir()} == set(before)


@pytest.fixture
def headless(folder, tmp_path):
    """A folder whose weights file lacks the head."""
    model = facezoo.load("tiny-face", **CPU)
    saved = model.save_pretrained(tmp_path / "headless")
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith("head")}
    path = save(tensors, saved / "model.safetensors")
    card = Card.load(saved / "config.json")
    weights = replace(card.weights, sha256=sha256_of(path), size=path.stat().st_size)
    (saved / "config.json").write_text(replace(card, weights=weights).to_json())
    return saved


def test_a_missing_tensor_is_an_error_unless_strict_is_off(headless):
    with pytest.raises(WeightsMismatchError, match=r"missing: head\.weight, head\.bias"):
        TinyFace.from_pretrained(headless)
    with pytest.warns(UserWarning, match=r"missing: head\.weight, head\.bias"):
        model = TinyFace.from_pretrained(headless, strict=False)
    assert 0 < model.head.weight.abs().max() < 10, "initialized at random"


def small():
    return IPDFER("test_resnet.r160_in1k", 8, 3, None, None, expression_rank=4).eval()


def test_numpy_scalars_in_the_architecture_are_saved(tmp_path):
    model = small()
    model.architecture["feature_dim"] = np.int64(8)
    again = facezoo.load(model.save_pretrained(tmp_path), **CPU)
    assert same_tensors(again, model)
    assert type(again.architecture["feature_dim"]) is int


def add_adapter(model):
    """Wrap a layer as peft does."""
    base = model.expression_classifier
    wrapped = nn.Module()
    wrapped.base_layer = base
    wrapped.lora_A = nn.Linear(base.in_features, 2, bias=False)
    model.expression_classifier = wrapped


def quantize(model):
    model.expression_classifier = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(model.expression_classifier), {nn.Linear}
    )[0]


SURGERY = [
    (add_adapter, "merge_and_unload"),
    (lambda m: prune.l1_unstructured(m.expression_classifier, "weight", 0.5), r"prune\.remove"),
    (lambda m: parametrizations.weight_norm(m.expression_classifier), "remove_parametrizations"),
    (lambda m: nn.utils.spectral_norm(m.expression_classifier), "remove_spectral_norm"),
    (quantize, "before it is quantized"),
    (lambda m: setattr(m, "expression_classifier", nn.Linear(8, 5)), "expression_classifier"),
    (lambda m: m.expression_encoder.projection.append(nn.Linear(8, 8)), "restore the layers"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch.ao
@pytest.mark.parametrize(("change", "advice"), SURGERY)
def test_a_model_that_load_could_not_open_is_not_saved(tmp_path, change, advice):
    model = small()
    change(model)
    with pytest.raises(UnsupportedError, match=rf"could not open .*{advice}"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pruning_that_was_made_permanent_is_saved(tmp_path):
    model = small()
    prune.l1_unstructured(model.expression_classifier, "weight", 0.5)
    prune.remove(model.expression_classifier, "weight")
    again = facezoo.load(model.save_pretrained(tmp_path), **CPU)
    assert same_tensors(again, model)


@pytest.mark.filterwarnings("default")  # of peft
def test_merged_adapters_of_peft_are_saved_and_unmerged_ones_are_not(tmp_path):
    peft = pytest.importorskip("peft")
    model = small()
    config = peft.LoraConfig(r=2, target_modules=["expression_classifier"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    with pytest.raises(UnsupportedError, match="merge_and_unload"):
        model.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload()
    assert same_tensors(facezoo.load(merged.save_pretrained(tmp_path), **CPU), merged)


def test_saving_draws_no_random_numbers(tmp_path):
    model = small()
    before = torch.random.get_rng_state()
    model.save_pretrained(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", facezoo.list_models())
def test_loaded_parameters_are_contiguous_for_other_libraries(name, tmp_path):
    for model in (facezoo.load(name, **CPU), facezoo.load(name, pretrained=False, **CPU)):
        state = model.state_dict()
        assert [key for key, tensor in state.items() if not tensor.is_contiguous()] == []
        assert len(parameters_to_vector(model.parameters())) > 0
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "a.safetensors")


def test_parameters_stay_contiguous_when_images_are_encoded(tmp_path):
    model = facezoo.load("ipd-fer", **CPU)
    crops = torch.zeros(9, *model.input_shape)
    model.run(crops.contiguous(memory_format=torch.channels_last), ["encode_expression"])
    save_file(model.state_dict(), tmp_path / "a.safetensors")


def test_the_default_device_of_the_caller_does_not_matter():
    with torch.device("meta"):
        model = facezoo.load("adv3d", **CPU)
    assert model.device.type == "cpu"
    assert same_tensors(model, facezoo.load("adv3d", **CPU))


def test_loading_without_memory_for_parameters_is_an_error():
    accelerate = pytest.importorskip("accelerate")
    with (
        accelerate.init_empty_weights(),
        pytest.raises(RuntimeError, match=r"outside of init_empty_weights\(\)"),
    ):
        facezoo.load("adv3d", **CPU)

"""Exported stages give what the model gives: ONNX Runtime, torch.export, timm, Transformers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import facezoo
from facezoo import export as module
from facezoo.cli.main import main
from facezoo.errors import UnsupportedError
from facezoo.export import Stage, export, stage_names
from facezoo.hub.card import bundled_cards
from facezoo.hub.families import FAMILIES
from facezoo.models.adv3d import Adv3D
from facezoo.models.identity_removal import IdentityRemoval
from facezoo.models.ipd_fer import IPDFER
from facezoo.preprocess.alignment import prepare_aligned
from facezoo.preprocess.images import read_image

BACKBONE = "test_resnet.r160_in1k"
PORTRAITS = sorted((Path(__file__).parent.parent / "examples" / "portraits").glob("*.jpg"))
ALL = ["expression", "identity", "pose", "probabilities", "reconstruct", "neutralize", "frontalize"]


def shaken(model):
    """No norm as it was built, so that nothing is right by being the identity."""
    torch.manual_seed(0)
    for part in model.modules():
        if isinstance(part, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            part.running_mean.normal_(std=0.2)
            part.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    options = {"pose_backbone": BACKBONE, "decoder_size": 14, "decoder_width": 4}
    return shaken(IPDFER(BACKBONE, 8, 3, expression_rank=4, **options))


@pytest.fixture(scope="module")
def batch():
    return torch.randn(5, 3, 112, 112, generator=torch.Generator().manual_seed(3))


def told(model, name, batch):
    with torch.inference_mode():
        return Stage(model, stage_names(model)[name])(batch)


def test_a_stage_that_there_is_not_is_no_timm_model(model):
    with pytest.raises(UnsupportedError, match="ipd-fer has no stage 'mood' that is a timm model"):
        model.as_timm("mood")


def test_a_name_is_no_model_to_export(tmp_path):
    with pytest.raises(TypeError, match=r"one that facezoo\.load gives, got str"):
        export("ipd-fer", tmp_path)


def test_every_capability_is_a_stage(model):
    assert list(stage_names(model)) == ALL


def test_changed_weights_do_not_join_the_export_of_the_checkpoint(tmp_path):
    model = IPDFER(BACKBONE, 8, pose_backbone=None, decoder_size=None)
    model = facezoo.load(model.save_pretrained(tmp_path / "model"), device="cpu")
    export(model, tmp_path / "out", "torch-export", ["probabilities"])
    with torch.no_grad():
        model.expression_classifier.bias += 1
    with pytest.raises(ValueError, match=r"differs from .* in tensors_sha256"):
        export(model, tmp_path / "out", "torch-export", ["expression"])


def test_timm_leaves_out_expressions_without_identity(tmp_path):
    model = IPDFER(BACKBONE, 8, pose_backbone=None, decoder_size=None).eval()
    model.identity_removal = IdentityRemoval(8, 1)
    model.identity_removal.mean.fill_(1)
    model.identity_removal.read[0] = model.identity_removal.write[:, 0] = 1
    paths = export(model, tmp_path, "timm")
    assert [path.name for path in paths] == ["probabilities", "identity"]
    with pytest.raises(UnsupportedError, match="no stage 'expression' for timm"):
        export(model, tmp_path, "timm", ["expression"])


SOME = ["probabilities", "reconstruct"]
REST = [name for name in ALL if name not in SOME]
STAGES = pytest.mark.parametrize("stages", [SOME, pytest.param(REST, marks=pytest.mark.slow)])


@STAGES
def test_onnx_runtime_gives_the_numbers_of_the_stages(model, batch, tmp_path, stages):
    onnxruntime = pytest.importorskip("onnxruntime")
    paths = export(model, tmp_path, "onnx", stages)
    assert [path.name for path in paths] == [f"{name}.onnx" for name in stages]
    for path in paths:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for images in (batch, batch[:1]):
            (got,) = session.run(None, {"images": images.numpy()})
            np.testing.assert_allclose(got, told(model, path.stem, images).numpy(), atol=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*(p.name for p in paths), "facezoo.json"]
    )


@STAGES
def test_an_exported_program_gives_the_numbers_of_the_stages(model, batch, tmp_path, stages):
    for path in export(model, tmp_path, "torch-export", stages):
        program = torch.export.load(path).module()
        for images in (batch, batch[:1]):
            torch.testing.assert_close(
                program(images), told(model, path.stem, images), atol=1e-4, rtol=0
            )


def test_a_timm_folder_gives_the_same_features_and_logits(model, batch, tmp_path):
    for path in export(model, tmp_path, "timm"):
        network = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
        with torch.inference_mode():
            got = network(batch)
        got = got.softmax(-1) if path.name == "probabilities" else got
        torch.testing.assert_close(got, told(model, path.name, batch), atol=1e-4, rtol=0)


def test_a_timm_folder_claims_nothing_of_other_weights_of_its_backbone(tmp_path):
    model = facezoo.load("ipd-fer", device="cpu")
    (path,) = export(model, tmp_path / "bundled", "timm", ["pose"])
    said = timm.create_model(f"local-dir:{path}", pretrained=True).pretrained_cfg
    assert said["license"] == "research-only" == model.card.licenses.weights
    model.card = None
    (path,) = export(model, tmp_path / "own", "timm", ["probabilities"])
    network = timm.create_model(f"local-dir:{path}", pretrained=True)
    origin = ("license", "tag", "description", "origin_url", "paper_name", "paper_ids", "notes")
    assert not [key for key in origin if network.pretrained_cfg.get(key)]
    given = timm.data.resolve_model_data_config(network, use_test_size=True)
    assert tuple(given["input_size"]) == model.input_shape


def test_the_bundled_checkpoint_is_a_timm_model_with_its_labels_and_input(tmp_path):
    model = facezoo.load("ipd-fer", device="cpu")
    (path,) = export(model, tmp_path, "timm", ["probabilities"])
    network = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    assert tuple(network.pretrained_cfg["input_size"]) == (3, 112, 112)
    assert tuple(network.pretrained_cfg["mean"]) == model.preprocessing.mean
    photo = torch.from_numpy(read_image(PORTRAITS[0]))
    side = min(photo.shape[:2])
    crop = prepare_aligned([photo[:side, :side]], model.preprocessing)
    with torch.inference_mode():
        got = network(crop).softmax(-1)
    torch.testing.assert_close(got, told(model, "probabilities", crop), atol=1e-4, rtol=0)


def test_the_pipeline_of_transformers_gives_the_same_probabilities(model, tmp_path):
    pipeline = pytest.importorskip("transformers").pipeline
    (path,) = export(model, tmp_path, "timm", ["probabilities"])
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    classify = pipeline("image-classification", model=str(path), device="cpu")
    got = {entry["label"]: entry["score"] for entry in classify(Image.fromarray(pixels), top_k=3)}
    wanted = model.predict_expression(pixels, aligned=True)
    for label, probability in zip(model.labels, wanted.probabilities[0].tolist(), strict=True):
        assert got[label] == pytest.approx(probability, abs=1e-4)


def opened(path, kind):
    """What was written, as a function, without the help of this package."""
    if kind == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda given: torch.from_numpy(session.run(None, {"images": given.numpy()})[0])
    if kind == "torch-export":
        return torch.export.load(path).module()
    network = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    return nn.Sequential(network, nn.Softmax(-1)) if path.name == "probabilities" else network


REFUSED = {
    ("latent-simclr.lfw-preview", "timm"): "no stage that timm can hold",
    ("latentface.lfw", "timm"): "no stage that timm can hold",
    **{
        (name, kind): f"cannot be exported as {kind}"
        for name in ("adv3d.ict", "adv3d.ict-neutral")
        for kind in ("onnx", "timm")
    },
}
LOADABLE = [name for name, card in bundled_cards().items() if card.model in FAMILIES]


@pytest.mark.slow
@pytest.mark.parametrize("kind", module.FORMATS)
@pytest.mark.parametrize("name", LOADABLE)
def test_every_bundled_checkpoint_gives_its_numbers_in_every_format(name, kind, tmp_path):
    model = facezoo.load(name, device="cpu")
    if (name, kind) in REFUSED:
        with pytest.raises(UnsupportedError, match=REFUSED[name, kind]):
            export(model, tmp_path, kind)
        return
    paths = export(model, tmp_path, kind)
    # Neither the number nor the values of those that were exported with.
    given = module._inputs(model).flip(0)[:1] * 1.1
    for path in paths:
        with torch.inference_mode():
            got = opened(path, kind)(given)
        torch.testing.assert_close(got, told(model, path.stem, given), atol=1e-4, rtol=0)


def test_pictures_that_are_rasterised_are_no_stage():
    small = {"width": 8, "number_width": 8, "code_dim": 16, "unet_width": 8}
    model = facezoo.load("latentface", pretrained=False, device="cpu", **small)
    assert list(stage_names(model)) == ["expression", "identity", "pose", "factors"]


@pytest.mark.slow
def test_the_sampler_of_latentface_takes_any_batch(tmp_path):
    small = {"width": 8, "number_width": 8, "code_dim": 16, "unet_width": 8}
    model = facezoo.load("latentface", pretrained=False, device="cpu", **small)
    (path,) = export(model, tmp_path, "torch-export", ["identity"])
    crops = torch.randn(5, *model.input_shape)
    got = opened(path, "torch-export")(crops)
    torch.testing.assert_close(got, told(model, "identity", crops), atol=1e-4, rtol=0)


def test_a_model_of_meshes_exports_codes_and_meshes(tmp_path):
    torch.manual_seed(0)
    mesh = Adv3D(20, 30, 4, 3, 5)
    template = torch.randn(20, 3) * 50
    mesh.set_template(template, torch.zeros(30, 3), torch.arange(4))
    shaken(mesh)
    assert list(stage_names(mesh)) == ["expression", "identity", "reconstruct", "neutralize"]
    given = template + torch.randn(5, 20, 3)
    paths = export(mesh, tmp_path, "torch-export", ["expression", "reconstruct", "neutralize"])
    expression, whole, neutral = (opened(path, "torch-export")(given) for path in paths)
    torch.testing.assert_close(expression, mesh.encode_expression(given, units="mm"))
    for got, wanted in ((whole, mesh.reconstruct), (neutral, mesh.neutralize)):
        stacked = torch.stack([one.vertices for one in wanted(given, units="mm")])
        torch.testing.assert_close(got, stacked, atol=1e-4, rtol=0)
    said = json.loads((tmp_path / "facezoo.json").read_text())
    assert said["input"] == {"name": "images", "shape": [20, 3], "units": "mm", "frame": "template"}
    assert "preprocessing" not in said
    with pytest.raises(UnsupportedError, match="cannot be exported as onnx: its float32 numbers"):
        export(mesh, tmp_path, "onnx")


def test_what_is_written_says_how_crops_are_prepared(model, tmp_path):
    export(model, tmp_path, "torch-export", ["identity"])
    said = json.loads((tmp_path / "facezoo.json").read_text())
    assert said["preprocessing"]["template"] == "arcface112"
    assert said["input"]["shape"] == [3, 112, 112]
    stages = said["formats"]["torch-export"]["stages"]
    assert list(stages) == ["identity"]
    assert stages["identity"]["largest_difference"] <= 1e-4


def test_formats_and_stages_of_a_folder_are_all_described(model, tmp_path):
    export(model, tmp_path, "torch-export", ["expression"])
    export(model, tmp_path, "timm", ["identity"])
    export(model, tmp_path, "torch-export", ["probabilities"])
    export(model, tmp_path, "timm", ["identity"])
    said = json.loads((tmp_path / "facezoo.json").read_text())
    files = {
        kind: [stage["file"] for stage in entry["stages"].values()]
        for kind, entry in said["formats"].items()
    }
    assert files == {"torch-export": ["expression.pt2", "probabilities.pt2"], "timm": ["identity"]}
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"facezoo.json", "expression.pt2", "probabilities.pt2", "identity"}
    said["weights_sha256"] = "0" * 64
    (tmp_path / "facezoo.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"that differs from .* in weights_sha256"):
        export(model, tmp_path, "timm", ["expression"])


def test_the_model_itself_is_left_as_it_was(model, tmp_path):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    export(model, tmp_path, "torch-export", ["probabilities"])
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    model.eval()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_cannot_be_exported_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="one of onnx, torch-export, timm"):
        export(model, tmp_path, "coreml")
    with pytest.raises(UnsupportedError, match="no stage 'depth' for onnx; it has expression"):
        export(model, tmp_path, "onnx", ["depth"])
    with pytest.raises(UnsupportedError, match="no stage 'reconstruct' for timm"):
        export(model, tmp_path, "timm", ["reconstruct"])


def test_a_stage_that_came_out_wrong_is_an_error(model, tmp_path, monkeypatch):
    def wrong(stage, name, folder, images):
        (folder / name).touch()
        return folder / name, lambda crops: stage(crops) + 1e-3 * (name == "identity")

    monkeypatch.setitem(module._WRITERS, "torch-export", wrong)
    with pytest.raises(RuntimeError, match="differs from the model by 1"):
        export(model, tmp_path, "torch-export", ["expression", "identity"])
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_it_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"facezoo\[export\]"):
        export(model, tmp_path, "onnx", ["identity"])


def test_the_command_line_exports(tmp_path, capsys):
    base = IPDFER(BACKBONE, 8, pose_backbone=None, decoder_size=None)
    base.save_pretrained(tmp_path / "base")
    words = ["export", str(tmp_path / "base"), "--format", "timm", "--out", str(tmp_path / "out")]
    assert main([*words, "--stages", "expression"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'expression'}\n"
    assert main([*words, "--stages", "mood"]) == 1
    assert "no stage 'mood'" in capsys.readouterr().err

"""Exported stages compute what the model computes, in each runtime."""

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
from facezoo.models.ipd_fer.networks import RefinedDecoder
from facezoo.preprocess.alignment import prepare_aligned
from facezoo.preprocess.images import read_image
from facezoo.runtimes import open_onnx, write_onnx

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


def expected_output(model, name, batch):
    with torch.inference_mode():
        return Stage(model, stage_names(model)[name])(batch)


def test_an_unknown_stage_is_not_a_timm_model(model):
    with pytest.raises(UnsupportedError, match="ipd-fer has no stage 'mood' that is a timm model"):
        model.as_timm("mood")


@pytest.mark.parametrize("kind", ["onnx", "torch-export", "timm"])
def test_the_defaults_of_torch_do_not_matter(model, batch, tmp_path, kind):
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            export(model, tmp_path, kind, "probabilities")
            network = model.as_timm("pose")
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(network(batch), expected_output(model, "pose", batch))


def test_a_name_is_not_a_model_to_export(tmp_path):
    with pytest.raises(TypeError, match=r"result of facezoo\.load, got str"):
        export("ipd-fer", tmp_path)


def test_every_capability_is_a_stage(model):
    assert list(stage_names(model)) == ALL


def test_changed_weights_do_not_go_into_the_export_of_the_checkpoint(tmp_path):
    model = IPDFER(BACKBONE, 8, pose_backbone=None, decoder_size=None)
    model = facezoo.load(model.save_pretrained(tmp_path / "model"), device="cpu")
    (path,) = export(model, tmp_path / "out", "torch-export", "probabilities")
    assert path.name == "probabilities.pt2"
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


def onnx_runtime(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def openvino(path):
    """Open a file in float32 as the export guide does; some CPUs compute in bfloat16 by default."""
    core = pytest.importorskip("openvino").Core()
    network = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: torch.from_numpy(network([images.numpy()])[0])


def opencv(path):
    cv2 = pytest.importorskip("cv2", minversion="5")
    network = cv2.dnn.readNetFromONNX(str(path))

    def run(images):
        network.setInput(images.numpy(), "images")
        return torch.from_numpy(network.forward())

    return run


RUNTIMES = [onnx_runtime, openvino, opencv]


@STAGES
def test_every_runtime_of_onnx_computes_the_outputs_of_the_stages(model, batch, tmp_path, stages):
    paths = export(model, tmp_path, "onnx", stages)
    names = sorted([*(f"{name}.onnx" for name in stages), "facezoo.json"])
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for path in paths:
        expected = expected_output(model, path.stem, batch)
        for open_in in RUNTIMES:
            run = open_in(path)
            for count in (5, 1):
                output = run(batch[:count])
                difference = (output - expected[:count]).abs().max()
                assert difference < 1e-4, open_in.__name__


def test_a_pixel_of_nan_gives_nan_in_onnx_runtime_as_in_the_model(model, batch, tmp_path):
    (path,) = export(model, tmp_path, "onnx", ["probabilities"])
    broken = batch.clone()
    broken[0, 0, 5, 5] = float("nan")
    for output in (onnx_runtime(path)(broken), expected_output(model, "probabilities", broken)):
        assert output[0].isnan().all()
        assert not output[1:].isnan().any()


@STAGES
def test_an_exported_program_computes_the_outputs_of_the_stages(model, batch, tmp_path, stages):
    for path in export(model, tmp_path, "torch-export", stages):
        program = torch.export.load(path).module()
        for images in (batch, batch[:1]):
            torch.testing.assert_close(
                program(images), expected_output(model, path.stem, images), atol=1e-4, rtol=0
            )


def test_a_timm_folder_computes_the_same_features_and_logits(model, batch, tmp_path):
    for path in export(model, tmp_path, "timm"):
        network = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
        with torch.inference_mode():
            output = network(batch)
        output = output.softmax(-1) if path.name == "probabilities" else output
        torch.testing.assert_close(
            output, expected_output(model, path.name, batch), atol=1e-4, rtol=0
        )


def test_a_timm_folder_describes_no_other_weights_of_its_backbone(tmp_path):
    model = facezoo.load("ipd-fer", device="cpu")
    (path,) = export(model, tmp_path / "bundled", "timm", ["pose"])
    description = timm.create_model(f"local-dir:{path}", pretrained=True).pretrained_cfg
    assert description["license"] == "research-only" == model.card.licenses.weights
    model.card = None
    (path,) = export(model, tmp_path / "own", "timm", ["probabilities"])
    network = timm.create_model(f"local-dir:{path}", pretrained=True)
    origin = ("license", "tag", "description", "origin_url", "paper_name", "paper_ids", "notes")
    assert not [key for key in origin if network.pretrained_cfg.get(key)]
    inputs = timm.data.resolve_model_data_config(network, use_test_size=True)
    assert tuple(inputs["input_size"]) == model.input_shape


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
        output = network(crop).softmax(-1)
    torch.testing.assert_close(
        output, expected_output(model, "probabilities", crop), atol=1e-4, rtol=0
    )


def test_the_pipeline_of_transformers_computes_the_same_probabilities(model, tmp_path):
    pipeline = pytest.importorskip("transformers").pipeline
    (path,) = export(model, tmp_path, "timm", ["probabilities"])
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    classify = pipeline("image-classification", model=str(path), device="cpu")
    output = {
        entry["label"]: entry["score"] for entry in classify(Image.fromarray(pixels), top_k=3)
    }
    expected = model.predict_expression(pixels, aligned=True)
    for label, probability in zip(model.labels, expected.probabilities[0].tolist(), strict=True):
        assert output[label] == pytest.approx(probability, abs=1e-4)


def opened(path, kind):
    """Open an exported stage as a function, without this package."""
    if kind == "onnx":
        return onnx_runtime(path)
    if kind == "torch-export":
        return torch.export.load(path).module()
    network = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    return nn.Sequential(network, nn.Softmax(-1)) if path.name == "probabilities" else network


UNSUPPORTED = {
    ("latent-simclr", "timm"): "no stage that timm supports",
    ("latentface", "timm"): "no stage that timm supports",
    ("adv3d", "onnx"): "cannot be exported as onnx",
    ("adv3d", "timm"): "cannot be exported as timm",
}
"""Formats that a family cannot be exported to, with the error."""
LOADABLE = [name for name, card in bundled_cards().items() if card.model in FAMILIES]


@pytest.mark.slow
@pytest.mark.parametrize("kind", module.FORMATS)
@pytest.mark.parametrize("name", LOADABLE)
def test_every_bundled_checkpoint_keeps_its_outputs_in_every_format(name, kind, tmp_path):
    model = facezoo.load(name, device="cpu")
    family = model.card.model
    if (family, kind) in UNSUPPORTED:
        with pytest.raises(UnsupportedError, match=UNSUPPORTED[family, kind]):
            export(model, tmp_path, kind)
        return
    paths = export(model, tmp_path, kind)
    # Another number and other values than at the export.
    inputs = module._inputs(model).flip(0)[:1] * 1.1
    for path in paths:
        runs = [open_in(path) for open_in in RUNTIMES] if kind == "onnx" else [opened(path, kind)]
        for run in runs:
            with torch.inference_mode():
                output = run(inputs)
            expected = expected_output(model, path.stem, inputs)
            torch.testing.assert_close(output, expected, atol=1e-4, rtol=0)


def test_rasterized_images_are_not_a_stage():
    small = {"width": 8, "number_width": 8, "code_dim": 16, "unet_width": 8}
    model = facezoo.load("latentface", pretrained=False, device="cpu", **small)
    assert list(stage_names(model)) == ["expression", "identity", "pose", "factors"]


def test_the_graph_of_the_refined_decoder_takes_any_batch(tmp_path):
    decoder = RefinedDecoder(16, size=32, width=8, rank=4).eval()
    features = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "decoder.onnx"
    write_onnx(decoder, path, features[:2], "features", ["images"], free=[0])
    output = open_onnx(path, "onnxruntime")(features)
    torch.testing.assert_close(output, decoder(features), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["module", "torch-export"])
def test_the_refined_decoder_takes_an_empty_batch(kind):
    decoder = RefinedDecoder(16, size=32, width=8, rank=4).eval()
    features = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    run = decoder
    if kind == "torch-export":
        shapes = ({0: torch.export.Dim("batch")},)
        run = torch.export.export(decoder, (features,), dynamic_shapes=shapes).module()
    with torch.no_grad():
        assert run(features[:0]).shape == (0, 3, 32, 32)
        torch.testing.assert_close(run(features), decoder(features), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_sampler_of_latentface_takes_any_batch(tmp_path):
    small = {"width": 8, "number_width": 8, "code_dim": 16, "unet_width": 8}
    model = facezoo.load("latentface", pretrained=False, device="cpu", **small)
    (path,) = export(model, tmp_path, "torch-export", ["identity"])
    crops = torch.randn(5, *model.input_shape)
    output = opened(path, "torch-export")(crops)
    torch.testing.assert_close(output, expected_output(model, "identity", crops), atol=1e-4, rtol=0)


def test_a_model_of_meshes_exports_codes_and_meshes(tmp_path):
    torch.manual_seed(0)
    mesh = Adv3D(20, 30, 4, 3, 5)
    template = torch.randn(20, 3) * 50
    mesh.set_template(template, torch.zeros(30, 3), torch.arange(4))
    shaken(mesh)
    assert list(stage_names(mesh)) == ["expression", "identity", "reconstruct", "neutralize"]
    inputs = template + torch.randn(5, 20, 3)
    paths = export(mesh, tmp_path, "torch-export", ["expression", "reconstruct", "neutralize"])
    expression, whole, neutral = (opened(path, "torch-export")(inputs) for path in paths)
    torch.testing.assert_close(expression, mesh.encode_expression(inputs, units="mm"))
    for output, expected in ((whole, mesh.reconstruct), (neutral, mesh.neutralize)):
        stacked = torch.stack([one.vertices for one in expected(inputs, units="mm")])
        torch.testing.assert_close(output, stacked, atol=1e-4, rtol=0)
    description = json.loads((tmp_path / "facezoo.json").read_text())
    assert description["input"] == {
        "name": "images",
        "shape": [20, 3],
        "units": "mm",
        "frame": "template",
    }
    assert "preprocessing" not in description
    with pytest.raises(UnsupportedError, match="cannot be exported as onnx: its float32 numbers"):
        export(mesh, tmp_path, "onnx")


def test_the_description_names_the_preparation_of_crops(model, tmp_path):
    export(model, tmp_path, "torch-export", ["identity"])
    description = json.loads((tmp_path / "facezoo.json").read_text())
    assert description["preprocessing"]["template"] == "arcface112"
    assert description["input"]["shape"] == [3, 112, 112]
    stages = description["formats"]["torch-export"]["stages"]
    assert list(stages) == ["identity"]
    assert stages["identity"]["largest_difference"] <= 1e-4


def test_formats_and_stages_of_a_folder_are_all_described(model, tmp_path):
    export(model, tmp_path, "torch-export", ["expression"])
    export(model, tmp_path, "timm", ["identity"])
    export(model, tmp_path, "torch-export", ["probabilities"])
    export(model, tmp_path, "timm", ["identity"])
    description = json.loads((tmp_path / "facezoo.json").read_text())
    files = {
        kind: [stage["file"] for stage in entry["stages"].values()]
        for kind, entry in description["formats"].items()
    }
    assert files == {"torch-export": ["expression.pt2", "probabilities.pt2"], "timm": ["identity"]}
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"facezoo.json", "expression.pt2", "probabilities.pt2", "identity"}
    description["weights_sha256"] = "0" * 64
    (tmp_path / "facezoo.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"that differs from .* in weights_sha256"):
        export(model, tmp_path, "timm", ["expression"])


def test_the_model_itself_does_not_change(model, tmp_path):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    export(model, tmp_path, "torch-export", ["probabilities"])
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    model.eval()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_detector_is_exported_with_its_decoding(tmp_path, capsys):
    import onnxruntime

    assert main(["export", "face-detector", "--format", "onnx", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "detections.onnx")]
    description = json.loads((tmp_path / "facezoo.json").read_text())
    assert description["formats"]["onnx"]["stages"]["detections"]["largest_difference"] < 1e-5
    pixels = torch.from_numpy(read_image(PORTRAITS[0])).permute(2, 0, 1)[None] / 127.5 - 1
    height, width = pixels.shape[2:]
    padded = torch.nn.functional.pad(pixels, (0, -width % 64, 0, -height % 64))
    session = onnxruntime.InferenceSession(tmp_path / "detections.onnx")
    scores, boxes, landmarks = session.run(None, {"images": padded.numpy()})
    best = scores[0].argmax()
    faces = facezoo.detect(PORTRAITS[0], max_side=max(height, width), faces="largest")
    assert scores[0, best] > 0.9
    side = float(faces.boxes[0, 2] - faces.boxes[0, 0])
    assert np.abs(boxes[0, best] - faces.boxes[0].numpy()).max() < 0.1 * side
    assert np.abs(landmarks[0, best] - faces.landmarks[0].numpy()).max() < 0.1 * side


def test_the_detector_has_no_stages(tmp_path, capsys):
    words = ["export", "face-detector", "--format", "timm", "--out", str(tmp_path)]
    assert main(words) == 2
    assert "exported by --format onnx" in capsys.readouterr().err


def test_unknown_formats_and_stages_are_errors(model, tmp_path):
    with pytest.raises(ValueError, match="one of onnx, torch-export, timm"):
        export(model, tmp_path, "coreml")
    with pytest.raises(UnsupportedError, match="no stage 'depth' for onnx; it has expression"):
        export(model, tmp_path, "onnx", ["depth"])
    with pytest.raises(UnsupportedError, match="no stage 'reconstruct' for timm"):
        export(model, tmp_path, "timm", ["reconstruct"])


def test_a_stage_with_other_outputs_is_an_error(model, tmp_path, monkeypatch):
    def wrong(stage, name, folder, images):
        (folder / name).touch()
        return folder / name, lambda crops: stage(crops) + 1e-3 * (name == "identity")

    monkeypatch.setitem(module._WRITERS, "torch-export", wrong)
    with pytest.raises(RuntimeError, match=r"identity .* differs from the model .* by 1"):
        export(model, tmp_path, "torch-export", ["expression", "identity"])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(model, tmp_path, monkeypatch):
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

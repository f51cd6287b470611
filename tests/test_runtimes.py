"""Models compute the same in ONNX Runtime and in OpenVINO as in PyTorch."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch.nn.functional import cosine_similarity

import facezoo
from facezoo import runtimes
from facezoo.errors import UnsupportedError
from facezoo.models.adv3d import Adv3D
from facezoo.models.ipd_fer import IPDFER

BACKBONE = "test_resnet.r160_in1k"
BOTH = pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
PORTRAIT = "examples/portraits/grace_hopper.jpg"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = IPDFER(BACKBONE, 8, 3, pose_backbone=None, decoder_size=14, decoder_width=4)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            part.running_mean.normal_(std=0.2)
    return model.eval()


@pytest.fixture
def crops():
    return torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(2))


def graphs(folder):
    return sorted(folder.rglob("*.onnx"))


@BOTH
def test_features_and_classes_are_those_of_pytorch(model, crops, runtime, tmp_path):
    pytest.importorskip(runtime)
    names = ["encode_expression", "predict_expression", "encode_identity"]
    before, expected = deepcopy(model.state_dict()), model.run(crops, names)
    model.set_runtime(runtime)
    for _ in range(2):
        torch.testing.assert_close(model.run(crops, names), expected, atol=1e-4, rtol=1e-4)
    single = model.run(crops[:1], "encode_expression")
    torch.testing.assert_close(single, expected["encode_expression"][:1], atol=1e-4, rtol=1e-4)
    assert len(graphs(tmp_path)) == 2
    torch.testing.assert_close(model.state_dict(), before, atol=0, rtol=0)
    model.set_runtime("torch")
    assert not [part for part in model.modules() if "forward" in vars(part)]


def test_graphs_are_kept_and_copies_use_their_own_weights(model, crops, tmp_path):
    pytest.importorskip("onnxruntime")
    model.set_runtime("onnxruntime")
    before = model.run(crops, "encode_expression")
    (path,) = graphs(tmp_path)
    written = path.stat().st_mtime_ns
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(copy.run(crops, "encode_expression"), before)
        assert path.stat().st_mtime_ns == written
    copy.expression_encoder.norm.weight.data.mul_(2)
    changed = copy.run(crops, "encode_expression")
    assert len(graphs(tmp_path)) == 2
    assert not torch.allclose(changed, before)
    copy.set_runtime("torch")
    torch.testing.assert_close(copy.run(crops, "encode_expression"), changed, atol=1e-4, rtol=1e-4)


def test_without_a_cache_graphs_go_to_a_temporary_folder(model, crops, monkeypatch, tmp_path):
    pytest.importorskip("onnxruntime")
    expected = model.run(crops, "encode_expression")
    (tmp_path / "file").touch()  # no folder can be made in a file
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model.set_runtime("onnxruntime")
    with pytest.warns(
        UserWarning, match=r"to .*file/facezoo/runtimes .*set XDG_CACHE_HOME"
    ) as seen:
        result = model.run(crops, ["encode_expression", "encode_identity"])["encode_expression"]
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    assert len(seen) == 1


def test_gradients_stay_in_pytorch(model, crops, tmp_path):
    pytest.importorskip("onnxruntime")
    model.set_runtime("onnxruntime")
    model.embed_expression(crops).sum().backward()
    assert model.expression_encoder.backbone.conv1[0].weight.grad.abs().sum() > 0
    assert graphs(tmp_path) == []


def test_wrong_outputs_are_an_error(model, crops, monkeypatch):
    pytest.importorskip("onnxruntime")
    model.set_runtime("onnxruntime")
    opened = runtimes.open_onnx

    def wrong(*arguments):
        run = opened(*arguments)
        return lambda x: run(x).roll(1, 1)

    monkeypatch.setattr(runtimes, "open_onnx", wrong)
    with pytest.raises(UnsupportedError, match=r"Encoder as PyTorch does: .* cosine of"):
        model.run(crops, "encode_expression")


@BOTH
def test_faces_are_those_that_pytorch_detects(runtime):
    pytest.importorskip(runtime)
    plain = facezoo.load("ipd-fer", device="cpu")
    model = facezoo.load("ipd-fer", runtime=runtime)
    expected, result = (m.encode_pose(PORTRAIT, faces="all") for m in (plain, model))
    assert cosine_similarity(result, expected).min() > 0.9999
    faces = [m.predict_expression(PORTRAIT, faces="all").faces for m in (plain, model)]
    torch.testing.assert_close(faces[1].boxes, faces[0].boxes, atol=0.01, rtol=0)
    torch.testing.assert_close(faces[1].landmarks, faces[0].landmarks, atol=0.01, rtol=0)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("name", ["latentface", "latent-simclr"])
def test_other_families_compute_the_same(name, runtime):
    pytest.importorskip(runtime)
    plain, model = facezoo.load(name, device="cpu"), facezoo.load(name, runtime=runtime)
    expected, result = (m.encode_expression(PORTRAIT) for m in (plain, model))
    assert cosine_similarity(result, expected).min() > 0.9999


@pytest.mark.slow
def test_openvino_in_bfloat16_loses_little():
    pytest.importorskip("openvino")
    plain = facezoo.load("ipd-fer", device="cpu")
    model = facezoo.load("ipd-fer", runtime="openvino", dtype=torch.bfloat16)
    expected, result = (m.encode_expression(PORTRAIT) for m in (plain, model))
    assert 0.999 < cosine_similarity(result, expected).min() < 1


def test_unknown_runtimes_and_unsupported_models_are_errors(model):
    with pytest.raises(ValueError, match=r"unknown runtime 'tvm'; expected one of 'torch', 'onnx"):
        model.set_runtime("tvm")
    with pytest.raises(UnsupportedError, match="computes in float32 on a CPU, not in bfloat16"):
        model.to(torch.bfloat16).set_runtime("onnxruntime")
    with pytest.raises(UnsupportedError, match="computes on the CPU, and the device is meta"):
        model.to("meta").set_runtime("openvino")
    with pytest.raises(ValueError, match=r"compile=True is for runtime='torch'"):
        facezoo.load("ipd-fer", runtime="openvino", compile=True)
    with pytest.raises(UnsupportedError, match="takes meshes and runs in PyTorch"):
        facezoo.load(Adv3D.model_name, runtime="openvino")

#!/usr/bin/env bash
# Believed: LRN, the normalization across channels of older face networks, and LpNormalization with p=1 are the same in
# OpenVINO, in ONNX Runtime and in onnx.reference, the implementation by which the others are judged.
# So it is: (1) OpenVINO cuts the bias of LRN to an integer: 1.9 becomes 1, and 0.5 becomes 0, so that the zeros
# that a ReLU leaves give NaN. Its documentation calls the bias a double. (2) The LRN of onnx.reference counts the
# channels by the size of the batch: with two images it normalizes the first two channels, and only scales the others by
# the bias. (3) Its LpNormalization with p=1 divides by the sum of the values instead of their absolute values: the
# rows have other lengths, and all signs turn where the sum is negative. No warning in any case. ONNX Runtime and
# OpenCV agree with NumPy.
# Version and date: onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, opencv-python-headless 5.0.0.93,
# 2026-12-01. The maintainers of ONNX have mended (2) after this release (their issue 7805).
# What follows: judge an exported network by the network, not by onnx.reference.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "onnx==1.23.2" "onnxruntime==1.32.0" "openvino==2026.4.1" \
    "opencv-python-headless==5.0.0.93" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator


def results(x, operation, **attributes):
    graph = helper.make_graph(
        [helper.make_node(operation, ["x"], ["y"], **attributes)],
        "normalize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    content, core = model.SerializeToString(), openvino.Core()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
    network.setInput(x, "x")
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return {
        "onnxruntime": session.run(None, {"x": x})[0],
        "opencv": network.forward(),
        "openvino": core.compile_model(core.read_model(content), "CPU", exact)(x)[0],
        "onnx.reference": ReferenceEvaluator(model).run(None, {"x": x})[0],
    }


def lrn(x, size, alpha, beta, bias, normalized=None):
    """LRN by hand; of the first channels only, if their number is given."""
    half, squares = (size - 1) // 2, np.zeros(x.shape)
    for channel in range(x.shape[1] if normalized is None else normalized):
        squares[:, channel] = (x[:, max(channel - half, 0) : channel + half + 1].astype(float) ** 2).sum(1)
    with np.errstate(invalid="ignore"):
        return x / (bias + alpha / size * squares) ** beta


def wrong(found, right):
    return [name for name, y in found.items() if not np.allclose(y, right, rtol=1e-4, atol=1e-5, equal_nan=True)]


random = np.random.default_rng(0)
features = np.maximum(random.standard_normal((2, 16, 12, 12)), 0).astype(np.float32)  # after a ReLU
for bias in (0.5, 1.0, 1.9, 2.0):
    options = {"size": 5, "alpha": 0.5, "beta": 0.75, "bias": bias}
    found, right = results(features, "LRN", **options), lrn(features, **options)
    print(f"LRN with bias {bias}, largest value {right.max():.3f}:", {k: f"{y.max():.3f}" for k, y in found.items()})
    assert wrong(found, right) == (["onnx.reference"] if bias == int(bias) else ["openvino", "onnx.reference"])
    cut = {**options, "bias": int(bias)}
    assert not wrong({"openvino": found["openvino"]}, lrn(features, **cut)), "OpenVINO keeps the bias now"
    print("  NaN in OpenVINO:", missing := int(np.isnan(found["openvino"]).sum()), "of", features.size)
    assert not np.isnan(right).any() and (missing > 0) == (bias == 0.5)
    only = lrn(features, **options, normalized=len(features))
    assert not wrong({"onnx.reference": found["onnx.reference"]}, only), "onnx.reference normalizes all channels now"

codes = random.standard_normal((4, 8)).astype(np.float32)
found = results(codes, "LpNormalization", p=1, axis=1)
for name, y in found.items():
    print(f"L1 norms of four normalized rows, {name}:", [f"{norm:.2f}" for norm in np.abs(y).sum(1)])
assert wrong(found, codes / np.abs(codes).sum(1, keepdims=True)) == ["onnx.reference"]
assert not wrong({"": found["onnx.reference"]}, codes / codes.sum(1, keepdims=True)), "onnx.reference is right now"
lengths = np.linalg.norm(codes, axis=1, keepdims=True)
assert not wrong(results(codes, "LpNormalization", p=2, axis=1), codes / lengths)
PYTHON

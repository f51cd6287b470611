#!/usr/bin/env bash
# Believed: runtimes that load an ONNX model with Resize compute what the operator's text says, or reject it.
# So it is: (1) with keep_aspect_ratio_policy (opset 18), ONNX Runtime keeps the aspect ratio, and OpenVINO
# ignores the attribute: it stretches the image, so even the shape of the result differs. (2) With scales that
# do not divide the sides, OpenCV computes new scales from the rounded sizes; ONNX Runtime and OpenVINO use the
# scales in the model. The values differ by up to half of the range of the pixels.
# Version and date: onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, opencv-python-headless 5.0.0.93,
# 2026-11-29.
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

IMAGE = np.random.default_rng(0).random((1, 1, 32, 32), dtype=np.float32)


def model(inputs, value, **attributes):
    node = helper.make_node("Resize", ["x", *inputs], ["y"], mode="linear", **attributes)
    graph = helper.make_graph(
        [node],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, None, None])],
        [value],
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    result.ir_version = 9
    onnx.checker.check_model(result, full_check=True)
    return result.SerializeToString()


def in_onnxruntime(model_bytes):
    session = onnxruntime.InferenceSession(model_bytes, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": IMAGE})[0]


def in_openvino(model_bytes):
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(model_bytes), "CPU", exact)([IMAGE])[0]


def in_opencv(model_bytes):
    network = cv2.dnn.readNetFromONNX(np.frombuffer(model_bytes, np.uint8))
    network.setInput(IMAGE, "x")
    return network.forward()


sizes = helper.make_tensor("sizes", TensorProto.INT64, [2], [16, 24])
keeping = model(["", "", "sizes"], sizes, axes=[2, 3], keep_aspect_ratio_policy="not_larger")
shapes = {run.__name__: run(keeping).shape for run in (in_onnxruntime, in_openvino)}
print("not_larger than 16 x 24, from 32 x 32:", shapes)

scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 0.3, 0.7])
scaling = model(["", "scales"], scales)
results = {run: run(scaling) for run in (in_onnxruntime, in_openvino, in_opencv)}
assert {result.shape for result in results.values()} == {(1, 1, 9, 22)}
off = {run.__name__: float(abs(result - results[in_onnxruntime]).max()) for run, result in results.items()}
print("scales 0.3 and 0.7, largest difference from ONNX Runtime:", {k: round(v, 3) for k, v in off.items()})

# Linear interpolation at (i + 0.5) / scale - 0.5, and at (i + 0.5) * 32 / size - 0.5.
def expected(vertical, horizontal):
    result = IMAGE[0, 0]
    for scale, count in ((vertical, 9), (horizontal, 22)):
        at = ((np.arange(count) + 0.5) / scale - 0.5).clip(0, 31)
        low = np.floor(at).astype(int).clip(0, 30)
        share = (at - low)[:, None]
        result = ((1 - share) * result[low] + share * result[low + 1]).T
    return result


assert shapes == {"in_onnxruntime": (1, 1, 16, 16), "in_openvino": (1, 1, 16, 24)}
assert abs(results[in_openvino][0, 0] - expected(0.3, 0.7)).max() < 1e-4
assert abs(results[in_opencv][0, 0] - expected(0.3, 0.7)).max() > 0.2, "OpenCV uses the scales now"
assert abs(results[in_opencv][0, 0] - expected(9 / 32, 22 / 32)).max() < 1e-4
PYTHON

#!/usr/bin/env bash
# Believed: AveragePool with ceil_mode=1 and count_include_pad=1 (what torch.nn.AvgPool2d(3, 2, 1, ceil_mode=True)
# is in ONNX) gives the same in every runtime: the last window divides by the pixels inside of the padded image.
# So it is: ONNX Runtime does that. OpenVINO and OpenCV divide the last row and column by the whole window, with
# the part beyond the padding. There is no warning, and every other value agrees.
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
node = helper.make_node(
    "AveragePool",
    ["x"],
    ["y"],
    kernel_shape=[3, 3],
    strides=[2, 2],
    pads=[1, 1, 1, 1],
    ceil_mode=1,
    count_include_pad=1,
)
graph = helper.make_graph(
    [node],
    "pool",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 32, 32])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 17, 17])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
model.ir_version = 9
onnx.checker.check_model(model, full_check=True)
model_bytes = model.SerializeToString()

session = onnxruntime.InferenceSession(model_bytes, providers=["CPUExecutionProvider"])
core = openvino.Core()
exact = {"INFERENCE_PRECISION_HINT": "f32"}
network = cv2.dnn.readNetFromONNX(np.frombuffer(model_bytes, np.uint8))
network.setInput(IMAGE, "x")
results = {
    "onnxruntime": session.run(None, {"x": IMAGE})[0],
    "openvino": core.compile_model(core.read_model(model_bytes), "CPU", exact)([IMAGE])[0],
    "opencv": network.forward(),
}
padded = np.pad(IMAGE[0, 0], 1)
expected = np.array(
    [[padded[i : i + 3, j : j + 3].mean() for j in range(0, 34, 2)] for i in range(0, 34, 2)]
)
off, inside = {}, {}
for name, result in results.items():
    difference = abs(result[0, 0] - expected)
    off[name], inside[name] = float(difference.max()), float(difference[:-1, :-1].max())
    print(f"{name}: off by {off[name]:.3f} at most, {inside[name]:.3f} without the last row and column")
assert off["onnxruntime"] < 1e-5
for name in ("openvino", "opencv"):
    assert off[name] > 0.05, f"{name} divides by the pixels of the padded image now"
    assert inside[name] < 1e-5
PYTHON

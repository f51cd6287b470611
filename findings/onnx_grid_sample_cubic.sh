#!/usr/bin/env bash
# Believed: GridSample with cubic interpolation, which moves face crops and feature maps, gives the same in every
# runtime: the operator's text takes it from torch.nn.functional.grid_sample, whose cubic coefficient is -0.75.
# So it is: ONNX Runtime and OpenVINO agree with -0.75. OpenCV is off by up to 4 % of the range of the pixels, and
# its values are not those of -0.5 either. Bilinear and nearest agree in all three.
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

random = np.random.default_rng(0)
IMAGE = random.random((1, 1, 32, 32), dtype=np.float32)
GRID = (random.random((1, 8, 8, 2), dtype=np.float32) * 1.6 - 0.8).astype(np.float32)  # far from the border


def results(mode):
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], mode=mode, align_corners=0)
    graph = helper.make_graph(
        [node],
        "sample",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 32, 32]),
            helper.make_tensor_value_info("grid", TensorProto.FLOAT, [1, 8, 8, 2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 8, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)])
    model.ir_version = 9
    onnx.checker.check_model(model, full_check=True)
    model_bytes = model.SerializeToString()
    inputs = {"x": IMAGE, "grid": GRID}
    core, exact = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    network = cv2.dnn.readNetFromONNX(np.frombuffer(model_bytes, np.uint8))
    for name, value in inputs.items():
        network.setInput(value, name)
    session = onnxruntime.InferenceSession(model_bytes, providers=["CPUExecutionProvider"])
    return {
        "onnxruntime": session.run(None, inputs)[0][0, 0],
        "openvino": core.compile_model(core.read_model(model_bytes), "CPU", exact)(inputs)[0][0, 0],
        "opencv": network.forward()[0, 0],
    }


def cubic(a):
    """Sample the image with a cubic kernel of coefficient a."""

    def weights(share):
        x = abs(np.arange(-1, 3) - share)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x <= 1, near, far)

    result = np.empty((8, 8))
    for place in np.ndindex(8, 8):
        x, y = (GRID[0][place].astype(float) + 1) * 16 - 0.5
        left, top = int(np.floor(x)), int(np.floor(y))
        window = IMAGE[0, 0, top - 1 : top + 3, left - 1 : left + 3]
        result[place] = weights(y - top) @ window @ weights(x - left)
    return result


for mode in ("bilinear", "nearest"):
    values = results(mode)
    spread = max(float(abs(value - values["onnxruntime"]).max()) for value in values.values())
    print(f"{mode}: largest difference between the runtimes {spread:.6f}")
    assert spread < 1e-5
values = results("bicubic")
off = {a: {name: float(abs(value - cubic(a)).max()) for name, value in values.items()} for a in (-0.75, -0.5)}
for a, errors in off.items():
    print(f"bicubic, off from a coefficient of {a}:", {name: round(error, 3) for name, error in errors.items()})
assert off[-0.75]["onnxruntime"] < 1e-4 and off[-0.75]["openvino"] < 1e-4
assert off[-0.75]["opencv"] > 0.03, "OpenCV uses -0.75 now"
PYTHON

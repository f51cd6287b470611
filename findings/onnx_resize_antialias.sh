#!/usr/bin/env bash
# Believed: a runtime that loads an ONNX model whose Resize has antialias=1 (opset 18) smooths when it reduces an
# image, as Pillow and torch's interpolate do, or rejects the model.
# So it is: OpenVINO and OpenCV load the model and ignore the attribute. Their result equals that of antialias=0,
# off by up to half of the range of the pixels. ONNX Runtime smooths, but repeats the border pixels, so that the
# outermost row and column differ from Pillow's; with exclude_outside=1 it agrees with Pillow.
# Version and date: onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, opencv-python-headless 5.0.0.93,
# pillow 13.0.0, 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "onnx==1.23.2" "onnxruntime==1.32.0" "openvino==2026.4.1" \
    "opencv-python-headless==5.0.0.93" "pillow==13.0.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper
from PIL import Image

IMAGE = np.random.default_rng(0).random((64, 64), dtype=np.float32)


def model(**attributes):
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", **attributes)
    graph = helper.make_graph(
        [node],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 64, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 16, 16])],
        [helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 1, 16, 16])],
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    result.ir_version = 9
    onnx.checker.check_model(result, full_check=True)
    return result.SerializeToString()


def in_onnxruntime(model_bytes):
    session = onnxruntime.InferenceSession(model_bytes, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": IMAGE[None, None]})[0][0, 0]


def in_openvino(model_bytes):
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model_bytes), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([IMAGE[None, None]])[0][0, 0]


def in_opencv(model_bytes):
    network = cv2.dnn.readNetFromONNX(np.frombuffer(model_bytes, np.uint8))
    network.setInput(IMAGE[None, None], "x")
    return network.forward()[0, 0]


pillow = np.asarray(Image.fromarray(IMAGE).resize((16, 16), Image.Resampling.BILINEAR))
plain, smooth = model(antialias=0), model(antialias=1)
inside = (slice(1, -1), slice(1, -1))
off = {}
for run in (in_onnxruntime, in_openvino, in_opencv):
    result = run(smooth)
    off[run] = (
        float(abs(result - run(plain)).max()),
        float(abs(result - pillow).max()),
        float(abs(result - pillow)[inside].max()),
    )
    print(f"{run.__name__}: from antialias=0 {off[run][0]:.3f}, from Pillow {off[run][1]:.3f}, without the border {off[run][2]:.3f}")
excluding = abs(in_onnxruntime(model(antialias=1, exclude_outside=1)) - pillow).max()
print(f"in_onnxruntime with exclude_outside=1: from Pillow {excluding:.6f}")

for run in (in_openvino, in_opencv):
    assert off[run][0] == 0 and off[run][1] > 0.2, f"{run.__name__} does not ignore antialias now"
assert off[in_onnxruntime][0] > 0.2 and off[in_onnxruntime][1] > 0.02 and off[in_onnxruntime][2] < 1e-5
assert excluding < 1e-5
PYTHON

#!/usr/bin/env bash
# Believed: OpenCV computes ReduceMean, ReduceSum and ReduceMax of an ONNX model over all the axes that the node names,
# as ONNX Runtime and OpenVINO do, or rejects the model. The mean color of a batch of face crops, axes (0, 2, 3), is
# the mean over all crops.
# So it is: with three reduced axes that are not the last three, only the first two entries of the first reduced axis
# are read: the first crop counts once, the second N - 1 times, and the others not at all. The same holds for the frames
# of a video (batch, time, height, width, channels) and axes (1, 2, 3). There is no warning. A test with one or two
# crops does not show it; one or two axes, and the last three, are right.
# Version and date: onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, opencv-python-headless 5.0.0.93,
# 2026-12-01.
# What follows: write a mean over three axes as two nodes, or use another runtime.
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


def results(values, operation, *steps):
    """Reduce over the axes of each step, one node after the other, in every runtime."""
    names = ["x", *(f"step{number}" for number in range(1, len(steps))), "y"]
    nodes = [
        helper.make_node(operation, [source], [target], axes=axes, keepdims=1)
        for source, target, axes in zip(names, names[1:], steps)
    ]
    reduced = [1 if axis in sum(steps, ()) else side for axis, side in enumerate(values.shape)]
    graph = helper.make_graph(
        nodes,
        "reduce",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, reduced)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    model_bytes = model.SerializeToString()
    session = onnxruntime.InferenceSession(model_bytes, providers=["CPUExecutionProvider"])
    core, exact = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    network = cv2.dnn.readNetFromONNX(np.frombuffer(model_bytes, np.uint8))
    network.setInput(values, "x")
    return {
        "onnxruntime": session.run(None, {"x": values})[0],
        "openvino": core.compile_model(core.read_model(model_bytes), "CPU", exact)({"x": values})[0],
        "opencv": network.forward(),
    }


def wrong(values, operation, *steps):
    """Names of the runtimes that differ from NumPy."""
    function = {"ReduceMean": np.mean, "ReduceSum": np.sum, "ReduceMax": np.max}[operation]
    expected = function(values.astype(float), axis=sum(steps, ()), keepdims=True)
    found = results(values, operation, *steps)
    return [name for name, value in found.items() if not np.allclose(value, expected, rtol=1e-4)]


for count in (1, 2, 3, 5):
    brightness = 10.0 ** np.arange(count)  # of crop or frame 1, 2, 3 ...: 1, 10, 100 ...
    crops = np.ones((count, 3, 4, 4), np.float32) * brightness.reshape(-1, 1, 1, 1).astype(np.float32)
    video = np.ones((1, count, 4, 4, 3), np.float32) * brightness.reshape(1, -1, 1, 1, 1).astype(np.float32)
    for name, values, axes in (("crops", crops, (0, 2, 3)), ("frames", video, (1, 2, 3))):
        found = results(values, "ReduceSum", axes)
        sums = {runtime: round(float(value.ravel()[0]) / 16) for runtime, value in found.items()}
        print(f"{count} {name} of brightness 1, 10, 100 ..., sum of a channel:", sums)
        assert sums["onnxruntime"] == sums["openvino"] == int("1" * count)
        assert sums["opencv"] == 1 + 10 * (count - 1), "OpenCV reads all entries now"

random = np.random.default_rng(0)
crops = random.random((8, 3, 16, 16), dtype=np.float32)
crops *= np.linspace(0.2, 1, 8, dtype=np.float32).reshape(-1, 1, 1, 1)  # dark crops first
video = random.random((2, 6, 8, 8, 3), dtype=np.float32)
for name, value in results(crops, "ReduceMean", (0, 2, 3)).items():
    print(f"mean color of a batch of eight crops, {name}:", [f"{float(mean):.3f}" for mean in value.ravel()])
for operation in ("ReduceMean", "ReduceSum"):
    assert wrong(crops, operation, (0, 2, 3)) == ["opencv"]
    assert wrong(video, operation, (1, 2, 3)) == ["opencv"]
    assert wrong(crops, operation, (1, 2, 3)) == wrong(video, operation, (2, 3, 4)) == []
    assert wrong(crops, operation, (2, 3)) == wrong(crops, operation, (0, 2)) == []
    assert wrong(crops, operation, (2, 3), (0,)) == []
assert wrong(crops, "ReduceMax", (0, 2, 3)) == ["opencv"]
print("right in all runtimes: up to two axes, the last three axes, and two nodes, one after the other")
PYTHON

#!/usr/bin/env bash
# Believed: a NaN pixel gives NaN features in every runtime, as in PyTorch, so that NaN in the output is
# a safe sign of a broken image.
# So it is: OpenVINO's ReLU turns NaN into a number, and so do the max pooling of OpenVINO and of ONNX Runtime.
# A network that begins with convolution and ReLU gives an ordinary feature for a broken image.
# Version and date: openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2, CPU, float32, 2026-11-29.
# What follows: check the pixels before they enter an exported model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "openvino==2026.4.1" "onnxruntime==1.32.0" "onnx==1.23.2" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper

NODES = {
    "Relu": {},
    "MaxPool": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "GlobalAveragePool": {},
}
image = np.random.default_rng(0).standard_normal((1, 8, 8, 8)).astype(np.float32)
image[0, 0, 0, 0] = np.nan
lines = []
for kind, attributes in NODES.items():
    graph = helper.make_graph(
        [helper.make_node(kind, ["x"], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (runtime,) = session.run(None, {"x": image})
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    vino = core.compile_model(core.read_model(content), "CPU", options)(image)[0]
    counts = [int(np.isnan(result).sum()) for result in (runtime, vino)]
    lines.append(f"{kind}: NaN in the output of ONNX Runtime {counts[0]}, of OpenVINO {counts[1]}")
print("\n".join(lines))
assert lines == [
    "Relu: NaN in the output of ONNX Runtime 1, of OpenVINO 0",
    "MaxPool: NaN in the output of ONNX Runtime 0, of OpenVINO 0",
    "GlobalAveragePool: NaN in the output of ONNX Runtime 1, of OpenVINO 1",
], "the runtimes behave otherwise now"
PYTHON

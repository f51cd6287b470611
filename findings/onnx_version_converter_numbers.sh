#!/usr/bin/env bash
# Believed: onnx.version_converter gives a model that computes the same, or raises an error.
# So it is: beyond opset 10, Upsample and Resize with linear interpolation sample at other places, since the converter
# leaves out coordinate_transformation_mode="asymmetric", their only mode until then. Beyond opset 12, Hardmax is
# computed along one axis instead of all flattened ones, although Softmax and LogSoftmax keep their flattening.
# There is no warning, and the models pass the checker.
# Version and date: onnx 1.23.2, onnxruntime 1.32.0, 2026-11-30.
# What follows: compare the outputs of a converted model, or export the model again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "onnx==1.23.2" "onnxruntime==1.32.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter

onnxruntime.set_default_logger_severity(3)
X = np.random.default_rng(0).standard_normal((1, 4, 9, 9)).astype(np.float32)
SCALES = np.array([1, 1, 2, 2], np.float32)


def model(operator, opset, shape, **attributes):
    resizes = operator in ("Upsample", "Resize")
    node = helper.make_node(operator, ["x", "scales"] if resizes else ["x"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        operator,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(SCALES, "scales")] if resizes else [],
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    result.ir_version = 8
    onnx.checker.check_model(result, full_check=True)
    return result


def run(model):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": X})[0]


def linear(image):
    """Enlarge by 2: pixel i of the result lies at i / 2 of the image, clamped to its last pixel."""
    for axis in (2, 3):
        places = np.arange(2 * image.shape[axis]) / 2
        low = places.astype(int)
        high = np.minimum(low + 1, image.shape[axis] - 1)
        weight = np.where(places > low, 0.5, 0.0)
        weight = weight.reshape([-1 if i == axis else 1 for i in range(4)])
        image = image.take(low, axis) * (1 - weight) + image.take(high, axis) * weight
    return image


flat = X.reshape(1, -1)
exponentials = np.exp(flat - flat.max())
cases = {
    "Upsample": (model("Upsample", 9, (1, 4, 18, 18), mode="linear"), linear(X)),
    "Resize": (model("Resize", 10, (1, 4, 18, 18), mode="linear"), linear(X)),
    "Hardmax": (model("Hardmax", 11, X.shape, axis=1), flat == flat.max()),
    "Softmax": (model("Softmax", 11, X.shape, axis=1), exponentials / exponentials.sum()),
}
off = {}
for name, (original, expected) in cases.items():
    converted = version_converter.convert_version(original, 18)
    converted.ir_version = 8
    onnx.checker.check_model(converted, full_check=True)
    expected = expected.reshape(run(original).shape)
    before, off[name] = (float(abs(run(m) - expected).max()) for m in (original, converted))
    opset = original.opset_import[0].version
    print(f"{name}: off by {before:.6f} in opset {opset}, by {off[name]:.6f} converted to opset 18")
    assert before < 1e-5
assert off["Softmax"] < 1e-5
for name in ("Upsample", "Resize", "Hardmax"):
    assert off[name] > 0.5, f"{name} is converted correctly now"
PYTHON

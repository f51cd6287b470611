#!/usr/bin/env bash
# Believed: OpenCV pads an ONNX model with auto_pad as the operator's text says: SAME_UPPER adds the odd pixel below and
# on the right, as TensorFlow and Keras do, and SAME_LOWER above and on the left.
# So it is: Conv, MaxPool and AveragePool make no difference between the two, nor between the sides of images: with a
# kernel of k pixels they always begin (k - 1) // 2 pixels outside. A 3x3 kernel with stride 2 and SAME_UPPER, the first
# layer of most mobile networks, begins one pixel too far up and left if the sides are even; a patch layer with kernel
# and stride 3 pads an image that needs no padding. The shapes are right, and there is no warning. ConvTranspose gives
# 2 n - 1 instead of 2 n pixels. With the same padding in pads, OpenCV is right. ONNX Runtime, OpenVINO and NumPy agree.
# Version and date: onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, opencv-python-headless 5.0.0.93,
# 2026-12-01.
# What follows: write the padding as pads before OpenCV reads the model.
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
from onnx import TensorProto, helper, numpy_helper

ENGINES = {"opencv": cv2.dnn.ENGINE_AUTO, "opencv classic": cv2.dnn.ENGINE_CLASSIC, "opencv new": cv2.dnn.ENGINE_NEW}


def split(side, kernel, stride, mode):
    """Padding before and after one axis, by the text of the operator."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def model_of(operation, image, kernel, stride, **padding):
    side = image.shape[-1]
    out = side * stride if operation == "ConvTranspose" else -(-side // stride)
    weights = []
    if operation.startswith("Conv"):
        values = np.linspace(-1, 1, kernel**2, dtype=np.float32).reshape(1, 1, kernel, kernel)
        weights = [numpy_helper.from_array(values, "w")]
    else:
        padding = {"kernel_shape": [kernel] * 2, **padding}
    graph = helper.make_graph(
        [helper.make_node(operation, ["x", *(w.name for w in weights)], ["y"], strides=[stride] * 2, **padding)],
        "same",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 1, out, out))],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def results(content, image):
    """What each runtime returns."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    core, exact = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    found = {
        "onnxruntime": session.run(None, {"x": image})[0],
        "openvino": core.compile_model(core.read_model(content), "CPU", exact)(image)[0],
    }
    for name, engine in ENGINES.items():
        network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8), engine)
        network.setInput(image, "x")
        found[name] = network.forward()
    return found


def by_hand(operation, image, kernel, stride, before, after):
    fill = -np.inf if operation == "MaxPool" else np.nan if operation == "AveragePool" else 0
    padded = np.pad(image[0, 0].astype(float), ((before, after),) * 2, constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel))[::stride, ::stride]
    if operation == "Conv":
        weights = np.linspace(-1, 1, kernel**2).reshape(kernel, kernel)
        return (windows * weights).sum((2, 3))[None, None]
    return (np.max if operation == "MaxPool" else np.nanmean)(windows, (2, 3))[None, None]


def same(a, b):
    return a.shape == b.shape and np.allclose(a, b, atol=1e-4)


random = np.random.default_rng(0)
LAYERS = [(3, 2, 112), (5, 2, 112), (7, 2, 224), (3, 3, 112), (3, 3, 111), (11, 4, 224), (4, 3, 111), (2, 1, 112)]
LAYERS += [(2, 2, 113), (3, 2, 113), (3, 1, 112)]
wrong = {engine: 0 for engine in ENGINES}
for operation in ("Conv", "MaxPool", "AveragePool"):
    for kernel, stride, side in LAYERS:
        image = random.random((1, 1, side, side), dtype=np.float32)
        for mode in ("SAME_UPPER", "SAME_LOWER"):
            before, after = split(side, kernel, stride, mode)
            right = by_hand(operation, image, kernel, stride, before, after)
            begins = (kernel - 1) // 2
            ends = max(before + after - begins, 0)
            found = results(model_of(operation, image, kernel, stride, auto_pad=mode), image)
            assert same(found["onnxruntime"], right) and same(found["openvino"], right)
            explicit = results(model_of(operation, image, kernel, stride, pads=[before] * 2 + [after] * 2), image)
            assert all(same(value, right) for value in explicit.values()), "pads are right everywhere"
            for engine in ENGINES:
                assert same(found[engine], by_hand(operation, image, kernel, stride, begins, ends)), "it is right now"
                wrong[engine] += begins != before
                assert same(found[engine], right) == (begins == before)
print(f"wrong layers of {6 * len(LAYERS)}:", {"onnxruntime": 0, "openvino": 0, **wrong})
assert set(wrong.values()) == {30}

dot = np.zeros((1, 1, 8, 8), np.float32)
dot[..., 4, 4] = 1
for name, value in results(model_of("MaxPool", dot, 3, 2, auto_pad="SAME_UPPER"), dot).items():
    print(f"a dot at row 4, column 4, MaxPool 3x3 with stride 2, {name}: rows {np.flatnonzero(value.sum(-1)).tolist()}")

image = random.random((1, 1, 56, 56), dtype=np.float32)
for mode in ("SAME_UPPER", "SAME_LOWER"):
    found = results(model_of("ConvTranspose", image, 3, 2, auto_pad=mode), image)
    shapes = {name: value.shape[2:] for name, value in found.items()}
    print(f"ConvTranspose 3x3 with stride 2, {mode}, of 56 x 56 pixels:", shapes)
    assert list(shapes.values()) == [(112, 112)] * 2 + [(111, 111)] * 3
PYTHON

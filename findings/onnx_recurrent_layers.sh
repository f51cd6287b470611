#!/usr/bin/env bash
# Believed: a runtime that loads an LSTM, GRU or RNN of an ONNX model, such as one that reads the expression from the
# features of the frames of a video, computes what the attributes and inputs of the node say, or rejects the model.
# onnx.reference, the implementation by which they are judged, does so for certain.
# So it is: parts of the node are dropped without an error, and the result is that of a plain forward layer.
# OpenCV: a reverse GRU runs forward; the final state of a reverse LSTM is that of the last frame, which has seen one
# frame; the GRU reads the padding behind sequence_lens; clip and input_forget are dropped. OpenVINO: layout=1 (videos
# first) takes the videos for the frames of one another; peepholes and input_forget are dropped. onnx.reference:
# sequence_lens, clip, input_forget and the activations of LSTM and GRU are dropped. Only ONNX Runtime computes or
# rejects each of them. Bidirectional layers are right in all that accept them.
# Version and date: onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, opencv-python-headless 5.0.0.93,
# 2026-12-01. The maintainers of OpenVINO know of layout=1 (its issue 37820).
# What follows: judge recurrent layers by ONNX Runtime; write a reverse layer as a bidirectional one.
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
from onnx.reference import ReferenceEvaluator

FRAMES, VIDEOS, INPUTS, UNITS = 6, 2, 3, 4
LENGTHS = np.array([6, 3], np.int32)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
OPENVINO = {"INFERENCE_PRECISION_HINT": "f32"}
random = np.random.default_rng(0)
features = random.standard_normal((FRAMES, VIDEOS, INPUTS)).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


FUNCTIONS = {"LSTM": (sigmoid, np.tanh, np.tanh), "GRU": (sigmoid, np.tanh), "RNN": (np.tanh,)}


def by_hand(kind, x, weights, lengths=None, reverse=False, clip=np.inf, functions=None, peepholes=None, forget=True):
    """The layer as the text of the operator defines it: all states (T, 1, B, H) and the last ones (1, B, H)."""
    w, r, b = (values[0].astype(float) for values in weights)
    input_bias, state_bias = np.split(b, 2)
    first, *others = functions or FUNCTIONS[kind]
    steps, rows, units = x.shape[0], x.shape[1], r.shape[1]
    peep_i, peep_o, peep_f = np.zeros((3, units)) if peepholes is None else peepholes.reshape(3, units).astype(float)

    def gate(values):
        return first(np.clip(values, -clip, clip))

    states, last = np.zeros((steps, 1, rows, units)), np.zeros((1, rows, units))
    for row in range(rows):
        state, cell = np.zeros(units), np.zeros(units)
        times = range(steps if lengths is None else lengths[row])
        for time in reversed(times) if reverse else times:
            value, past = w @ x[time, row] + input_bias, r @ state + state_bias
            if kind == "LSTM":
                i, o, f, c = np.split(value + past, 4)
                i, f = gate(i + peep_i * cell), gate(f + peep_f * cell)
                cell = (f if forget else 1 - i) * cell + i * others[0](np.clip(c, -clip, clip))
                state = gate(o + peep_o * cell) * others[1](cell)
            elif kind == "GRU":
                z, reset = np.split(gate((value + past)[: 2 * units]), 2)
                hidden = value[2 * units :] + r[2 * units :] @ (reset * state) + state_bias[2 * units :]
                state = (1 - z) * others[0](np.clip(hidden, -clip, clip)) + z * state
            else:
                state = gate(value + past)
            states[time, 0, row] = state
        last[0, row] = state
    return states, last


def results(kind, x, weights, attributes, inputs, opencv=True):
    """States and last states in each runtime; None where it rejects the model."""
    constants = dict(zip("wrb", weights)) | inputs
    names = ["x", "w", "r", "b", "lengths" if "lengths" in inputs else ""]
    names += ["", "", "peepholes"] if "peepholes" in inputs else []
    node = helper.make_node(kind, names, ["states", "last"], hidden_size=UNITS, **attributes)
    outputs = [("states", [None] * 4), ("last", [None] * 3)]
    graph = helper.make_graph(
        [node],
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    content, core = model.SerializeToString(), openvino.Core()

    def in_onnxruntime():
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": x})

    def in_openvino():
        found = core.compile_model(core.read_model(content), "CPU", OPENVINO)(x)
        return [found[0], found[1]]

    def in_opencv():
        network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
        network.setInput(x, "x")
        return network.forward(["states", "last"])

    runs = {
        "onnxruntime": in_onnxruntime,
        "onnx.reference": lambda: ReferenceEvaluator(model).run(None, {"x": x}),
        "openvino": in_openvino,
        **({"opencv": in_opencv} if opencv else {}),
    }
    found = {}
    for name, run in runs.items():
        try:
            found[name] = run()
        except Exception:
            found[name] = None
    return found


def same(found, expected):
    return all(a.shape == b.shape and np.allclose(a, b, atol=1e-4) for a, b in zip(found, expected))


def judge(found, right, plain):
    if found is None:
        return "rejected"
    return "right" if same(found, right) else "DROPPED" if same(found, plain) else "WRONG"


verdicts = {}
for kind, gates in GATES.items():
    shapes = (1, gates * UNITS, INPUTS), (1, gates * UNITS, UNITS), (1, 2 * gates * UNITS)
    weights = [(random.standard_normal(shape) / 2).astype(np.float32) for shape in shapes]
    peepholes = random.standard_normal((1, 3 * UNITS)).astype(np.float32)
    plain = by_hand(kind, features, weights)
    names, functions = {
        "LSTM": (["Sigmoid", "Relu", "Relu"], (sigmoid, relu, relu)),
        "GRU": (["Sigmoid", "Relu"], (sigmoid, relu)),
        "RNN": (["Relu"], (relu,)),
    }[kind]
    cases = {
        "plain": ({}, {}, {}),
        "reverse": ({"direction": "reverse"}, {}, {"reverse": True}),
        "sequence_lens": ({}, {"lengths": LENGTHS}, {"lengths": LENGTHS}),
        "clip": ({"clip": 0.3}, {}, {"clip": 0.3}),
        "activations": ({"activations": names}, {}, {"functions": functions}),
    }
    if kind == "LSTM":
        cases["input_forget"] = {"input_forget": 1}, {}, {"forget": False}
        cases["peepholes"] = {}, {"peepholes": peepholes}, {"peepholes": peepholes}
    for case, (attributes, inputs, options) in cases.items():
        found = results(kind, features, weights, attributes, inputs, case != "peepholes")
        right = by_hand(kind, features, weights, **options)
        verdicts[kind, case] = {name: judge(value, right, plain) for name, value in found.items()}
        if (kind, case) == ("LSTM", "reverse"):
            states, last = found["opencv"]
            assert same([states], right[:1]) and same([last], [right[0][-1]]), "OpenCV's last state is right now"

    videos = np.ascontiguousarray(features.swapaxes(0, 1))
    found = results(kind, videos, weights, {"layout": 1}, {}, opencv=False)
    right, ignored = (plain[0].transpose(2, 0, 1, 3), plain[1].swapaxes(0, 1)), by_hand(kind, videos, weights)
    verdicts[kind, "layout=1"] = {name: judge(value, right, ignored) for name, value in found.items()}

    weights = [np.concatenate([values, values[:, ::-1]]) for values in weights]
    both = [by_hand(kind, features, [v[i : i + 1] for v in weights], reverse=bool(i)) for i in (0, 1)]
    right = np.concatenate([both[0][0], both[1][0]], 1), np.concatenate([both[0][1], both[1][1]])
    found = results(kind, features, weights, {"direction": "bidirectional"}, {})
    verdicts[kind, "bidirectional"] = {name: judge(value, right, plain) for name, value in found.items()}

for (kind, case), verdict in verdicts.items():
    print(f"{kind} {case}:", ", ".join(f"{name} {value}" for name, value in verdict.items()))
silent = {}
for key, verdict in verdicts.items():
    for name, value in verdict.items():
        if value in ("DROPPED", "WRONG"):
            silent.setdefault(name, set()).add(" ".join(key))
assert silent.pop("onnxruntime", None) is None
assert silent.pop("onnx.reference") == {
    *(f"{kind} {case}" for kind in ("LSTM", "GRU") for case in ("sequence_lens", "clip", "activations")),
    *("RNN sequence_lens", "RNN clip", "LSTM input_forget"),
}
layouts = {f"{kind} layout=1" for kind in GATES}
assert silent.pop("openvino") == {*layouts, "LSTM input_forget", "LSTM peepholes"}
dropped = {"GRU reverse", "GRU sequence_lens", "GRU clip", "LSTM clip", "LSTM input_forget"}
assert silent.pop("opencv") == {*dropped, "LSTM reverse"}
assert not silent
PYTHON

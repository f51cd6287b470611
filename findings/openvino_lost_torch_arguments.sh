#!/usr/bin/env bash
# Believed: openvino.convert_model turns a PyTorch module into a model that computes the same, or raises an error for an
# argument that it does not support. The arguments of ELU, leaky ReLU and GELU are kept.
# So it is: with example_input, the way of the documentation, four are lost without an error or a warning of OpenVINO.
# (1) softplus with beta, which keeps depths and variances positive, is computed with beta 1. (2) cdist and
# pairwise_distance with p=1 leave out the absolute value: the differences of two features cancel, so that a far face
# is the nearest one, and a negative sum gives NaN. (3) round with decimals rounds to integers. (4) // of negative
# integers, such as places left of the image, rounds toward zero.
# Through torch.export, (1) and pairwise_distance are right and (3) is an error, but cdist and (4) stay wrong.
# Version and date: openvino 2026.4.1, torch 2.15.0, CPU, float32, 2026-12-01.
# What follows: compare the outputs after each conversion.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.15.0" "openvino==2026.4.1" "numpy==2.4.6" "packaging==26.4"
cd "$folder"
"$folder/venv/bin/python" -W "ignore::FutureWarning" - <<'PYTHON'
import numpy as np
import openvino
import torch
import torch.nn.functional as F


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def run(model, x):
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(model, "CPU", exact)([x.numpy()])[0]


def same(name, function, x):
    """Whether both ways of conversion keep the values: traced with an example, and exported."""
    module = Module(function).eval()
    expected = module(x).numpy()
    traced = run(openvino.convert_model(module, example_input=(x,)), x)
    try:
        exported = run(openvino.convert_model(torch.export.export(module, (x,))), x)
    except openvino.frontend.OpConversionFailure:
        exported = None
    print(f"{name}:")
    for way, values in (("PyTorch", expected), ("traced", traced), ("exported", exported)):
        print(f"  {way:8}", "error" if values is None else [f"{float(value):.3g}" for value in values])
    return tuple(None if v is None else np.allclose(v, expected, atol=1e-4) for v in (traced, exported))


values = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
features = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.1, 0.1], [3.0, -3.0, 0.05], [-3.0, 3.0, -0.05]])
places = torch.tensor([-9, -8, -1, 0, 9])
assert same("elu, alpha=0.3", lambda x: F.elu(x, 0.3), values) == (True, True)
assert same("leaky_relu, slope 0.3", lambda x: F.leaky_relu(x, 0.3), values) == (True, True)
assert same("gelu, tanh", lambda x: F.gelu(x, approximate="tanh"), values) == (True, True)
assert same("softplus", lambda x: F.softplus(x), values) == (True, True)
assert same("softplus, beta=10", lambda x: F.softplus(x, beta=10), values) == (False, True)
for p, right in ((2.0, (True, True)), (1.0, (False, False))):
    name = f"cdist, p={p:g}, to a near and two far features"
    assert same(name, lambda x, p=p: torch.cdist(x[1:], x[:1], p=p)[:, 0], features) == right
for p, right in ((2.0, (True, True)), (1.0, (False, True))):
    name = f"pairwise_distance, p={p:g}, to a near and two far features"
    assert same(name, lambda x, p=p: F.pairwise_distance(x[1:], x[:1], p=p), features) == right
assert same("round, decimals=1", lambda x: torch.round(x * 0.66, decimals=1), values) == (False, None)
assert same("integers // 4", lambda x: x // 4, places) == (False, False)
PYTHON

#!/usr/bin/env bash
# Believed: trimesh reads every valid glTF accessor, or raises an error for one that it cannot read.
# So it is: the sparse part of an accessor is ignored without a word, so vertices that a sculpting tool
# or a face exporter has moved stay where they were; and normalized integers (KHR_mesh_quantization,
# required by the file) come out as the integers, 32767 times too large.
# Version and date: trimesh 5.2.0, 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "trimesh==5.2.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import base64
import json

import numpy as np
import trimesh

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
TRIANGLES = np.array([0, 1, 2, 0, 2, 3], np.uint16).tobytes()


def read(name, content, views, positions, **extensions):
    uri = "data:application/octet-stream;base64," + base64.b64encode(content).decode()
    triangles = {"bufferView": 1, "componentType": 5123, "count": 6, "type": "SCALAR"}
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "buffers": [{"byteLength": len(content), "uri": uri}],
        "bufferViews": [{"buffer": 0, **view} for view in views],
        "accessors": [{"bufferView": 0, "count": 4, "type": "VEC3", **positions}, triangles],
        **extensions,
    }
    with open(name, "w") as file:
        json.dump(document, file)
    return np.asarray(trimesh.load(name, force="mesh", process=False).vertices)


moved = np.array([3], np.uint16).tobytes() + bytes(2) + np.array([[5, 5, 5]], np.float32).tobytes()
sparse = read(
    "sparse.gltf",
    CORNERS.tobytes() + TRIANGLES + moved,
    [
        {"byteOffset": 0, "byteLength": 48},
        {"byteOffset": 48, "byteLength": 12},
        {"byteOffset": 60, "byteLength": 2},
        {"byteOffset": 64, "byteLength": 12},
    ],
    {
        "componentType": 5126,
        "min": [0, 0, 0],
        "max": [5, 5, 5],
        "sparse": {
            "count": 1,
            "indices": {"bufferView": 2, "componentType": 5123},
            "values": {"bufferView": 3},
        },
    },
)
print("sparse accessor, last vertex:", sparse[3].tolist(), "expected [5, 5, 5]")

rows = b"".join((row * 32767).astype(np.int16).tobytes() + bytes(2) for row in CORNERS)
extension = ["KHR_mesh_quantization"]
quantized = read(
    "quantized.gltf",
    rows + TRIANGLES,
    [{"byteOffset": 0, "byteLength": 32, "byteStride": 8}, {"byteOffset": 32, "byteLength": 12}],
    {"componentType": 5122, "normalized": True, "min": [0, 0, 0], "max": [32767, 32767, 32767]},
    extensionsUsed=extension,
    extensionsRequired=extension,
)
print("normalized int16, last vertex:", quantized[3].tolist(), "expected [0, 0, 1]")
assert sparse[3].tolist() == [0, 0, 1], "sparse accessors are read or rejected now"
assert quantized[3].tolist() == [0, 0, 32767], "normalized integers are read or rejected now"
PYTHON

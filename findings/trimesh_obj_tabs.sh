#!/usr/bin/env bash
# Believed: trimesh reads an OBJ file whose fields are separated by tabs, since the format allows any white
# space, or raises an error.
# So it is: it returns an empty scene without an error or a warning.
# Version and date: trimesh 5.2.0, 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "trimesh==5.2.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import trimesh

LINES = ["v 0 0 0", "v 1 0 0", "v 0 1 0", "f 1 2 3"]
counts = {}
for name, separator in {"spaces": " ", "tabs": "\t"}.items():
    with open(f"{name}.obj", "w") as file:
        file.write("\n".join(line.replace(" ", separator) for line in LINES) + "\n")
    scene = trimesh.load_scene(f"{name}.obj", process=False)
    counts[name] = sum(len(mesh.vertices) for mesh in scene.geometry.values())
    print(f"fields separated by {name}: {counts[name]} vertices")
assert counts == {"spaces": 3, "tabs": 0}, "tabs are read or rejected now"
PYTHON

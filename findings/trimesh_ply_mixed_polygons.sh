#!/usr/bin/env bash
# Believed: trimesh reads a binary PLY file whose faces have different numbers of corners, or raises an error.
# So it is: it reads every face with as many corners as the first one. If the length of the file happens to fit
# (quads, a triangle and a pentagon), it returns other triangles without an error, and some of their vertex
# indices do not exist. The same faces in a text file are read correctly.
# Version and date: trimesh 5.2.0, 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "trimesh==5.2.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import struct

import trimesh

VERTICES = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 2, 1)]
POLYGONS = [(0, 1, 2, 3), (4, 0, 1), (0, 1, 2, 3, 4), (1, 2, 3, 4)]
EXPECTED = {
    frozenset((p[0], p[i], p[i + 1])) for p in POLYGONS for i in range(1, len(p) - 1)
}
HEADER = """ply
format {} 1.0
element vertex 5
property float x
property float y
property float z
element face 4
property list uchar int vertex_indices
end_header
"""
binary = HEADER.format("binary_little_endian").encode()
binary += b"".join(struct.pack("<3f", *vertex) for vertex in VERTICES)
binary += b"".join(struct.pack(f"<B{len(p)}i", len(p), *p) for p in POLYGONS)
rows = [*VERTICES, *((len(p), *p) for p in POLYGONS)]
text = HEADER.format("ascii") + "".join(" ".join(map(str, row)) + "\n" for row in rows)
results = {}
for name, content in (("text", text.encode()), ("binary", binary)):
    with open(f"{name}.ply", "wb") as file:
        file.write(content)
    mesh = trimesh.load(f"{name}.ply", process=False)
    found = {frozenset(face) for face in mesh.faces.tolist()}
    results[name] = len(found & EXPECTED), int(mesh.faces.max())
    print(
        f"{name}: {results[name][0]} of {len(EXPECTED)} expected triangles, largest vertex index "
        f"{results[name][1]} of {len(mesh.vertices)} vertices"
    )
print("expected:", sorted(map(sorted, EXPECTED)))
print("binary:  ", mesh.faces.tolist())
assert results["binary"][0] < len(EXPECTED), "the faces are read correctly now"
PYTHON

#!/usr/bin/env bash
# Believed: trimesh.load_mesh, which its documentation recommends for new code, returns the vertex normals that a PLY,
# OBJ or glTF file holds, as trimesh.load does. Joining meshes keeps them: the code says so.
# So it is: load_mesh, load(..., force="mesh") and Scene.to_mesh return normals that are computed from the triangles,
# even with process=False and for a file of one mesh. The normals of a scan are replaced without a warning, and a mesh
# that is saved again holds the computed ones. Mesh.copy() loses them too. trimesh.load keeps those of PLY and OBJ, and
# load_scene those of all three, in its geometry.
# Version and date: trimesh 5.2.0, 2026-12-01. It is known to its maintainers (issue 2390).
# What follows: take the only mesh of load_scene(...).geometry, and mesh.copy(include_cache=True).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "trimesh==5.2.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import trimesh

# A flat patch of skin whose normals carry the detail, as a scanner or a normal map gives it.
side = np.linspace(0, 1, 8)
vertices = np.stack([*np.meshgrid(side, side), np.zeros((8, 8))], -1).reshape(-1, 3)
corners = np.arange(64).reshape(8, 8)
a, b, c, d = (part.ravel() for part in (corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]))
triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
normals = np.stack([np.sin(9 * vertices[:, 0]), np.cos(7 * vertices[:, 1]), np.full(64, 2.0)], 1)
normals /= np.linalg.norm(normals, axis=1, keepdims=True)

WAYS = {
    "load": lambda path: trimesh.load(path, process=False),
    "load, force='mesh'": lambda path: trimesh.load(path, process=False, force="mesh"),
    "load_mesh": lambda path: trimesh.load_mesh(path, process=False),
    "load_scene, to_mesh": lambda path: trimesh.load_scene(path, process=False).to_mesh(),
    "load_scene, geometry": lambda path: next(iter(trimesh.load_scene(path, process=False).geometry.values())),
}
EXPORT = {"ply": {"vertex_normal": True}, "obj": {"include_normals": True}, "glb": {"include_normals": True}}


def angle(mesh):
    """Mean angle in degrees between the normals of a mesh and those of the file."""
    assert np.allclose(mesh.vertices, vertices, atol=1e-6) and (mesh.faces == triangles).all()
    cosines = (np.asarray(mesh.vertex_normals) * normals).sum(1)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).mean())


found = {}
for kind, options in EXPORT.items():
    patch = trimesh.Trimesh(vertices, triangles, vertex_normals=normals, process=False)
    patch.export(f"patch.{kind}", **options)
    for way, load in WAYS.items():
        if (kind, way) != ("glb", "load"):  # that gives a scene
            found[kind, way] = angle(load(f"patch.{kind}"))
            print(f"{kind}, {way}: normals are {found[kind, way]:.1f} degrees from those of the file")
kept = {key for key, degrees in found.items() if degrees < 0.1}
assert kept == {(kind, "load_scene, geometry") for kind in EXPORT} | {("ply", "load"), ("obj", "load")}
assert all(found[key] > 20 for key in found.keys() - kept)

patch = trimesh.load("patch.ply", process=False)
print(f"copy of a mesh: {angle(patch.copy()):.1f} degrees, with its cache: {angle(patch.copy(include_cache=True)):.1f}")
assert angle(patch) < 0.1 < 20 < angle(patch.copy()) and angle(patch.copy(include_cache=True)) < 0.1

trimesh.load_mesh("patch.ply", process=False).export("again.ply", vertex_normal=True)
again = angle(trimesh.load("again.ply", process=False))
print(f"read with load_mesh and saved again: {again:.1f} degrees")
assert again > 20
PYTHON

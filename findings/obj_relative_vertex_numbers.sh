#!/usr/bin/env bash
# Believed: trimesh and meshio read the negative vertex numbers of OBJ files, which count back from the line of the face
# (-1 is the last vertex above it), or raise an error.
# So it is: trimesh counts back from the end of the file. If the file holds one part after the other, each with its
# vertices and faces, as for a head and its eyes, every part becomes a copy of the last one. meshio takes 1 off the
# negative numbers, as off the positive ones, and returns them: used as indices, they name the vertex before the right
# one. Neither warns. With the same faces in positive numbers both are right.
# Version and date: trimesh 5.2.0, meshio 5.3.5, 2026-12-01. The first is known to its maintainers (issue 2364).
# What follows: write positive numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "trimesh==5.2.0" "meshio==5.3.5" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import meshio
import numpy as np
import trimesh


def write(path, parts, relative):
    """Write one part after the other; every face names vertices of its own part."""
    lines, count = [], 0
    for vertices, faces in parts:
        lines += [f"v {x} {y} {z}" for x, y, z in vertices.tolist()]
        count += len(vertices)
        for face in faces.tolist():
            numbers = [index - len(vertices) if relative else count - len(vertices) + index + 1 for index in face]
            lines.append("f " + " ".join(map(str, numbers)))
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")


def corners(vertices, faces):
    return np.asarray(vertices)[np.asarray(faces)]


def in_meshio(path):
    mesh = meshio.read(path)
    return mesh.points, mesh.cells_dict["triangle"]


def in_trimesh(path):
    mesh = trimesh.load_mesh(path, process=False)
    return mesh.vertices, mesh.faces


tetrahedron = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
head = [(tetrahedron * 10, faces), (tetrahedron + [2, 5, 9], faces), (tetrahedron + [6, 5, 9], faces)]
for name, parts in (("one part", head[:1]), ("head and two eyes", head)):
    right = np.concatenate([corners(*part) for part in parts])
    for relative in (False, True):
        write("head.obj", parts, relative)
        same = {}
        for library, read in (("trimesh", in_trimesh), ("meshio", in_meshio)):
            vertices, triangles = read("head.obj")
            if triangles.min() < -len(vertices):
                same[library] = 0  # as indices they would raise an error
            else:
                same[library] = int((corners(vertices, triangles) == right).all((1, 2)).sum())
            print(f"{name}, {'negative' if relative else 'positive'} numbers, {library}:", end=" ")
            print(f"{same[library]} of {len(right)} triangles are right, first face {triangles[0].tolist()}")
        if not relative:
            assert set(same.values()) == {len(right)}
    if len(parts) == 1:
        assert same == {"trimesh": 4, "meshio": 0}
    else:
        assert same == {"trimesh": 4, "meshio": 0}, "negative numbers are read or rejected now"
        vertices, triangles = in_trimesh("head.obj")
        assert (corners(vertices, triangles) == np.tile(corners(*parts[2]), (3, 1, 1))).all()
PYTHON

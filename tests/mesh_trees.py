"""Tiny CoMA, BU-3DFE and FaceScape folders: bent grids that differ by person and expression."""

import numpy as np
import torch
from ict_pack import grid_triangles

from facezoo.geometry.mesh_files import write_mesh
from facezoo.geometry.meshes import Mesh

SIDE = 8
BU3DFE = [f"{sex}00{n:02d}" for sex in "FM" for n in range(1, 8)]


def face(person, expression, units="mm", side=SIDE):
    """A mesh about 160 mm wide; person and expression bend it in ways of their own."""
    line = np.linspace(-80, 80, side)
    x, y = (axis.ravel() for axis in np.meshgrid(line, line))
    z = 100 - 0.005 * (x**2 + y**2) + 6 * np.cos(x / 40 + 2 * person)
    z = z + (8 * np.sin(y / 30 + expression) if expression else 0)
    vertices = torch.from_numpy(np.stack([x, y, z], 1)).float()
    triangles = torch.from_numpy(grid_triangles(side)).long()
    return Mesh(vertices, "mm", triangles).to_units(units)


def write_facescape(root, persons=6, side=SIDE):
    for person in range(1, persons + 1):
        for number, name in enumerate(("neutral", "smile", "anger")):
            path = root / f"{person}/models_reg/{number + 1}_{name}.obj"
            write_mesh(path, face(person, number, side=side))
    return root


def write_bu3dfe(root):
    for person, name in enumerate(BU3DFE):
        for number, kind in enumerate(("NE00", "HA03", "AN01")):
            mesh = face(person, number)
            turned = mesh.vertices + 20.0 * number
            path = root / f"{name}/{name}_{kind}WH_F3D.obj"
            write_mesh(path, Mesh(turned, "mm", mesh.triangles))
    (root / "landmarks.txt").write_text(f"0 {SIDE - 1} {SIDE * (SIDE - 1)}\n{SIDE * SIDE - 1}\n")
    return root


def write_coma(root):
    for person in range(3):
        for sequence in range(2):
            for frame in range(12):
                name = f"FaceTalk_{person}_TA/s{sequence}/s{sequence}.{frame:06d}.ply"
                write_mesh(root / name, face(person, 0.1 * frame + sequence, "m"))
    return root

"""Face meshes taken apart and put together again, drawn by the project's own rasteriser.

python examples/take_meshes_apart.py ICT_FOLDER meshes.png

ICT_FOLDER holds the files of ICT-3D. Upper rows: two persons who were not trained on, each as mesh,
reconstruction, identity face, error of the identity face against the true neutral, and wearing the
other's expression. Lowest row: from one identity to the other.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

import facezoo
from facezoo.data.ict import IctFaces
from facezoo.geometry.rasterize import interpolate, rasterize

SIZE, PIXELS_PER_MM = 224, 0.74
WORST_MM = 4.0
LIGHT = torch.nn.functional.normalize(torch.tensor([-0.4, 0.5, 1.0]), dim=0)
CHOSEN = ((2, 1), (8, 2))
"""Numbers of test persons and expressions."""


def draw(vertices: torch.Tensor, triangles: torch.Tensor, error: torch.Tensor | None = None):
    """A mesh (N, 3) in mm from the front, RGB in [0, 1], (S, S, 3); coloured by errors (N,)."""
    middle = (vertices.amax(0) + vertices.amin(0)) / 2
    x, y, z = ((vertices - middle) * PIXELS_PER_MM).unbind(1)
    projected = torch.stack([x + SIZE / 2, SIZE / 2 - y, 1000 - z], 1)[None]
    seen = rasterize(projected, triangles, (SIZE, SIZE))
    a, b, c = vertices[triangles].unbind(1)
    across = torch.linalg.cross(b - a, c - a)
    normals = torch.zeros_like(vertices).index_add(
        0, triangles.flatten(), across.repeat_interleave(3, 0)
    )
    normals = torch.nn.functional.normalize(normals, dim=1)
    colours = (0.25 + 0.75 * (normals @ LIGHT).clamp(min=0))[:, None].expand(-1, 3)
    if error is not None:
        share = (error / WORST_MM).clamp(0, 1)
        colours = torch.stack([share, 0.4 * (1 - share), 1 - share], 1) * (0.4 + 0.6 * colours)
    picture = interpolate(seen, colours[None])[0]
    return torch.where(seen.triangle[0, ..., None] >= 0, picture, torch.ones(3))


def main(folder: Path, output: Path, name: str = "adv3d") -> None:
    """Draw the picture with a checkpoint."""
    model = facezoo.load(name, device="cpu")
    faces = IctFaces(folder)
    meshes, neutrals = [], []
    for person, expression in CHOSEN:
        shapes = torch.from_numpy(faces.meshes([person])[0])
        meshes.append(shapes[expression])
        neutrals.append(shapes[0])
    both = torch.stack(meshes)
    again = model.reconstruct(both, units="mm")
    plain = model.neutralize(both, units="mm")
    swapped = model.transfer_expression(both.flip(0), both, units="mm")
    triangles = model.triangles.long()
    rows = []
    for place in range(2):
        error = (plain[place].vertices - neutrals[place]).norm(dim=1)
        shown = [both[place], again[place].vertices, plain[place].vertices]
        row = [draw(vertices, triangles) for vertices in shown]
        row.append(draw(neutrals[place], triangles, error))
        row.append(draw(swapped[place].vertices, triangles))
        rows.append(torch.cat(row, 1))
    between = model.interpolate(meshes[0], meshes[1], 5, what="identity", units="mm")
    rows.append(torch.cat([draw(mesh.vertices, triangles) for mesh in between], 1))
    pixels = (torch.cat(rows).clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(output)
    print(output)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])

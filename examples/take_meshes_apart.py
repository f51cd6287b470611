"""Take face meshes apart and put them together again; draw them with the rasterizer of facezoo.

    python examples/take_meshes_apart.py ICT_FOLDER meshes.png

ICT_FOLDER holds the files of ICT-3D. Upper rows: two unseen identities as mesh, reconstruction,
neutralized face, its error, and with the other's expression. Bottom row: between the identities.
"""

import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt

import facezoo
from facezoo.data.ict import IctFaces
from facezoo.geometry.rasterize import interpolate, rasterize

SIZE, PIXELS_PER_MM, WORST_MM = 224, 0.74, 4.0
COLORS = matplotlib.colormaps["YlOrRd"]
FIRST = "mesh", "reconstruct", "neutralize", "error: {:.2f} mm", "transfer_expression"
LAST = "interpolate: first identity", "25 %", "50 %", "75 %", "second identity"
LIGHT = torch.nn.functional.normalize(torch.tensor([-0.4, 0.5, 1.0]), dim=0)
CHOSEN = ((2, 1), (8, 2))  # numbers of test identities and expressions


def draw(vertices: torch.Tensor, triangles: torch.Tensor, error: torch.Tensor | None = None):
    """Draw a mesh (N, 3), mm, from the front; errors (N,) color it. RGB in [0, 1], (S, S, 3)."""
    middle = (vertices.amax(0) + vertices.amin(0)) / 2
    x, y, z = ((vertices - middle) * PIXELS_PER_MM).unbind(1)
    projected = torch.stack([x + SIZE / 2, SIZE / 2 - y, 1000 - z], 1)[None]
    seen = rasterize(projected, triangles, (SIZE, SIZE))
    a, b, c = vertices[triangles].unbind(1)
    sums = torch.linalg.cross(b - a, c - a).repeat_interleave(3, 0)
    sums = torch.zeros_like(vertices).index_add(0, triangles.flatten(), sums)
    normals = torch.nn.functional.normalize(sums, dim=1)
    colors = (0.25 + 0.75 * (normals @ LIGHT).clamp(min=0))[:, None].expand(-1, 3)
    if error is not None:
        share = (error / WORST_MM).clamp(0, 1)
        colors = torch.from_numpy(COLORS(share.numpy())[:, :3]).float() * (0.4 + 0.6 * colors)
    picture = interpolate(seen, colors[None])[0]
    return torch.where(seen.triangle[0, ..., None] >= 0, picture, torch.ones(3))


def main(folder: Path, output: Path, name: str = "adv3d") -> None:
    """Draw the figure with a checkpoint."""
    model = facezoo.load(name, device="cpu")
    shapes = torch.from_numpy(IctFaces(folder).meshes([identity for identity, _ in CHOSEN]))
    both = torch.stack([shapes[row, CHOSEN[row][1]] for row in range(len(CHOSEN))])
    again = model.reconstruct(both, units="mm")
    plain = model.neutralize(both, units="mm")
    swapped = model.transfer_expression(both.flip(0), both, units="mm")
    triangles, pictures, titles = model.triangles.long(), [], []
    for row, neutral in enumerate(shapes[:, 0]):
        error = (plain[row].vertices - neutral).norm(dim=1)
        titles += [title.format(error.mean()) for title in FIRST]
        for vertices in (both[row], again[row].vertices, plain[row].vertices):
            pictures.append(draw(vertices, triangles))
        pictures.append(draw(neutral, triangles, error))
        pictures.append(draw(swapped[row].vertices, triangles))
    between = model.interpolate(both[0], both[1], 5, what="identity", units="mm")
    pictures += [draw(mesh.vertices, triangles) for mesh in between]
    figure, axes = plt.subplots(3, 5, figsize=(10, 6.2), layout="constrained")
    for cell, picture, title in zip(axes.flat, pictures, [*titles, *LAST], strict=True):
        cell.imshow(picture.clamp(0, 1).numpy())
        cell.set_title(title, fontsize=11)
        cell.axis("off")
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, WORST_MM), COLORS)
    figure.colorbar(scale, ax=axes[:2, 4], label="error, mm", shrink=0.8)
    figure.savefig(output, dpi=120)
    print(f"{output}; {titles[3]}; {titles[8]}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])

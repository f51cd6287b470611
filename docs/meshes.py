"""Draw the figures of the guide to meshes: a registration, and the 68 landmarks of the template.

python docs/meshes.py     writes registration.png and landmarks.png to docs/images

Needs the extra [mesh]. The scan is a generated face.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import facezoo
from facezoo.data.resampling import cut_at_the_neck, decimate, noisy
from facezoo.geometry.meshes import Mesh
from facezoo.geometry.rasterize import rasterize
from facezoo.models.face_finding import render
from facezoo.models.mesh_base import MeshModel
from facezoo.models.mesh_inputs import FIVE

FOLDER = Path(__file__).resolve().parent / "images"
SIZE, EXTENT_MM = 1000, 185.0
GROUPS = {
    "#1f5fa8": range(17),
    "#8a4f00": range(17, 27),
    "#2e6b2e": range(27, 36),
    "#7a1f7a": range(36, 48),
    "#a3112b": range(48, 68),
}
"""Jaw, brows, nose, eyes and lips by color."""
ABOVE = {*range(17, 27), 37, 38, 43, 44, 60, 61, 62, 63, 64}
"""Landmarks with the number above the point."""
SEED = 1
VERTICES = 1200
"""Number of vertices of the scan before the cut at the neck."""
TURN_DEG = (0.0, 30.0, -30.0)
"""Rotation of the scan about x, y and z."""
PANEL, SMOOTHING, LINE = 420, 3, 0.9
"""Pixels of a panel, renderings per pixel along a side, and width of an edge in pixels."""
SKIN, EDGES = (226.0, 203.0, 190.0), (70.0, 60.0, 60.0)


def scan(model: MeshModel, face: Mesh) -> Mesh:
    """Change a face to a scan in meters: fewer vertices, no neck, noise, and another pose."""
    generator = np.random.default_rng(SEED)
    vertices, triangles = face.vertices.double().numpy(), model.triangles.long().numpy()
    vertices, triangles = decimate(vertices, triangles, VERTICES)
    for change in (cut_at_the_neck, noisy):
        vertices, triangles = change(vertices, triangles, generator)
    x, y, z = (_rotation(axis, np.radians(angle)) for axis, angle in enumerate(TURN_DEG))
    return Mesh(torch.from_numpy(vertices @ (z @ y @ x).T / 1000), "m", torch.from_numpy(triangles))


def _rotation(axis: int, angle: float) -> np.ndarray:
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first], matrix[first, second] = np.sin(angle), -np.sin(angle)
    return matrix


def wireframe(mesh: Mesh) -> Image.Image:
    """Draw a mesh with its edges, from the front."""
    vertices, triangles = mesh.to_units("mm").vertices.float(), mesh.triangles
    side = PANEL * SMOOTHING
    middle = (vertices.amax(0) + vertices.amin(0)) / 2
    x, y, z = ((vertices - middle) * side / 310).unbind(1)
    projected = torch.stack([x + side / 2, side / 2 - y, 10000 - z], 1)[None]
    seen = rasterize(projected, triangles, (side, side))
    a, b, c = projected[0, triangles].unbind(1)
    normals = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)
    light = torch.nn.functional.normalize(torch.tensor([-0.3, -0.4, -1.0]), dim=0)
    brightness = 0.35 + 0.65 * (normals @ light).abs()
    area = torch.linalg.cross(b - a, c - a)[:, 2].abs()
    heights = [
        area / (q - p)[:, :2].norm(dim=1).clamp(min=1e-6) for p, q in ((b, c), (c, a), (a, b))
    ]
    index = seen.triangle[0].clamp(min=0)
    distance = (seen.weights[0] * torch.stack(heights, 1)[index]).amin(-1)
    colors = torch.tensor(SKIN) * brightness[index][..., None]
    line = (distance < LINE * SMOOTHING / 2)[..., None]
    colors = torch.where(line, torch.lerp(colors, torch.tensor(EDGES), 0.45), colors)
    colors = torch.where(seen.mask[0][..., None], colors, torch.tensor(255.0))
    image = Image.fromarray(colors.round().byte().numpy())
    return image.resize((PANEL, PANEL), Image.Resampling.BOX)


def draw_registration(path: Path) -> None:
    """Write the image: a scan, the registered mesh and the neutralized one."""
    model = facezoo.load("adv3d", device="cpu")
    generator = torch.Generator().manual_seed(SEED)
    codes = model.code_mean + torch.randn(1, 128, generator=generator) @ model.code_axes.T
    mesh = scan(model, model.synthesize(codes[:, :64], codes[:, 64:])[0])
    registered = model.register(mesh).mesh
    panels = {
        f"input: {len(mesh.vertices):,} vertices": mesh,
        f"registered: {len(registered.vertices):,} vertices": registered,
        "neutralized": model.neutralize(registered)[0],
    }
    figure = Image.new("RGB", (len(panels) * PANEL, PANEL + 40), "white")
    pen, font = ImageDraw.Draw(figure), ImageFont.load_default(22)
    for column, (title, panel) in enumerate(panels.items()):
        figure.paste(wireframe(panel), (column * PANEL, 40))
        pen.text(((column + 0.5) * PANEL, 20), title, fill="black", font=font, anchor="mm")
    figure.quantize(128).save(path, optimize=True)


def draw_landmarks(path: Path) -> None:
    """Write the image: numbers of all landmarks, and circles around the five points."""
    template = facezoo.load("adv3d", device="cpu").template
    vertices = template.vertices.double().numpy()
    points = template.landmark_points(68).double().numpy()
    center = (points.max(0) + points.min(0)) / 2
    view = render(vertices, template.triangles.numpy(), np.eye(3), center, EXTENT_MM, SIZE)
    image = Image.fromarray(view.image.numpy())
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(15)

    def pixels(positions: np.ndarray) -> np.ndarray:
        offsets = (positions - center)[:, :2] * view.pixels_per_unit
        return (SIZE - 1) / 2 + offsets * [1, -1]

    for x, y in pixels(np.stack([points[list(part)].mean(0) for part in FIVE])):
        pen.ellipse((x - 22, y - 22, x + 22, y + 22), outline="white", width=3)
    for color, numbers in GROUPS.items():
        places = pixels(points[list(numbers)])
        for number, (x, y) in zip(numbers, places, strict=True):
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
            side = {48: (-16, 0), 54: (16, 0)}.get(number, (0, -12 if number in ABOVE else 12))
            place = (x + side[0], y + side[1])
            style = {"anchor": "mm", "stroke_width": 2, "stroke_fill": "white"}
            pen.text(place, str(number), fill=color, font=font, **style)
    image.quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    draw_registration(FOLDER / "registration.png")
    draw_landmarks(FOLDER / "landmarks.png")

"""Draw the 68 landmarks of the mesh models on the template of adv3d.

python docs/landmarks.py     writes docs/images/landmarks.png
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import facezoo
from facezoo.models.face_finding import render
from facezoo.models.mesh_inputs import FIVE

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


def draw(path: Path) -> None:
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
    draw(Path(__file__).resolve().parent / "images" / "landmarks.png")

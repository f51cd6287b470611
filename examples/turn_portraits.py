"""Faces in three dimensions: depth, normals, albedo, other light, other views, and neutral.

python examples/turn_portraits.py parts.png examples/portraits/*.jpg

Writes the factors of each face, parts.png; the face drawn again, parts-views.png; a turntable,
parts.gif; and a mesh of each face, parts-0.obj and so on. Needs the extra [viz].
"""

import math
import sys
from pathlib import Path

import torch
from PIL import Image

import facezoo
from facezoo import plot

PORTRAITS = sorted((Path(__file__).parent / "portraits").glob("*.jpg"))
SCALE = 2
FRAMES = 24
LIGHT = torch.tensor([-0.6, 0.8, 0.9, 0.2])
"""Dim from all sides, strong from the left and a little from above."""


def factors(model, images: list[Path]) -> dict[str, torch.Tensor]:
    """Crops, reconstructions and maps of every face by title."""
    normals = model.normals(images).permute(0, 3, 1, 2) * torch.tensor([1, -1, 1])[:, None, None]
    return {
        "crop": plot.crops(model, images),
        "reconstruct": model.reconstruct(images),
        "depth": -model.depth(images),  # the nearest is white
        "normals": normals / 2 + 0.5,
        "albedo": model.albedo(images),
    }


def views(model, images: list[Path]) -> dict[str, torch.Tensor]:
    """Every face in another light, from other sides and without expression, by title."""
    return {
        "relight": model.relight(images, LIGHT),
        "frontalize": model.frontalize(images),
        "rotate": model.rotate(images, 0.6),
        "neutralize": model.neutralize(images),
    }


def save(columns: dict[str, torch.Tensor], output: Path) -> None:
    figure = plot.grid(columns)
    for axis in figure.axes:
        axis.title.set_fontsize(15)  # readable on a phone
    figure.savefig(output)


def frame(faces: torch.Tensor) -> Image.Image:
    """Faces (F, 3, S, S) side by side, enlarged."""
    pixels = faces.permute(2, 0, 3, 1).flatten(1, 2)
    row = Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    return row.resize((SCALE * row.width, SCALE * row.height), Image.Resampling.BICUBIC)


def main(output: Path, images: list[Path], model=None) -> None:
    model = model or facezoo.load("latentface")
    save(factors(model, images), output)
    save(views(model, images), output.with_name(f"{output.stem}-views.png"))
    turns = [0.7 * math.sin(2 * math.pi * number / FRAMES) for number in range(FRAMES)]
    frames = [frame(model.rotate(images, turn).cpu()) for turn in turns]
    turntable = output.with_suffix(".gif")
    frames[0].save(turntable, save_all=True, append_images=frames[1:], duration=80, loop=0)
    for number, mesh in enumerate(model.to_mesh(images)):
        mesh.save(output.with_name(f"{output.stem}-{number}.obj"))
    print(f"{output}: {len(images)} faces; {turntable}")


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    target, *files = sys.argv[1:] or ["parts.png"]
    main(Path(target), [Path(file) for file in files] or PORTRAITS)

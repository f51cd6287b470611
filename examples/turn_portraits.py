"""Faces in three dimensions: depth, normals, albedo, other light, other views, and neutral.

python examples/turn_portraits.py parts.png examples/portraits/*.jpg

Beside the picture it writes a turntable, parts.gif, and a mesh of each face, parts-0.obj and so on.
"""

import math
import sys
from pathlib import Path

import torch
from PIL import Image

import facezoo

PORTRAITS = sorted((Path(__file__).parent / "portraits").glob("*.jpg"))
SCALE = 2
FRAMES = 24
LIGHT = torch.tensor([-0.6, 0.8, 0.9, 0.2])
"""Dim from all sides, strong from the left and a little from above."""


def columns(model, photos: list[Path]) -> torch.Tensor:
    """Pictures of every face, one column after another, RGB in [0, 1], (columns, F, 3, S, S)."""
    depth = (1.1 - model.depth(photos)) / 0.2  # the nearest is white
    normals = model.normals(photos).permute(0, 3, 1, 2) * torch.tensor([1, -1, 1])[:, None, None]
    made = [
        crops(model, photos),
        model.reconstruct(photos),
        depth[:, None].expand(-1, 3, -1, -1),
        normals / 2 + 0.5,
        model.albedo(photos),
        model.relight(photos, LIGHT),
        model.frontalize(photos),
        model.rotate(photos, 0.6),
        model.neutralize(photos),
    ]
    return torch.stack(made).cpu()


def crops(model, photos: list[Path]) -> torch.Tensor:
    """The aligned crops that the model sees, RGB in [0, 1], (F, 3, S, S)."""
    from facezoo.preprocess.alignment import prepare
    from facezoo.preprocess.images import read_image
    from facezoo.preprocess.pipeline import find_faces, to_device

    pixels = to_device([read_image(photo) for photo in photos], model.device)
    faces = find_faces(pixels, faces="largest", on_missing="raise")
    return model.to_unit(prepare(pixels, faces, model.preprocessing))


def picture(rows: torch.Tensor) -> Image.Image:
    """Pictures (down, across, 3, S, S) as one, enlarged."""
    down, across, _, side, _ = rows.shape
    pixels = rows.permute(0, 3, 1, 4, 2).reshape(down * side, across * side, 3)
    grid = Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    return grid.resize((SCALE * grid.width, SCALE * grid.height), Image.Resampling.BICUBIC)


def main(output: Path, photos: list[Path], model=None) -> None:
    model = model or facezoo.load("latentface")
    pictures = columns(model, photos)
    picture(pictures.transpose(0, 1)).save(output)
    turns = [0.7 * math.sin(2 * math.pi * frame / FRAMES) for frame in range(FRAMES)]
    frames = [picture(model.rotate(photos, turn).cpu()[None]) for turn in turns]
    turntable = output.with_suffix(".gif")
    frames[0].save(turntable, save_all=True, append_images=frames[1:], duration=80, loop=0)
    for number, mesh in enumerate(model.to_mesh(photos)):
        mesh.save(output.with_name(f"{output.stem}-{number}.obj"))
    print(f"{output}: {pictures.shape[1]} faces, {pictures.shape[0]} columns; {turntable}")


if __name__ == "__main__":
    target, *files = sys.argv[1:] or ["parts.png"]
    main(Path(target), [Path(file) for file in files] or PORTRAITS)

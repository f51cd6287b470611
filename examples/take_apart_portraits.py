"""Take faces apart: the crop, then what is decoded from identity, from identity and pose, from all.

python examples/take_apart_portraits.py parts.png examples/portraits/*.jpg

The columns are those of Fig. 9 of the IPD-FER paper; a last one gives each face the expression of
the first. Needs a checkpoint with a decoder.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

import facezoo

PORTRAITS = sorted((Path(__file__).parent / "portraits").glob("*.jpg"))
SCALE = 2


def columns(model, photos: list[Path]) -> torch.Tensor:
    """Pictures of every face, one column after another, RGB in [0, 1], (columns, F, 3, S, S)."""
    made = [method(photos) for method in (model.frontalize, model.neutralize, model.reconstruct)]
    swapped = model.transfer_expression(photos[0], photos)
    return torch.stack([crops(model, photos), *made, swapped]).cpu()


def crops(model, photos: list[Path]) -> torch.Tensor:
    """The aligned crops that the model sees, RGB in [0, 1], (F, 3, S, S)."""
    from facezoo.preprocess.alignment import prepare
    from facezoo.preprocess.images import read_image
    from facezoo.preprocess.pipeline import find_faces, to_device

    pixels = to_device([read_image(photo) for photo in photos], model.device)
    faces = find_faces(pixels, faces="largest", on_missing="raise")
    return model.to_unit(prepare(pixels, faces, model.preprocessing))


def main(output: Path, photos: list[Path], model=None) -> None:
    pictures = columns(model or facezoo.load("ipd-fer"), photos)
    across, down, _, side, _ = pictures.shape
    rows = pictures.permute(1, 3, 0, 4, 2).reshape(down * side, across * side, 3)
    grid = Image.fromarray((rows * 255).round().to(torch.uint8).numpy())
    grid.resize((SCALE * grid.width, SCALE * grid.height), Image.Resampling.BICUBIC).save(output)
    print(f"{output}: {down} faces, {across} columns")


if __name__ == "__main__":
    target, *files = sys.argv[1:] or ["parts.png"]
    main(Path(target), [Path(file) for file in files] or PORTRAITS)

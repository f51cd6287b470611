"""Take faces apart: the crop, then what is decoded from identity, from identity and pose, from all.

python examples/take_apart_portraits.py parts.png examples/portraits/*.jpg

The columns are those of Fig. 9 of the IPD-FER paper; a last one gives each face the expression of
the first. Needs a checkpoint with a decoder, and the extra [viz].
"""

import sys
from pathlib import Path

import torch

import facezoo
from facezoo import plot

PORTRAITS = sorted((Path(__file__).parent / "portraits").glob("*.jpg"))


def columns(model, images: list[Path]) -> dict[str, torch.Tensor]:
    """Images of every face by title, RGB in [0, 1], (F, 3, S, S)."""
    decoded = {} if model.keeps_detail is None else {"detail": False}
    return {
        "crop": plot.crops(model, images),
        "identity": model.frontalize(images),
        "+ pose": model.neutralize(images, **decoded),
        "+ expression": model.reconstruct(images),
        "swapped": model.transfer_expression(images[0], images, **decoded),
    }


def main(output: Path, images: list[Path], model=None) -> None:
    drawn = columns(model or facezoo.load("ipd-fer"), images)
    figure = plot.grid(drawn)
    for axis in figure.axes:
        axis.title.set_fontsize(15)  # readable on a phone
    figure.savefig(output)
    print(f"{output}: {len(images)} faces, {len(drawn)} columns")


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    target, *files = sys.argv[1:] or ["parts.png"]
    main(Path(target), [Path(file) for file in files] or PORTRAITS)

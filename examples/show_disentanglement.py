"""Draw faces as a model edits them: without expression, with that of the next face, and more.

python examples/show_disentanglement.py docs/images/disentanglement.png ipd-fer
python examples/show_disentanglement.py docs/images/edit_latentface.png latentface
python examples/show_disentanglement.py docs/images/edit_latent_simclr.png latent-simclr
"""

import sys
from pathlib import Path

import torch

import facezoo

PORTRAITS = sorted((Path(__file__).parent / "portraits").glob("*.jpg"))


def columns(model, images: list[Path]) -> dict[str, torch.Tensor]:
    """Compute the faces by the name of the method, RGB in [0, 1], (F, 3, S, S) each."""
    able = model.capabilities()
    shown = {"image": facezoo.plot.crops(model, images)}
    if not model.keeps_detail and "rotate" not in able:
        shown["reconstruct"] = model.reconstruct(images)
    if "neutralize" in able:
        shown["neutralize"] = model.neutralize(images)
    shown["transfer_expression"] = model.transfer_expression(images[1:] + images[:1], images)
    if "rotate" in able:
        shown["rotate"] = model.rotate(images, yaw=0.5)
        shown["relight"] = model.relight(images, torch.tensor([-0.6, 0.8, 0.9, 0.2]))
    if "edit" in able:
        shown["edit smile −3"] = model.edit(images, "smile", -3.0)
        shown["edit smile +2"] = model.edit(images, "smile", 2.0)
    return shown


def main(output: Path, model=None, images: list[Path] = PORTRAITS) -> None:
    figure = facezoo.plot.grid(columns(model or facezoo.load("ipd-fer"), images))
    figure.savefig(output)
    print(f"{output}: {len(images)} faces")


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    target, name, *files = [*sys.argv[1:], *["disentanglement.png", "ipd-fer"][len(sys.argv) - 1 :]]
    main(Path(target), facezoo.load(name), [Path(file) for file in files] or PORTRAITS)

"""Draw the pictures of docs/gallery.md.

python examples/make_gallery.py docs/images [WORD]  (with a word in their name; needs [viz])
"""

import sys
from functools import cache
from pathlib import Path

import torch
from PIL import Image

import facezoo
from facezoo import plot
from facezoo.plot import annotate

PORTRAITS = sorted((Path(__file__).parent / "portraits").glob("*.jpg"))
PSIS, load = (0.3, 0.5, 0.7, 1.0), cache(facezoo.load)


@cache
def samples(count: int, psi: float = 0.7) -> torch.Tensor:
    """Sample faces of nobody, RGB in [0, 1], (count, 3, 128, 128)."""
    seed = torch.Generator().manual_seed(3)
    faces = load("latent-simclr").sample(count, psi=psi, generator=seed)
    return torch.nn.functional.interpolate(faces, size=128, mode="bicubic").clamp(0, 1).cpu()


def predict(images, **options):
    return load("ipd-fer").predict_expression(images, on_missing="skip", **options)


def crowd():
    picture = Image.new("RGB", (1180, 650), "#777")
    for number, face in enumerate(samples(40)):
        pixels = Image.fromarray((face * 255).byte().permute(1, 2, 0).numpy())
        place = 20 + 144 * (number % 8), 20 + 124 * (number // 8)
        picture.paste(pixels.resize(2 * [(64, 92, 120)[number % 3]]), place)
    return annotate(picture, predict(picture), style="label")


def relief():
    model = load("latentface")
    names = {"albedo": (), "depth": (), "rotate": (0.5,), "relight": ((-0.6, 0.8, 0.9, 0.2),)}
    columns = {n: getattr(model, n)(PORTRAITS, *a, faces="largest") for n, a in names.items()}
    return plot.grid({"crop": plot.crops(model, PORTRAITS), **columns, "depth": -columns["depth"]})


PICTURES = {
    "gallery_bars.jpg": lambda: annotate(PORTRAITS[1], predict(PORTRAITS[1]), landmarks=True),
    "gallery_crowd.jpg": crowd,
    "gallery_faces.jpg": lambda: plot.show(predict(PORTRAITS), PORTRAITS),
    "gallery_probabilities.png": lambda: plot.bars(
        predict(load("ipd-fer").transfer_expression(*PORTRAITS, strength=0.6), aligned=True)
    ),
    "gallery_cosines.png": lambda: plot.show(load("ipd-fer").encode(PORTRAITS, faces="largest")),
    "gallery_space.png": lambda: plot.embedding(
        load("ipd-fer").encode_expression(samples(96), on_missing="skip"),
        predict(samples(96)).labels,
    ),
    "gallery_parts.jpg": lambda: plot.parts(load("ipd-fer"), PORTRAITS),
    "gallery_relief.jpg": relief,
    "gallery_samples.jpg": lambda: plot.grid({f"psi {p}": samples(3, p) for p in PSIS}),
}


def main(folder: Path, word: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (name for name in PICTURES if word in name):
        picture = PICTURES[name]()
        options = {"quality": 88} if isinstance(picture, Image.Image) else {"dpi": 80}
        (getattr(picture, "savefig", None) or picture.save)(folder / name, **options)
        print(folder / name)


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(Path((sys.argv[1:] or ["gallery"])[0]), *sys.argv[2:3])

"""Faces as codes of a generator: samples, truncation, style mixing, inversion and sliders.

python examples/edit_portraits.py edits.png examples/portraits/*.jpg

Writes edits-samples.png (faces of nobody), edits-mixing.png (rows keep pose and expression, columns
give the appearance) and edits.png: the crop of each portrait, drawn again from w, from w and f and
after refinement, then moved along every direction of the model.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

import facezoo
from facezoo.models.latent_simclr.augment import appearance_layers
from facezoo.models.latent_simclr.stylegan2 import mix_codes
from facezoo.plot import crops

PORTRAITS = sorted((Path(__file__).parent / "portraits").glob("*.jpg"))
SCALE = 2
SEED = 3
PSI = 0.7


def picture(rows: torch.Tensor) -> Image.Image:
    """Pictures (down, across, 3, S, S), RGB in [0, 1], as one, enlarged."""
    down, across, _, side, _ = rows.shape
    pixels = rows.permute(0, 3, 1, 4, 2).reshape(down * side, across * side, 3)
    grid = Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    return grid.resize((SCALE * grid.width, SCALE * grid.height), Image.Resampling.BICUBIC)


def samples(model, count: int = 10) -> torch.Tensor:
    """Three rows of faces, and one face between the mean (left) and itself (right)."""
    rows = [model.sample(count, psi=PSI, generator=seeded(SEED + row)) for row in range(3)]
    shares = torch.linspace(0, 1, count).tolist()
    drawn = [model.sample(1, psi=share, generator=seeded(SEED))[0] for share in shares]
    return torch.stack([*rows, torch.stack(drawn)])


@torch.inference_mode()
def mixing(model, count: int = 6) -> torch.Tensor:
    """Faces with coarse styles by their row and fine ones by their column, beside both."""
    maker = model.inverter.generator
    z = torch.randn(2 * count, maker.style_dim, generator=seeded(SEED))
    codes = maker.map(z.to(model.device), PSI, model.inverter.encoder.mean_code)
    coarse, fine = codes[:, None].expand(-1, maker.num_codes, -1).chunk(2)
    start = appearance_layers(maker.num_codes).start
    rows = [torch.cat([torch.zeros_like(fine[:1]), fine])]
    for kept in coarse:
        same = kept.expand(count, -1, -1)
        rows.append(torch.cat([kept[None], mix_codes(same, fine, start)]))
    drawn = torch.stack([model.to_unit(maker(row, maker.stored_noise())) for row in rows])
    drawn[0, 0] = 1  # nothing stands in the corner
    return drawn


def edits(model, photos: list[Path]) -> torch.Tensor:
    """A row per face: crop, w, w and f, refined, then each direction taken away and added."""
    plain = model.encode_factors(photos).w_plus
    with torch.inference_mode():
        from_w = model.to_unit(model.inverter.synthesize(plain))
    columns = [crops(model, photos), from_w, model.reconstruct(photos)]
    columns.append(model.synthesize(model.invert(photos, refine_steps=100)))
    for name in model.architecture["directions"]:
        columns += [model.edit(photos, name, strength) for strength in (-3.0, 3.0)]
    return torch.stack([column.cpu() for column in columns], 1)


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def main(output: Path, photos: list[Path], model=None) -> None:
    model = model or facezoo.load("latent-simclr")
    made = {"": edits(model, photos), "-samples": samples(model), "-mixing": mixing(model)}
    for what, rows in made.items():
        picture(rows).save(output.with_name(f"{output.stem}{what}.png"))
    print(f"{output}: {len(made[''])} faces, {made[''].shape[1]} columns")


if __name__ == "__main__":
    target, *files = sys.argv[1:] or ["edits.png"]
    main(Path(target), [Path(file) for file in files] or PORTRAITS)

"""Faces as codes of a generator: samples, truncation, style mixing, inversion and sliders.

python examples/edit_portraits.py edits.png examples/portraits/*.jpg

Writes edits.png (portraits drawn again), edits-directions.png, edits-samples.png (faces of nobody)
and edits-mixing.png (rows keep expression, columns give appearance). Needs the extra [viz].
"""

import sys
from pathlib import Path

import torch

import facezoo
from facezoo import plot
from facezoo.models.latent_simclr.augment import appearance_layers
from facezoo.models.latent_simclr.stylegan2 import mix_codes

PORTRAITS = sorted((Path(__file__).parent / "portraits").glob("*.jpg"))
SEED, PSI, STRENGTHS = 3, 0.7, (-3.0, 0.0, 3.0)


def samples(model, count: int = 4) -> dict[str, torch.Tensor]:
    """The same faces by their truncation."""
    seed, psis = torch.Generator().manual_seed, (0.0, 0.3, 0.5, 0.7, 1.0)
    return {f"ψ = {psi}": model.sample(count, psi=psi, generator=seed(0)) for psi in psis}


@torch.inference_mode()
def mixing(model, count: int = 6) -> dict[str, torch.Tensor]:
    """Faces with coarse styles by their row and fine ones by their column, beside both."""
    maker = model.inverter.generator
    z = torch.randn(2 * count, maker.style_dim, generator=torch.Generator().manual_seed(SEED))
    codes = maker.map(z.to(model.device), PSI, model.inverter.encoder.mean_code)
    coarse, fine = codes[:, None].expand(-1, maker.num_codes, -1).chunk(2)
    start, noise = appearance_layers(maker.num_codes).start, maker.stored_noise()
    columns = {"coarse": model.to_unit(maker(coarse, noise))}
    for number, other in enumerate(fine, 1):
        mixed = mix_codes(coarse, other.expand_as(coarse), start)
        columns[f"with {number}"] = model.to_unit(maker(mixed, noise))
    return {**columns, "fine, 1 to 6": model.to_unit(maker(fine, noise))}


def inversions(model, photos: list[Path]) -> dict[str, torch.Tensor]:
    """The faces drawn again from less and more of their code."""
    with torch.inference_mode():
        from_w = model.to_unit(model.inverter.synthesize(model.encode_factors(photos).w_plus))
    columns = {"crop": plot.crops(model, photos), "w+": from_w}
    columns["w+ and f"] = model.reconstruct(photos)
    return {**columns, "refined": model.synthesize(model.invert(photos, refine_steps=100))}


def directions(model, photos: list[Path]) -> dict[str, torch.Tensor]:
    """A row of each face per strength, by direction."""
    return {
        name: torch.stack([model.edit(photos, name, s) for s in STRENGTHS], 1).flatten(0, 1)
        for name in model.architecture["directions"]
    }


def main(output: Path, photos: list[Path], model=None) -> None:
    model = model or facezoo.load("latent-simclr")
    made = {"": inversions(model, photos), "-directions": directions(model, photos)}
    made |= {"-samples": samples(model), "-mixing": mixing(model)}
    for what, columns in made.items():
        figure = plot.grid(columns)
        for axis in figure.axes:
            axis.title.set_fontsize(14)  # readable on a phone
        if what == "-directions":
            for row, axis in enumerate(figure.axes[:: len(columns)]):
                axis.text(3, 9, f"{STRENGTHS[row % 3]:.0f}", fontsize=14, backgroundcolor="white")
        figure.savefig(output.with_name(f"{output.stem}{what}.png"), dpi=70)
    print(f"{output}: {len(photos)} faces, {len(made['-directions'])} directions")


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(Path(([*sys.argv, "edits.png"])[1]), [Path(file) for file in sys.argv[2:]] or PORTRAITS)

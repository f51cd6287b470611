"""Random changes to codes of W+: the views between which SimCLR contrasts.

Source: Hoock, Brügge & Handels, "Disentanglement Learning of Facial Expression and Appearance",
Sec. II.III.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from facezoo.models.latent_simclr.directions import check_direction

PAPERS_CODES = 18
PAPERS_APPEARANCE = 10
"""Of 18 styles, the last 10 are exchanged."""


def appearance_layers(num_codes: int) -> range:
    """Indices of the styles that carry appearance: the last 10 of 18, the same share of others."""
    share = round(num_codes * PAPERS_APPEARANCE / PAPERS_CODES)
    return range(num_codes - share, num_codes)


def structure_layers(num_codes: int) -> range:
    """Indices of the styles that carry shape, pose and expression: those before the others."""
    return range(appearance_layers(num_codes).start)


def mix_with_bank(codes: Tensor, bank: Tensor, layers: range, generator: Generator) -> Tensor:
    """Replace some styles of every code by those of a random code of a bank: style mixing.

    Args:
        codes: (B, L, D).
        bank: codes of other faces, (M, L, D).
        layers: indices of the styles that are replaced, such as ``appearance_layers(L)``.
        generator: source of the choices.

    Returns:
        (B, L, D); ``codes`` is left as it is.

    Raises:
        ValueError: if the bank is empty or its codes are of another shape.
    """
    if not len(bank) or bank.shape[1:] != codes.shape[1:]:
        raise ValueError(
            f"bank must be (M, {codes.shape[1]}, {codes.shape[2]}) with M of 1 or more, got "
            f"{tuple(bank.shape)}; give codes of the same generator"
        )
    device = generator.device
    chosen = torch.randint(len(bank), (len(codes),), generator=generator, device=device)
    mixed = codes.clone()
    span = slice(layers.start, layers.stop, layers.step)
    mixed[:, span] = bank[chosen.to(bank.device), span].to(codes)
    return mixed


def slide(codes: Tensor, directions: list[Tensor], strength: float, generator: Generator) -> Tensor:
    """Move every code along every direction by a random amount: latent sliders.

    Args:
        codes: (B, L, D).
        directions: each (1, D) or (L, D); their length is part of the strength.
        strength: amounts are uniform within plus or minus this.
        generator: source of the amounts.

    Returns:
        (B, L, D).

    Raises:
        ValueError: if a direction does not fit the codes.
    """
    moved = codes
    for direction in directions:
        rows = check_direction(direction, *codes.shape[1:]).to(codes)
        shares = torch.rand(len(codes), 1, 1, generator=generator, device=generator.device)
        moved = moved + strength * (shares.to(codes) * 2 - 1) * rows
    return moved


def augment_codes(
    codes: Tensor,
    bank: Tensor,
    directions: list[Tensor],
    generator: Generator,
    *,
    layers: range | None = None,
    strength: float = 3.0,
) -> Tensor:
    """One view of every code: style mixing with a bank, then sliders.

    For views that keep the expression, as in the paper, leave ``layers`` out. For the mirror image,
    views that keep the appearance (ours, not the paper's), give ``structure_layers(L)``.

    Args:
        codes: (B, L, D).
        bank: codes of other faces, (M, L, D).
        directions: what the sliders move along; none for mixing alone.
        generator: source of every random number.
        layers: indices of the styles that are replaced; None for ``appearance_layers(L)``.
        strength: of the sliders; the paper gives no number.

    Returns:
        (B, L, D).

    Raises:
        ValueError: if the bank or a direction does not fit the codes.
    """
    chosen = appearance_layers(codes.shape[1]) if layers is None else layers
    return slide(mix_with_bank(codes, bank, chosen, generator), directions, strength, generator)

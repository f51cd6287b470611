"""Augmentation of W+ codes for SimCLR: style mixing and latent sliders.

Source: Hoock, Brügge & Handels, "Disentanglement Learning of Facial Expression and Appearance",
Sec. II.III.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from facezoo.models.latent_simclr.directions import check_direction

PAPERS_CODES = 18
PAPERS_APPEARANCE = 10
"""The paper replaces the last 10 of 18 styles."""


def appearance_layers(num_codes: int) -> range:
    """Return the indices of the appearance styles: the last 10 of 18, or the same share."""
    share = round(num_codes * PAPERS_APPEARANCE / PAPERS_CODES)
    return range(num_codes - share, num_codes)


def structure_layers(num_codes: int) -> range:
    """Return the indices of the styles for shape, pose and expression: all earlier ones."""
    return range(appearance_layers(num_codes).start)


def mix_with_bank(codes: Tensor, bank: Tensor, layers: range, generator: Generator) -> Tensor:
    """Replace some styles of each code with the styles of a random code from a bank.

    Args:
        codes: (B, L, D).
        bank: codes of other faces, (M, L, D).
        layers: indices of the replaced styles, such as ``appearance_layers(L)``.

    Returns:
        New codes, (B, L, D).

    Raises:
        ValueError: if the bank is empty or its codes are of another shape.
    """
    if not len(bank) or bank.shape[1:] != codes.shape[1:]:
        raise ValueError(
            f"bank must be (M, {codes.shape[1]}, {codes.shape[2]}) with M of 1 or more, got "
            f"{tuple(bank.shape)}; give codes of the same generator"
        )
    device = generator.device
    rows = torch.randint(len(bank), (len(codes),), generator=generator, device=device)
    mixed = codes.clone()
    span = slice(layers.start, layers.stop, layers.step)
    mixed[:, span] = bank[rows.to(bank.device), span].to(codes)
    return mixed


def slide(codes: Tensor, directions: list[Tensor], strength: float, generator: Generator) -> Tensor:
    """Move each code along each direction by a random amount, (B, L, D).

    Args:
        codes: (B, L, D).
        directions: each (1, D) or (L, D); not normalized.
        strength: amounts are uniform in [-strength, strength].

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
    """Create one view of each code: style mixing with a bank, then sliders.

    The default keeps the expression, as in the paper. ``layers=structure_layers(L)`` keeps the
    appearance instead, which is ours.

    Args:
        codes: (B, L, D).
        bank: codes of other faces, (M, L, D).
        directions: directions of the sliders; an empty list for mixing only.
        layers: indices of the replaced styles; None for ``appearance_layers(L)``.
        strength: slider range; the paper gives no value.

    Returns:
        (B, L, D).

    Raises:
        ValueError: if the bank or a direction does not fit the codes.
    """
    layers = appearance_layers(codes.shape[1]) if layers is None else layers
    return slide(mix_with_bank(codes, bank, layers, generator), directions, strength, generator)

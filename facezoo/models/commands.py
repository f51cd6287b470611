"""Commands that a model family adds to the command line; ``hub.families.COMMANDS`` lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click


@dataclass(frozen=True)
class TrainCommand:
    """``facezoo train NAME``: the command line adds the options that every training has."""

    run: Callable[..., Path | Sequence[Path]]
    """``run(data, out, *, seed, device, smoke, recipe, **options)`` returns the files it wrote.

    It gets no ``recipe`` if ``recipes`` is empty, and ``seeds`` in place of ``seed`` if
    ``several_seeds`` is true.
    """
    recipes: tuple[str, ...] = ()
    """Names for ``--recipe``; the first is the default."""
    options: tuple[click.Option, ...] = ()
    """Options that only this training has; their names are keywords of ``run``."""
    data: str = "folder with the training packs"
    """Help of ``--data``."""
    several_seeds: bool = False
    """One command can train several seeds."""
    several_processes: bool = False
    """``accelerate launch`` may start several processes."""


@dataclass(frozen=True)
class ConvertCommand:
    """``facezoo convert SOURCE TARGET --model NAME``."""

    run: Callable[..., Path]
    """``run(source, target, *, overwrite, **options)`` returns the file or folder it wrote."""
    options: tuple[click.Option, ...] = ()
    """Options of this conversion; other conversions reject them."""

"""Training of IPD-FER: recipes, rows, the rounds before the last, and Algorithm 1."""

from facezoo.models.ipd_fer.train.command import run, train

__all__ = ["run", "train"]

"""Training of IPD-FER: recipes, data, and the stages of training in order."""

from facezoo.models.ipd_fer.train.train import run

__all__ = ["run"]
